"""Reading levels that are resampled: the windows of every reader against a whole raster."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from streamwsi.chunks import BigChunk, Region
from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.resampled_readers import resampled
from streamwsi.resampling import axes, resample
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow
from streamwsi.slides import PyramidLevel, SlideRef
from streamwsi.sources.memory import MemorySource
from streamwsi.sources.tiff import TiffSource
from streamwsi.stages import Source
from streamwsi.testing.faults import Fault, ScriptedSource
from streamwsi.testing.synthetic import write_slide
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]
Kind = Literal["processes", "threads", "inline"]
ARRAY = np.random.default_rng(2).integers(0, 256, (330, 470, 3), np.uint8)
REF = SlideRef("slide", "slide.tif")


class Windows:
    """All windows of a slide, put in their places of the raster."""

    def __init__(self, plan: GridPlan) -> None:
        size = plan.level.size
        self.plan = plan
        self.raster = np.zeros((size.height, size.width, 3), plan.slide.dtype)
        self.valid = np.ones(plan.count, np.bool_)
        self.regions: list[Region] = []


async def read(
    source: Source,
    sampler: SlidingWindow,
    ref: SlideRef = REF,
    kind: Kind = "inline",
    memory: int | None = None,
    rows: int | None = None,
) -> Windows:
    """The windows, in regions of some rows, within a memory (the least, where None)."""
    limits = Limits(workers=2, worker_kind=kind, memory="64MiB")
    async with open_workers(limits) as workers, source.open(ref, workers) as opened:
        plan = sampler.plan(opened.slide)
        if rows is not None:
            plan = GridPlan(plan.slide, plan.level, plan.grid, rows, plan.config)
        found = Windows(plan)
        with resampled(opened, plan.level, workers) as reader:
            least = max(map(reader.needs, plan.regions()))

            async def released() -> AsyncGenerator[BigChunk, None]:
                async with aclosing(reader.bigchunks(plan.regions(), memory or least)) as chunks:
                    async for chunk in chunks:
                        found.regions.append(chunk.region)
                        yield chunk
                        chunk.release()

            async for some in sampler.smallchunks(plan, released()):
                for i, pixels in enumerate(some.pixels):
                    box = plan.place(some.first + i).box
                    found.raster[box.y : box.bottom, box.x : box.right] = pixels
                    found.valid[some.first + i] = some.valid[i]
        assert reader.tally.amplification <= 1.0
    return found


def whole(array: Array, level: PyramidLevel) -> Array:
    """The level, resampled in one go."""
    out = np.zeros((level.size.height, level.size.width, 3), array.dtype)
    resample(array, out, (0, 0), *axes(level), Box(0, 0, *level.size))
    return out


def covered(raster: Array, plan: GridPlan) -> Array:
    """The raster where there are windows."""
    last = plan.grid.box(plan.grid.rows - 1, plan.grid.columns - 1)
    return raster[: last.bottom, : last.right]


@pytest.mark.parametrize("mpp", [0.5, 0.77, 1.9])
@pytest.mark.parametrize("rows", [1, 2, None])
@pytest.mark.parametrize("scroll", [True, False])
async def test_windows_are_those_of_the_whole_raster(
    mpp: float, rows: int | None, scroll: bool
) -> None:
    slides = {"slide": (ARRAY,)}
    source: Source = ScriptedSource(slides, 16, jitter=4) if scroll else MemorySource(slides)
    sampler = SlidingWindow(12, 7, mpp=mpp, assume_mpp=0.25)
    found = await read(source, sampler, rows=rows)
    expected = whole(ARRAY, found.plan.level)
    assert found.valid.all()
    np.testing.assert_array_equal(covered(found.raster, found.plan), covered(expected, found.plan))
    assert len(found.regions) > 1 or rows is None


@pytest.mark.parametrize("kind", ["processes", "threads"])
async def test_a_file_gives_the_same_in_workers(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, Size(1400, 900), levels=2, mpp=0.25)
    with tifffile.TiffFile(path) as tiff:
        base = tiff.pages[0].asarray()
    found = await read(
        TiffSource(), SlidingWindow(50, mpp=0.6), SlideRef("a", str(path)), kind, 32 << 20
    )
    expected = whole(base, found.plan.level)
    assert found.plan.level.factor == pytest.approx((2.4, 2.4))
    np.testing.assert_array_equal(covered(found.raster, found.plan), covered(expected, found.plan))


async def test_the_lower_level_is_read_where_it_is_fine_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_slide(path, Size(1400, 900), levels=2, mpp=0.25)
    sampler = SlidingWindow(50, power=5)
    found = await read(TiffSource(), sampler, SlideRef("a", str(path)), memory=32 << 20)
    assert {region.level for region in found.regions} == {1}
    assert found.plan.level.factor == (2.0, 2.0)
    assert found.plan.level.downsample == (8.0, 8.0)


@pytest.mark.parametrize("mpp", [0.5, 0.83])
async def test_a_fiducial_lies_where_its_placement_says(mpp: float) -> None:
    """A dark spot near the far corner of a long level, found by its centre of mass."""
    array = np.full((64, 100_000, 3), 255, np.uint8)
    array[20:24, 99_940:99_950] = 0
    source = MemorySource({"slide": (array,)}, mpp=0.25)
    found = await read(source, SlidingWindow(8, 8, mpp=mpp), rows=1)
    dark = 255.0 - covered(found.raster, found.plan)[..., 0]
    x = (dark.sum(axis=0) * (np.arange(dark.shape[1]) + 0.5)).sum() / dark.sum()
    y = (dark.sum(axis=1) * (np.arange(dark.shape[0]) + 0.5)).sum() / dark.sum()
    downsample = found.plan.level.downsample
    assert abs(x * downsample[0] - 99_945) < 0.5
    assert abs(y * downsample[1] - 22) < 0.5
    assert abs(x * mpp - 99_945 * 0.25) < 0.125


@pytest.mark.parametrize("mpp", [0.5, 0.77])
async def test_damage_reaches_every_window_that_depends_on_it(mpp: float) -> None:
    """And none that does not."""
    fault = Fault(Box(208, 112, 16, 16), "damage")
    source = ScriptedSource({"slide": (ARRAY,)}, 16, (fault,))
    sampler = SlidingWindow(5, mpp=mpp, assume_mpp=0.25)
    found = await read(source, sampler, rows=3)
    other = ARRAY.copy()
    box = fault.box
    other[box.y : box.bottom, box.x : box.right] ^= 255
    level = found.plan.level
    changed = (whole(ARRAY, level) != whole(other, level)).any(axis=2)
    places = [found.plan.place(i).box for i in range(found.plan.count)]
    touched = np.array([changed[b.y : b.bottom, b.x : b.right].any() for b in places])
    assert not (touched & found.valid).any()
    # Weights near zero change nothing, but count: a few windows more at the rim.
    assert touched.sum() <= (~found.valid).sum() <= touched.sum() + 30


async def test_pages_are_given_back_and_chunks_may_be_kept() -> None:
    """With memory for one region, the next one waits until the first is released."""
    source = ScriptedSource({"slide": (ARRAY,)}, 16)
    plan_of = SlidingWindow(12, mpp=0.5, assume_mpp=0.25)
    limits = Limits(workers=1, worker_kind="inline", memory="64MiB")
    async with open_workers(limits) as workers, source.open(REF, workers) as opened:
        plan = plan_of.plan(opened.slide)
        plan = GridPlan(plan.slide, plan.level, plan.grid, 2, plan.config)
        free = sum(block.nbytes for block in workers.arena._free)
        with resampled(opened, plan.level, workers) as reader:
            chunks = reader.bigchunks(plan.regions(), reader.needs(next(plan.regions())) * 40)
            kept = [await anext(chunks), await anext(chunks)]
            first = kept[0].pixels.copy()
            kept[1].release()
            await anext(chunks)
            np.testing.assert_array_equal(kept[0].pixels, first)
            assert not kept[0].pixels.flags.writeable
            await chunks.aclose()
        after = sum(block.nbytes for block in workers.arena._free)
        assert free - after <= reader.needs(next(plan.regions())) * 40


async def test_too_little_memory_is_an_error_before_anything_is_read() -> None:
    source = MemorySource({"slide": (ARRAY,)})
    with pytest.raises(ConfigError, match=r"resampling windows of this size needs .* MiB"):
        await read(source, SlidingWindow(12, mpp=0.5, assume_mpp=0.25), memory=1000)


async def test_other_pixels_than_bytes_and_words_are_refused() -> None:
    source = MemorySource({"slide": (ARRAY.astype(np.float32),)})
    with pytest.raises(ConfigError, match="pixels are float32, and only uint8 and uint16"):
        await read(source, SlidingWindow(12, mpp=0.5, assume_mpp=0.25))


async def test_levels_of_the_file_are_read_as_they_are() -> None:
    found = await read(MemorySource({"slide": (ARRAY,)}), SlidingWindow(12, 7))
    np.testing.assert_array_equal(covered(found.raster, found.plan), covered(ARRAY, found.plan))


async def test_regions_overlap_or_touch() -> None:
    """So that the rows between them are still in the reader's memory."""
    source = ScriptedSource({"slide": (ARRAY,)}, 16)
    found = await read(source, SlidingWindow(12, 5, mpp=0.6, assume_mpp=0.25), rows=2)
    for above, below in pairwise(found.regions):
        assert below.box.y <= above.box.bottom
