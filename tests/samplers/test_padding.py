"""Windows that reach over the edge of a level: the grid without pixels, and the windows
against numpy's padding."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamwsi.batches import batches
from streamwsi.chunks import BigChunk, Damage
from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Grid, Size
from streamwsi.heatmaps import Raster
from streamwsi.limits import Limits
from streamwsi.resampled_readers import resampled
from streamwsi.resampling import axes, resample
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow
from streamwsi.samplers.windows import windows_of
from streamwsi.slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.testing.faults import ScriptedSource
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]
Pad = Literal["white", "reflect"]
BORDER = 64
"""Pixels around the level in the padded arrays: more than any window reaches over."""


def slide(size: Size, dtype: str = "uint8", mpp: float | None = None) -> Slide:
    level = PyramidLevel(0, size, (1.0, 1.0), Size(8, 8))
    pyramid = Pyramid((level,), Mpp(mpp, mpp) if mpp else None)
    return Slide(SlideRef("a", "a.svs"), pyramid, dtype, 3)


def padded(array: Array, pad: Pad) -> Array:
    """numpy's idea of it."""
    edges = ((BORDER, BORDER), (BORDER, BORDER), (0, 0))
    if pad == "reflect":
        return np.pad(array, edges, mode="reflect")
    return np.pad(array, edges, constant_values=255)


def starts(size: int, kernel: int, stride: int, offset: int) -> list[int]:
    """All starts a multiple of the stride from the offset whose cell and window touch the level."""
    every = range(offset % stride - 3 * stride, size + stride, stride)
    return [x for x in every if x < size and x + stride > 0 and x + kernel > 0]


settings_of_axes = st.tuples(
    st.integers(1, 23), st.integers(1, 30), st.integers(1, 30), st.integers(-40, 40)
)


@settings(deadline=None, max_examples=300)
@given(x=settings_of_axes, y=settings_of_axes, pad=st.sampled_from(["white", "reflect"]))
def test_windows_cover_the_level(
    x: tuple[int, int, int, int], y: tuple[int, int, int, int], pad: Pad
) -> None:
    size, kernel, stride, offset = (Size(a, b) for a, b in zip(x, y, strict=True))
    sampler = SlidingWindow(kernel, stride, padding="same", pad=pad, offset=offset)
    if not starts(*x) or not starts(*y):  # the level lies between two windows
        with pytest.raises(ConfigError, match=r"no window of .* fits the level"):
            sampler.plan(slide(size))
        return
    grid = sampler.plan(slide(size)).grid
    columns = [grid.box(0, i).x for i in range(grid.columns)]
    rows = [grid.box(i, 0).y for i in range(grid.rows)]
    assert (columns, rows) == (starts(*x), starts(*y))
    if offset == (0, 0):
        assert (grid.columns, grid.rows) == (
            -(-size.width // stride.width),
            -(-size.height // stride.height),
        )
    seen = np.zeros((size.height, size.width), np.bool_)
    for left, top in itertools.product(columns, rows):
        seen[max(0, top) : top + kernel.height, max(0, left) : left + kernel.width] = True
    if kernel.width >= stride.width and kernel.height >= stride.height:
        assert seen.all()
    for row in range(grid.rows):
        within = [
            i
            for i, left in enumerate(columns)
            if Box(0, 0, *size).contains(Box(left, rows[row], *kernel))
        ]
        assert [*grid.within(row)] == within


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    kernel=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    stride=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    offset=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    pad=st.sampled_from(["white", "reflect"]),
    rows=st.integers(1, 4),
    panel=st.integers(1, 9),
    spots=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 22)), max_size=2),
)
def test_windows_have_the_pixels_that_numpy_pads(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    offset: tuple[int, int],
    pad: Pad,
    rows: int,
    panel: int,
    spots: list[tuple[int, int]],
) -> None:
    of = slide(Size(*size))
    array = np.random.default_rng(0).integers(0, 250, (size[1], size[0], 3), np.uint8)
    damage = tuple(Damage(0, 0, Box(x, y, 2, 3), "x") for x, y in spots)
    marked = np.zeros((size[1], size[0], 1), np.uint8)
    for d in damage:
        marked[d.box.y : d.box.bottom, d.box.x : d.box.right] = 1
    expected, hurt = padded(array, pad), padded(marked, pad)
    hurt[hurt == 255] = 0
    axis = [*zip(size, kernel, stride, offset, strict=True)]
    assume(all(starts(*one) for one in axis))
    grid = SlidingWindow(kernel, stride, padding="same", pad=pad, offset=offset).plan(of).grid
    grid = Grid(grid.size, grid.kernel, grid.stride, panel, grid.origin, pad)
    plan = GridPlan(of, of.level(0), grid, rows, {})
    following = 0
    for region in plan.regions():
        box = region.box
        assert Box(0, 0, *size).contains(box)
        chunk = BigChunk(region, array[box.y : box.bottom, box.x : box.right], damage)
        for windows in windows_of(plan, chunk):
            assert windows.first == following
            assert not windows.pixels.flags.writeable
            following += len(windows)
            for i, (pixels, valid) in enumerate(zip(windows.pixels, windows.valid, strict=True)):
                at = plan.place(windows.first + i).box.shifted(BORDER, BORDER)
                inside = Box(BORDER, BORDER, *size).contains(at)
                assert (windows.chunk is chunk) == inside
                assert np.shares_memory(pixels, array) == inside
                cut = np.s_[at.y : at.bottom, at.x : at.right]
                np.testing.assert_array_equal(pixels, expected[cut])
                # A window is never taken for whole if it shows damage.
                assert not (valid and hurt[cut].any())
                if inside or pad == "white":
                    assert valid != hurt[cut].any()
    assert following == plan.count


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(5, 40), kernel=st.integers(1, 5), stride=st.integers(1, 5), x=st.integers(0, 9)
)
def test_an_offset_moves_windows_that_fit(size: int, kernel: int, stride: int, x: int) -> None:
    sampler = SlidingWindow(kernel, stride, offset=(x, 0))
    expected = [i for i in range(x, size, stride) if i + kernel <= size]
    if not expected:
        with pytest.raises(ConfigError, match=r"a\.svs, level 0: no window of .* offset"):
            sampler.plan(slide(Size(size, size)))
        return
    plan = sampler.plan(slide(Size(size, size)))
    assert [plan.grid.box(0, i).x for i in range(plan.grid.columns)] == expected


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_white_is_white_in_every_dtype(dtype: str, white: int) -> None:
    of = slide(Size(4, 4), dtype)
    plan = SlidingWindow(8, padding="same").plan(of)
    region = next(plan.regions())
    (windows,) = windows_of(plan, BigChunk(region, np.zeros((4, 4, 3), dtype)))
    assert windows.pixels.dtype == dtype
    assert (windows.pixels[0, 4:] == white).all()
    assert (windows.pixels[0, :4, :4] == 0).all()


@pytest.mark.parametrize("pad", ["white", "reflect"])
@pytest.mark.parametrize("mpp", [None, 0.6])
async def test_batches_through_the_reader(pad: Pad, mpp: float | None) -> None:
    """Decoded tile by tile, with memory for little more than a region, resampled or not."""
    array = np.random.default_rng(1).integers(0, 256, (150, 131, 3), np.uint8)
    source = ScriptedSource({"slide": (array,)}, 16, jitter=3)
    sampler = SlidingWindow(
        20, 9, mpp=mpp, assume_mpp=0.25, padding="same", pad=pad, offset=(4, 13)
    )
    limits = Limits(workers=1, worker_kind="inline", memory="16MiB")
    ref = SlideRef("slide", "slide.tif")
    async with open_workers(limits) as workers, source.open(ref, workers) as opened:
        plan = sampler.plan(opened.slide)
        plan = GridPlan(plan.slide, plan.level, plan.grid, 2, plan.config)
        whole = array
        if plan.level.source is not None:
            whole = np.zeros((plan.level.size.height, plan.level.size.width, 3), np.uint8)
            resample(array, whole, (0, 0), *axes(plan.level), Box(0, 0, *plan.level.size))
        expected = padded(whole, pad)
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
                    at = place.box.shifted(BORDER, BORDER)
                    cut = expected[at.y : at.bottom, at.x : at.right]
                    np.testing.assert_array_equal(pixels, cut)
                    done += 1
                batch.release()
        assert done == plan.count


def test_a_heatmap_lies_where_its_windows_lie() -> None:
    """The centre of cell (i, j) is that of window (i, j), in micrometres."""
    of = slide(Size(100, 90), mpp=0.25)
    plan = SlidingWindow((20, 16), (8, 6), mpp=0.5, padding="same", offset=(3, 5)).plan(of)
    transform = Raster(plan.grid).transform(plan.level, of.pyramid.mpp)
    for row, column in ((0, 0), (3, 2)):
        box = plan.grid.box(row, column)
        # Pixel 0 of level 0 has its centre at 0; the windows' pixels are 2 of its own wide.
        centre = ((box.y + 8) * 2 - 0.5) * 0.25, ((box.x + 10) * 2 - 0.5) * 0.25
        found = tuple(
            s * i + t
            for s, i, t in zip(transform.scale, (row, column), transform.translation, strict=True)
        )
        assert found == pytest.approx(centre)
    assert plan.grid.box(0, 0) == Box(-5, -1, 20, 16)


def test_the_plan_says_how_it_is_padded() -> None:
    of = slide(Size(100, 100))
    assert SlidingWindow(10, padding="same", offset=(1, 2)).plan(of).config == {
        "type": "sliding-window",
        "kernel_size": [10, 10],
        "stride": [10, 10],
        "level": 0,
        "padding": "same",
        "pad": "white",
        "offset": [1, 2],
    }


def test_the_plan_says_what_was_resampled() -> None:
    plan = SlidingWindow(10, mpp=0.5, assume_mpp=0.25).plan(slide(Size(100, 100)))
    assert plan.config == {
        "type": "sliding-window",
        "kernel_size": [10, 10],
        "stride": [10, 10],
        "level": 0,
        "mpp": 0.5,
        "tolerance": 0.02,
        "factor": [2.0, 2.0],
        "assume_mpp": 0.25,
    }
    assert plan.slide.pyramid.mpp == Mpp(0.25, 0.25)


def test_regions_of_a_resampled_level_are_as_large_as_others_in_the_source() -> None:
    """Not in the raster: a factor of 16 would make them 256 times as large."""
    of = slide(Size(100_000, 60_000), mpp=0.25)
    plain = [r.box for r in SlidingWindow(512).plan(of).regions()]
    coarse = [r.box for r in SlidingWindow(32, mpp=4).plan(of).regions()]
    pixels = max(box.width * box.height for box in plain)
    assert max(box.width * box.height for box in coarse) * 256 <= 1.5 * pixels


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"padding": "full"}, "padding must be valid, same or shift, not 'full'"),
        ({"pad": "black"}, "pad must be white or reflect, not 'black'"),
        ({"offset": (-1, 0)}, "outside the level; with padding same"),
        ({"offset": (1.5, 0)}, "is not a size"),
        ({"level": 1, "mpp": 0.5}, "exclude each other"),
        ({"power": 20, "mpp": 0.5}, "exclude each other"),
        ({"mpp": 0}, "mpp must be a positive number"),
        ({"power": -20}, "power must be a positive number"),
        ({"mpp": 0.5, "tolerance": 0.5}, "tolerance of a resolution must be from 0 to below 0.5"),
        ({"assume_mpp": 0}, "assume_mpp must be positive"),
        ({"level": "fine"}, "must be an index, Microns"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SlidingWindow(**wrong)
