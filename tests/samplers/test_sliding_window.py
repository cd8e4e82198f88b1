"""SlidingWindow: the planner, without pixels, and the windows against slow loops."""

from __future__ import annotations

import pickle
import time
from collections.abc import AsyncIterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.chunks import BigChunk, Damage
from streamwsi.errors import ConfigError, LevelNotFound
from streamwsi.geometry import Box, Grid, Size
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow, windows_of
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.sources.scroll import sheet_bytes

_GIB = 2**30


def slide(size: Size, tile: Size, channels: int = 3, dtype: str = "uint8") -> Slide:
    level = PyramidLevel(0, size, (1.0, 1.0), tile)
    return Slide(SlideRef("a", "a.svs"), Pyramid((level,)), dtype, channels)


@st.composite
def plans(draw: st.DrawFn) -> GridPlan:
    """Plans of small levels, in panels and regions of any size."""
    size = Size(draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    kernel = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    stride = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    grid = Grid(size, kernel, stride)
    grid = Grid(size, kernel, stride, draw(st.integers(1, grid.columns)))
    tile = Size(draw(st.integers(1, 16)), draw(st.integers(1, 16)))
    of = slide(size, tile)
    return GridPlan(of, of.level(0), grid, draw(st.integers(1, grid.rows)), {})


@settings(deadline=None, max_examples=200)
@given(plan=plans())
def test_every_window_is_in_exactly_one_region_that_holds_it(plan: GridPlan) -> None:
    regions = [*plan.regions()]
    assert [region.index for region in regions] == [*range(len(regions))]
    following = 0
    for region in regions:
        assert region.first == following
        following += region.count
        assert region.count > 0
        boxes = [plan.place(i).box for i in range(region.first, following)]
        assert all(region.box.contains(box) for box in boxes)
        # No pixel more than the windows span.
        assert region.box == Box.between(
            min(box.x for box in boxes),
            min(box.y for box in boxes),
            max(box.right for box in boxes),
            max(box.bottom for box in boxes),
        )
        assert Box(0, 0, *plan.level.size).contains(region.box)
    assert following == plan.count


@settings(deadline=None, max_examples=200)
@given(plan=plans(), data=st.data())
def test_regions_from_a_window_on_are_the_tail_that_holds_it(
    plan: GridPlan, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, plan.count + 2))
    tail = [r for r in plan.regions() if r.first + r.count > start]
    assert [*plan.regions(start)] == tail


@settings(deadline=None, max_examples=100)
@given(plan=plans())
def test_every_window_is_planned_once_at_a_multiple_of_the_stride(plan: GridPlan) -> None:
    size, kernel, stride = plan.level.size, plan.grid.kernel, plan.grid.stride
    expected = {
        (x, y, *kernel)
        for y in range(0, size.height - kernel.height + 1, stride.height)
        for x in range(0, size.width - kernel.width + 1, stride.width)
    }
    places = [plan.place(i) for i in range(plan.count)]
    assert [place.index for place in places] == [*range(plan.count)]
    boxes = [(b.x, b.y, b.width, b.height) for b in (place.box for place in places)]
    assert len(boxes) == len(expected)
    assert {*boxes} == expected


def test_a_huge_level_plans_at_once() -> None:
    """10¹⁰ windows: nothing is listed."""
    began = time.perf_counter()
    plan = SlidingWindow(1).plan(slide(Size(100_000, 100_000), Size(256, 256)))
    assert plan.count == 10**10
    assert plan.place(10**10 - 1).box == Box(99_999, 99_999, 1, 1)
    middle = next(plan.regions(5 * 10**9))
    assert middle.first <= 5 * 10**9 < middle.first + middle.count
    assert len([*islice(plan.regions(), 50)]) == 50
    assert time.perf_counter() - began < 0.5


class Decoding:
    """Which tiles the scroll reader would decode: those that the sheet does not hold."""

    def __init__(self, plan: GridPlan) -> None:
        tile, level = plan.level.tile, plan.level.size
        self.decoded = 0
        self.most_bytes = 0
        seen = np.zeros((-(-level.height // tile.height), -(-level.width // tile.width)), bool)
        pixel = plan.slide.channels * np.dtype(plan.slide.dtype).itemsize
        columns, top, filled = (0, 0), 0, 0
        for region in plan.regions():
            box = region.box.snapped(tile, level)
            self.most_bytes = max(self.most_bytes, box.width * box.height * pixel)
            if columns != (box.x, box.right) or not top <= box.y <= filled:
                columns, filled = (box.x, box.right), box.y
            top = box.y  # the worst case: no row is kept longer than it must be
            new = slice(filled // tile.height, -(-box.bottom // tile.height))
            across = slice(box.x // tile.width, -(-box.right // tile.width))
            if box.bottom > filled:
                self.decoded += (new.stop - new.start) * (across.stop - across.start)
                seen[new, across] = True
                filled = box.bottom
        self.distinct = int(seen.sum())


def test_the_model_of_decoding_counts_seams() -> None:
    """A seam inside a tile has its column of tiles decoded twice; one at an edge does not."""
    of = slide(Size(100, 100), Size(10, 10))
    plan = GridPlan(of, of.level(0), Grid(Size(100, 100), Size(5, 5), Size(5, 5), 9), 2, {})
    assert (Decoding(plan).decoded, Decoding(plan).distinct) == (110, 100)


kernels = st.one_of(st.just(4096), st.sampled_from([64, 224, 256, 512, 1024]), st.integers(1, 4096))
strides = st.one_of(st.none(), st.sampled_from([32, 64, 112, 224, 256, 512]), st.integers(20, 4096))


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.tuples(kernels, kernels),
    stride=st.tuples(strides, strides),
    tile=st.tuples(*[st.sampled_from([128, 240, 256, 384, 512])] * 2),
    width=st.integers(95_000, 100_000),
    height=st.sampled_from([8000, 20_000]),
)
def test_tiles_are_decoded_once_on_a_wide_level(
    kernel: tuple[int, int],
    stride: tuple[int | None, int | None],
    tile: tuple[int, int],
    width: int,
    height: int,
) -> None:
    """Seams of panels cost at most 5 %, and a region at most 1 GiB."""
    step = (stride[0] or kernel[0], stride[1] or kernel[1])
    plan = SlidingWindow(kernel, step).plan(slide(Size(width, height), Size(*tile)))
    decoding = Decoding(plan)
    assert decoding.decoded <= 1.05 * decoding.distinct
    assert decoding.most_bytes <= _GIB


@pytest.mark.parametrize(
    ("tile", "most"), [(256, 1.05), (512, 1.05), (1024, 1.10), (2048, 1.12), (4096, 1.3)]
)
@pytest.mark.parametrize("stride", [1, 224, 4096])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_largest_kernel_at_any_tile(tile: int, most: float, stride: int, channels: int) -> None:
    of = slide(Size(100_000, 12_000), Size.of(tile), channels)
    decoding = Decoding(SlidingWindow(4096, stride).plan(of))
    assert decoding.decoded <= most * decoding.distinct
    assert decoding.most_bytes <= _GIB


@pytest.mark.parametrize("kernel", [1, 256, 4096])
def test_strips_are_never_read_twice(kernel: int) -> None:
    """A strip is as wide as the level, so that there is one panel."""
    of = slide(Size(100_000, 20_000), Size(100_000, 16))
    plan = SlidingWindow(kernel).plan(of)
    assert plan.grid.panel == plan.grid.columns
    decoding = Decoding(plan)
    assert decoding.decoded == decoding.distinct


def test_rows_between_sparse_windows_are_not_read() -> None:
    of = slide(Size(2000, 20_000), Size(256, 256))
    boxes = [region.box for region in SlidingWindow(64, 1000).plan(of).regions()]
    assert {box.height for box in boxes} == {64}


def test_a_slide_of_usual_width_is_one_panel() -> None:
    plan = SlidingWindow(256, 128).plan(slide(Size(16_384, 90_000), Size(256, 256)))
    assert plan.grid.panel == plan.grid.columns


@pytest.mark.parametrize(("kernel", "stride"), [(256, 256), (256, 128), (224, 224), (512, 64)])
def test_regions_do_not_grow_with_the_slide(kernel: int, stride: int) -> None:
    """So that memory does not: three of them are the reader's room, or 96 MiB."""
    for width in (16_384, 33_000, 70_000, 150_000):
        of = slide(Size(width, 50_000), Size(256, 256))
        plan = SlidingWindow(kernel, stride).plan(of)
        assert sheet_bytes(of, next(plan.regions())) <= 56 * 2**20


@settings(deadline=None, max_examples=100)
@given(plan=plans(), data=st.data())
def test_windows_are_views_of_the_right_pixels(plan: GridPlan, data: st.DataObject) -> None:
    size = plan.level.size
    array = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)
    spots = data.draw(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=3))
    damage = tuple(Damage(0, 0, Box(x, y, 2, 3), "x") for x, y in spots)
    for region in plan.regions():
        box = region.box
        chunk = BigChunk(region, array[box.y : box.bottom, box.x : box.right], damage)
        following = region.first
        for windows in windows_of(plan, chunk):
            assert windows.first == following
            assert not windows.pixels.flags.writeable
            assert windows.chunk is chunk
            assert np.shares_memory(windows.pixels, array)
            following += len(windows)
            for i, (pixels, valid) in enumerate(zip(windows.pixels, windows.valid, strict=True)):
                at = plan.place(windows.first + i).box
                np.testing.assert_array_equal(pixels, array[at.y : at.bottom, at.x : at.right])
                assert valid == all(d.box.intersection(at).empty for d in damage)
        assert following == region.first + region.count


async def test_smallchunks_give_all_windows_of_each_chunk() -> None:
    of = slide(Size(30, 20), Size(8, 8))
    plan = GridPlan(of, of.level(0), Grid(Size(30, 20), Size(4, 4), Size(4, 4), 5), 2, {})

    async def chunks() -> AsyncIterator[BigChunk]:
        for region in plan.regions():
            yield BigChunk(region, np.zeros((region.box.height, region.box.width, 3), np.uint8))

    given_ = [(s.first, len(s)) async for s in SlidingWindow(4).smallchunks(plan, chunks())]
    assert sum(count for _, count in given_) == plan.count
    assert [first for first, _ in given_] == [0, *np.cumsum([n for _, n in given_])[:-1]]


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (lambda: SlidingWindow(0), "kernel size 0×0 must be at least 1"),
        (lambda: SlidingWindow(8, (4, 0)), "stride 4×0 must be at least 1"),
        (lambda: SlidingWindow(8, -1), "stride -1×-1 must be at least 1"),
        (lambda: SlidingWindow(level=-1), "level -1"),
    ],
)
def test_impossible_settings_are_refused(stage: type, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stage()


@pytest.mark.parametrize(
    ("stage", "error", "says"),
    [
        (SlidingWindow(101), ConfigError, r"a\.svs, level 0: kernel size 101×101 is beyond .*100"),
        (SlidingWindow(8, (8, 51)), ConfigError, r"a\.svs, level 0: stride 8×51 is beyond"),
        (SlidingWindow(8, level=2), LevelNotFound, r"a\.svs: there is no level 2"),
    ],
)
def test_windows_beyond_the_level_are_refused(
    stage: SlidingWindow, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        stage.plan(slide(Size(100, 50), Size(16, 16)))


def test_the_stage_is_a_value() -> None:
    stage = SlidingWindow((32, 16), stride=(8, 4), level=1)
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert eval(repr(stage)) == stage
    assert len({stage, SlidingWindow((32, 16), (8, 4), 1)}) == 1


def test_the_plan_says_what_identifies_it() -> None:
    plan = SlidingWindow((32, 16)).plan(slide(Size(100, 100), Size(16, 16)))
    assert plan.config == {
        "type": "sliding-window",
        "kernel_size": [32, 16],
        "stride": [32, 16],
        "level": 0,
    }
