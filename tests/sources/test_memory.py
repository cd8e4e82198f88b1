"""MemorySource: views of arrays as a slide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamwsi import Pipeline, run
from streamwsi.chunks import BigChunk, Region
from streamwsi.errors import CannotOpen
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import MemorySink
from streamwsi.slides import Mpp, Slide, SlideRef
from streamwsi.sources.memory import MemorySource
from streamwsi.workers import open_workers

BASE = np.random.default_rng(0).integers(0, 2**16, (101, 75, 4), np.uint16)
LEVELS = (BASE, BASE[::2, ::2], BASE[: 101 // 8, : 75 // 8])
REF = SlideRef("a", "memory:a")
LIMITS = Limits(worker_kind="inline", memory=4096)


async def read(source: MemorySource, level: int = 0) -> tuple[Slide, list[BigChunk]]:
    async with open_workers(LIMITS) as workers, source.open(REF, workers) as reader:
        plan = SlidingWindow(5, 3, level).plan(reader.slide)
        chunks = [chunk async for chunk in reader.bigchunks(plan.regions(), 1)]
        assert reader.needs(chunks[0].region) == 0
        return reader.slide, chunks


async def test_a_slide_says_what_its_arrays_are() -> None:
    slide, _ = await read(MemorySource({"a": LEVELS}, mpp=0.5, tile=(16, 32)))
    assert (slide.ref, slide.dtype, slide.channels) == (REF, "uint16", 4)
    assert [level.size for level in slide.pyramid.levels] == [
        Size(75, 101),
        Size(38, 51),
        Size(9, 12),
    ]
    assert [level.downsample for level in slide.pyramid.levels] == [(1, 1), (2, 2), (8, 8)]
    assert {level.tile for level in slide.pyramid.levels} == {Size(16, 32)}
    assert slide.pyramid.mpp == Mpp(0.5, 0.5)
    assert slide.nbytes == sum(array.nbytes for array in LEVELS)


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_chunks_are_read_only_views(level: int) -> None:
    _, chunks = await read(MemorySource({"a": LEVELS}), level)
    for chunk in chunks:
        box = chunk.region.box
        np.testing.assert_array_equal(
            chunk.pixels, LEVELS[level][box.y : box.bottom, box.x : box.right]
        )
        assert np.shares_memory(chunk.pixels, LEVELS[level])
        assert not chunk.pixels.flags.writeable
    assert BASE.flags.writeable


def test_it_accepts_what_it_has() -> None:
    source = MemorySource({"a": LEVELS})
    assert source.accepts(REF)
    assert not source.accepts(SlideRef("b", "a"))


@pytest.mark.parametrize(
    ("slides", "says"),
    [
        ({}, "there is no array for the slide id 'a'"),
        ({"a": (np.zeros((3, 4)),)}, r"shape \(3, 4\) is not \(height, width, channels\)"),
        ({"a": ()}, "has no level"),
    ],
)
async def test_what_cannot_be_a_slide_is_refused(slides: Any, says: str) -> None:
    with pytest.raises(CannotOpen, match=says):
        await read(MemorySource(slides))


async def test_a_slide_without_mpp() -> None:
    slide, _ = await read(MemorySource({"a": (BASE[:, :, :1],)}))
    assert slide.pyramid.mpp is None
    assert slide.channels == 1


async def test_regions_are_read_in_the_order_asked() -> None:
    regions = [Region(i, 0, Box(x, y, 7, 5), i, 1) for i, (x, y) in enumerate([(9, 9), (0, 50)])]
    source = MemorySource({"a": LEVELS})
    async with open_workers(LIMITS) as workers, source.open(REF, workers) as reader:
        chunks = [chunk async for chunk in reader.bigchunks(iter(regions), 1)]
    assert [chunk.region for chunk in chunks] == regions


async def test_arrays_that_run_backwards_reach_a_model() -> None:
    """As the channels do of pictures that OpenCV has read."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    found = []
    for array in (pixels[..., ::-1], np.ascontiguousarray(pixels[..., ::-1])):
        sink = MemorySink()
        report = await run(
            Pipeline(
                source=MemorySource({"a": (array,)}),
                sampler=SlidingWindow(16, 8),
                processor=TorchModule("hematoxylin", device="cpu"),
                sink=sink,
            ),
            ["a"],
            limits=Limits(worker_kind="inline"),
        )
        report.raise_for_failures()
        found.append(np.asarray(sink.values["a"]))
    np.testing.assert_array_equal(found[0], found[1])
