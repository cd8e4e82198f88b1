"""Windows that cover the level without padding: against slow loops, and through the reader."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.batches import batches
from streamwsi.chunks import BigChunk, Damage, SmallChunks
from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Grid, Size
from streamwsi.limits import Limits
from streamwsi.resampled_readers import resampled
from streamwsi.resampling import axes, resample
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow
from streamwsi.samplers.windows import windows_of
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.testing.faults import ScriptedSource
from streamwsi.touched import windows_touched
from streamwsi.workers import open_workers


def slide(size: Size, tile: tuple[int, int] = (8, 8)) -> Slide:
    level = PyramidLevel(0, size, (1.0, 1.0), Size(*tile))
    return Slide(SlideRef("a", "a.svs"), Pyramid((level,)), "uint8", 3)


@st.composite
def axis(draw: st.DrawFn, align: int) -> tuple[int, int, int]:
    """Size, kernel and stride of one axis."""
    kernel = align * draw(st.integers(1, 24 // align))
    stride = align * draw(st.integers(1, kernel // align))
    return draw(st.integers(kernel, 50)), kernel, stride


@st.composite
def samplers(draw: st.DrawFn) -> tuple[SlidingWindow, Size]:
    align = draw(st.sampled_from([1, 1, 2, 3, 8]))
    x, y = draw(axis(align)), draw(axis(align))
    size, kernel, stride = (Size(a, b) for a, b in zip(x, y, strict=True))
    return SlidingWindow(kernel, stride, padding="shift", align=align), size


def starts(size: int, kernel: int, stride: int, align: int) -> list[int]:
    """The windows of an axis, found one after the other."""
    found = [0]
    while found[-1] + kernel < size - size % align:
        found.append(found[-1] + stride)
    while found[-1] + kernel > size - size % align:
        found[-1] -= 1
    return found


@st.composite
def plans(draw: st.DrawFn) -> GridPlan:
    """Such windows, in panels and regions of any size."""
    sampler, size = draw(samplers())
    of = slide(size, (draw(st.integers(1, 16)), draw(st.integers(1, 16))))
    grid = sampler.plan(of).grid
    grid = replace(grid, panel=draw(st.integers(1, grid.columns)))
    return GridPlan(of, of.level(0), grid, draw(st.integers(1, grid.rows)), {})


@settings(deadline=None, max_examples=300)
@given(case=samplers())
def test_windows_cover_the_level_and_stay_inside(case: tuple[SlidingWindow, Size]) -> None:
    sampler, size = case
    grid, align = sampler.plan(slide(size)).grid, sampler.align
    columns = [grid.box(0, i).x for i in range(grid.columns)]
    rows = [grid.box(i, 0).y for i in range(grid.rows)]
    assert columns == starts(size.width, grid.kernel.width, grid.stride.width, align)
    assert rows == starts(size.height, grid.kernel.height, grid.stride.height, align)
    assert grid.columns == -(-(size.width // align * align - grid.kernel.width) // grid.stride.width) + 1  # fmt: skip # noqa: E501
    assert {x % align for x in columns} | {y % align for y in rows} == {0}
    assert grid.regular == all(
        len({b - a for a, b in itertools.pairwise(of)} | {step}) == 1
        for of, step in ((columns, grid.stride.width), (rows, grid.stride.height))
    )
    seen = np.zeros((size.height, size.width), np.bool_)
    for x, y in itertools.product(columns, rows):
        window = seen[y : y + grid.kernel.height, x : x + grid.kernel.width]
        assert window.shape == grid.kernel[::-1]
        window[...] = True
    assert seen[: size.height // align * align, : size.width // align * align].all()
    assert size.width - columns[-1] - grid.kernel.width < align
    assert size.height - rows[-1] - grid.kernel.height < align


@settings(deadline=None, max_examples=200)
@given(plan=plans(), data=st.data())
def test_numbers_cells_runs_and_covers_are_those_of_a_loop(
    plan: GridPlan, data: st.DataObject
) -> None:
    grid = plan.grid
    cells = [
        (row, column)
        for first in range(0, grid.columns, grid.panel)
        for row in range(grid.rows)
        for column in range(first, min(first + grid.panel, grid.columns))
    ]
    assert [grid.cell(i) for i in range(grid.count)] == cells
    assert [grid.index(*cell) for cell in cells] == [*range(plan.count)]
    assert [plan.place(i).box for i in range(plan.count)] == [grid.box(*cell) for cell in cells]
    start = data.draw(st.integers(0, plan.count))
    stop = data.draw(st.integers(start, plan.count))
    runs = [(r.row, r.column + i) for r in plan.runs(start, stop) for i in range(r.count)]
    assert runs == cells[start:stop]
    row, column = data.draw(st.sampled_from(cells))
    rows = data.draw(st.integers(1, grid.rows - row))
    columns = data.draw(st.integers(1, grid.columns - column))
    boxes = [grid.box(r, c) for r in range(row, row + rows) for c in range(column, column + columns)]  # fmt: skip # noqa: E501
    assert grid.cover(row, column, rows, columns) == Box.between(
        min(b.x for b in boxes),
        min(b.y for b in boxes),
        max(b.right for b in boxes),
        max(b.bottom for b in boxes),
    )


@settings(deadline=None, max_examples=200)
@given(plan=plans(), data=st.data())
def test_windows_are_views_of_the_right_pixels(plan: GridPlan, data: st.DataObject) -> None:
    size = plan.level.size
    array = np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)
    spots = data.draw(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 49)), max_size=3))
    damage = tuple(Damage(0, 0, Box(x, y, 2, 3), "x") for x, y in spots)
    regions = [*plan.regions()]
    following, valid = 0, []
    for region in regions:
        box = region.box
        assert region.first == following
        chunk = BigChunk(region, array[box.y : box.bottom, box.x : box.right], damage)
        for windows in windows_of(plan, chunk):
            assert windows.first == following
            assert windows.chunk is chunk
            assert not windows.pixels.flags.writeable
            assert np.shares_memory(windows.pixels, array)
            following += len(windows)
            valid += windows.valid.tolist()
            for i, pixels in enumerate(windows.pixels):
                at = plan.place(windows.first + i).box
                np.testing.assert_array_equal(pixels, array[at.y : at.bottom, at.x : at.right])
        hurt = valid[region.first :].count(False)
        assert windows_touched(plan, region, damage, 0) == hurt
    assert following == plan.count
    boxes = [plan.place(i).box for i in range(plan.count)]
    assert valid == [all(d.box.intersection(b).empty for d in damage) for b in boxes]
    start = data.draw(st.integers(0, plan.count))
    assert [*plan.regions(start)] == [r for r in regions if r.first + r.count > start]
    # Readers take the first region for the measure of what they need.
    assert max(r.box.width for r in regions) == regions[0].box.width
    assert max(r.box.height for r in regions) == regions[0].box.height


def test_a_row_is_two_views_where_its_last_window_was_moved() -> None:
    of = slide(Size(30, 12))
    plan = SlidingWindow(8, 4, padding="shift").plan(of)
    (region,) = plan.regions()
    parts: list[SmallChunks] = [*windows_of(plan, BigChunk(region, np.zeros((12, 30, 3), np.uint8)))]  # fmt: skip # noqa: E501
    assert [len(part) for part in parts] == [6, 1, 6, 1]
    plan = SlidingWindow(8, 4, padding="shift").plan(slide(Size(28, 12)))
    (region,) = plan.regions()
    assert len([*windows_of(plan, BigChunk(region, np.zeros((12, 28, 3), np.uint8)))]) == 2


@pytest.mark.parametrize(("panel", "rows"), [(9, 2), (2, 1), (3, 9)])
@pytest.mark.parametrize("mpp", [None, 0.6])
async def test_batches_through_the_reader(mpp: float | None, panel: int, rows: int) -> None:
    """Decoded tile by tile, with memory for little more than a region, resampled or not."""
    array = np.random.default_rng(1).integers(0, 256, (150, 131, 3), np.uint8)
    source = ScriptedSource({"slide": (array,)}, 16, jitter=3)
    sampler = SlidingWindow(20, mpp=mpp, assume_mpp=0.25, halo=(4, 6), align=2)
    limits = Limits(workers=1, worker_kind="inline", memory="16MiB")
    ref = SlideRef("slide", "slide.tif")
    async with open_workers(limits) as workers, source.open(ref, workers) as opened:
        plan = sampler.plan(opened.slide)
        assert not plan.grid.regular
        panel, rows = min(panel, plan.grid.columns), min(rows, plan.grid.rows)
        plan = replace(plan, grid=replace(plan.grid, panel=panel), rows_per_region=rows)
        whole = array
        if plan.level.source is not None:
            whole = np.zeros((plan.level.size.height, plan.level.size.width, 3), np.uint8)
            resample(array, whole, (0, 0), *axes(plan.level), Box(0, 0, *plan.level.size))
        done = 0
        with resampled(opened, plan.level, workers) as reader:
            least = max(map(reader.needs, plan.regions()))

            async def released() -> AsyncIterator[BigChunk]:
                async with aclosing(reader.bigchunks(plan.regions(), least)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                        chunk.release()

            async for batch in batches(plan, sampler.smallchunks(plan, released()), 7):
                for place, pixels in zip(batch.places, batch.pixels, strict=True):
                    at = place.box
                    cut = whole[at.y : at.bottom, at.x : at.right]
                    np.testing.assert_array_equal(pixels, cut)
                    done += 1
                batch.release()
        assert done == plan.count


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    kernel=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    data=st.data(),
)
def test_every_pixel_is_a_halo_deep_in_some_window(
    size: tuple[int, int], kernel: tuple[int, int], data: st.DataObject
) -> None:
    """Or nearer to the level's edge than to the window's, on that side."""
    halo = tuple(data.draw(st.integers(0, (k - 1) // 2)) for k in kernel)
    kernel = min(kernel[0], size[0]), min(kernel[1], size[1])
    halo = tuple(min(h, (k - 1) // 2) for h, k in zip(halo, kernel, strict=True))
    grid = SlidingWindow(kernel, halo=(halo[0], halo[1])).plan(slide(Size(*size))).grid
    deep = np.zeros(size[::-1], np.bool_)
    for row, column in itertools.product(range(grid.rows), range(grid.columns)):
        box = grid.box(row, column)
        left = box.x + halo[0] if box.x else 0
        top = box.y + halo[1] if box.y else 0
        right = box.right - halo[0] if box.right < size[0] else size[0]
        bottom = box.bottom - halo[1] if box.bottom < size[1] else size[1]
        deep[top:bottom, left:right] = True
    assert deep.all()


def test_a_halo_is_a_stride() -> None:
    of = slide(Size(100, 90))
    plan = SlidingWindow((32, 24), halo=(4, 8), align=4).plan(of)
    assert plan == SlidingWindow((32, 24), (24, 8), padding="shift", align=4).plan(of)
    assert plan.config == {
        "type": "sliding-window",
        "kernel_size": [32, 24],
        "stride": [24, 8],
        "level": 0,
        "padding": "shift",
        "align": 4,
    }
    assert plan.grid == Grid(Size(100, 90), Size(32, 24), Size(24, 8), 4, shift=4)
    assert (plan.grid.columns, plan.grid.rows) == (4, 9)
    assert SlidingWindow(8, halo=0).plan(of).config == SlidingWindow(8, padding="shift").plan(of).config  # fmt: skip # noqa: E501
    assert plan.grid.last == (68, 64)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"halo": 2, "stride": 4}, r"exclude each other: a halo of 2×2 sets the stride .* 4×4"),
        ({"halo": 2, "padding": "same"}, "a halo goes with padding shift only, not with 'same'"),
        ({"halo": 2, "padding": "valid"}, "leave out the padding"),
        ({"halo": -1}, "halo -1×-1 must be at least 0"),
        ({"halo": (1, 4)}, "leaves nothing of windows of 8×8: choose a kernel size above 2×8"),
        ({"halo": 1.5}, "1.5 is not a size"),
        ({"halo": 2, "offset": (1, 0)}, r"begin at the level's corner; leave out the offset \(1"),
        ({"halo": 2, "align": 3}, "kernel size 8×8 is not a multiple of align, 3.* 6 or 9"),
        ({"halo": 2, "align": 4}, "halo 2×2 is not a multiple of align, 4; the nearest is 4"),
        ({"padding": "shift", "stride": 6, "align": 4}, "stride 6×6 is not .* nearest is 4 or 8"),
        ({"padding": "shift", "align": 0}, "align must be at least 1, not 0"),
        ({"align": 2}, "align 2 needs padding shift, or a halo"),
        ({"padding": "shift", "stride": (8, 9)}, "do not cover the level, as padding shift prom"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SlidingWindow(8, **wrong)


def test_windows_beyond_the_level_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.svs, level 0: kernel size 101×101 is beyond .*100"):
        SlidingWindow(101, halo=3).plan(slide(Size(100, 100)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shift": 3}, "kernel size 4×4 and stride 2×2 must be multiples of 3"),
        ({"shift": 0}, "must be multiples of 0"),
        ({"shift": 1, "origin": (1, 0)}, "begins at the level's corner"),
        ({"shift": 1, "pad": "white"}, "does not pad"),
        ({"shift": 1, "stride": Size(2, 5)}, "windows of 4×4 that lie 2×5 apart do not cover"),
    ],
)
def test_grids_that_cannot_shift_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Grid(**{"size": Size(10, 10), "kernel": Size(4, 4), "stride": Size(2, 2), **wrong})
