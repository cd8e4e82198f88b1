"""Batches without a slide: what the tests of processors share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamwsi.chunks import Batch, Placement, Places, Region
from streamwsi.geometry import Box, Grid, Run, Size
from streamwsi.limits import Limits
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.workers import Workers, open_workers

Array = npt.NDArray[Any]
MakeBatches = Callable[..., list[Batch]]
RunProcessor = Callable[..., Any]


@dataclass(frozen=True)
class RowPlan:
    """Windows side by side in one row."""

    count: int
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> PyramidLevel:
        return PyramidLevel(0, Size(self.count, 1), (1.0, 1.0), Size(1, 1))

    @property
    def slide(self) -> Slide:
        return Slide(SlideRef("row", "row"), Pyramid((self.level,)), "uint8", 3)

    @property
    def grid(self) -> Grid | None:
        return None

    def place(self, index: int) -> Placement:
        return Placement(self.slide.ref, 0, Box(index, 0, 1, 1), index)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        raise NotImplementedError

    def regions(self, start: int = 0) -> Iterator[Region]:
        raise NotImplementedError


def batches_of(windows: Array, size: int, damaged: tuple[int, ...] = ()) -> list[Batch]:
    """Batches whose parts are read-only strided views, cut once in the middle."""
    plan = RowPlan(len(windows))
    n, height, width, channels = windows.shape
    # The windows side by side in one wide image, as they are in the memory of a reader.
    wide = np.ascontiguousarray(windows.transpose(1, 0, 2, 3)).reshape(height, n * width, channels)
    wide.setflags(write=False)
    views = wide.reshape(height, n, width, channels).transpose(1, 0, 2, 3)
    result = []
    for start in range(0, n, size):
        stop = min(n, start + size)
        middle = (start + stop) // 2
        parts = (views[start:middle], views[middle:stop])
        valid = np.array([i not in damaged for i in range(start, stop)])
        result.append(Batch(Places(plan, start, stop), parts, valid))
    return result


async def iterated(batches: list[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch


@asynccontextmanager
async def inline_workers() -> AsyncIterator[Workers]:
    async with open_workers(Limits(worker_kind="inline", memory="1MiB")) as workers:
        yield workers


@pytest.fixture
def make_batches() -> MakeBatches:
    return batches_of


@pytest.fixture
def run_processor() -> RunProcessor:
    """Opens a processor, runs it over windows and returns all values, and the config."""

    async def run(
        processor: Any, windows: Array, damaged: tuple[int, ...] = ()
    ) -> tuple[Array, Mapping[str, Any]]:
        values = []
        async with inline_workers() as workers, processor.open(workers) as running:
            batches = batches_of(windows, running.batch_size, damaged)
            async for pieces in running.pieces(iterated(batches)):
                values.append(pieces.values)
        return np.concatenate(values), running.config

    return run


@pytest.fixture
def windows() -> Array:
    """Ten random windows of 16×24 pixels."""
    return np.random.default_rng(7).integers(0, 256, (10, 16, 24, 3), np.uint8)
