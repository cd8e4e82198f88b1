"""A reader for a level that is resampled: it stands between the slide's reader and the lane.

A region of the resampled level becomes the region of its source that the filter needs; the
slide's reader reads that like any other (each tile once, ahead of time), and workers resample
it, strip by strip, from the reader's memory into a block of its own, which is then handed out.
What is damaged in the source is damaged in every output pixel that depends on it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from .blocks import ArrayRef, Block
from .chunks import BigChunk, Damage, Pixels, Region
from .errors import ConfigError
from .geometry import Box
from .resampling import DTYPES, axes, resample
from .slides import PyramidLevel, Slide
from .stages import ReadTally, SlideReader
from .workers import Workers

__all__ = ["resampled"]

_JOB_PIXELS = 2**20
"""Source pixels of one job, at least: some 10 ms."""

_STRIP = 32
_REGIONS = 2
"""Regions that there is room for: one that the lane works on, and the one that is made."""


@contextmanager
def resampled(reader: SlideReader, level: PyramidLevel, workers: Workers) -> Iterator[SlideReader]:
    """A reader for regions of `level`: the given one, where it is a level of the file.

    Raises:
        ConfigError: the slide's pixels cannot be resampled.
    """
    if level.source is None:
        yield reader
        return
    if reader.slide.dtype not in DTYPES:
        raise ConfigError(
            f"{reader.slide.ref.uri}: pixels are {reader.slide.dtype}, and only "
            f"{' and '.join(DTYPES)} can be resampled; ask for a level of the slide"
        )
    with ExitStack() as blocks:
        yield _ResampledReader(reader, level, workers, blocks)


@dataclass(slots=True, eq=False)
class _Room:
    """Bytes for regions that are handed out."""

    nbytes: int
    used: int = 0
    freed: anyio.Event = field(default_factory=anyio.Event)

    async def take(self, nbytes: int) -> None:
        while self.used and self.used + nbytes > self.nbytes:
            await self.freed.wait()
        self.used += nbytes

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes
        self.freed.set()
        self.freed = anyio.Event()


class _ResampledReader:
    def __init__(
        self, reader: SlideReader, level: PyramidLevel, workers: Workers, blocks: ExitStack
    ) -> None:
        self._reader = reader
        self._workers = workers
        self._blocks = blocks
        self._x, self._y = axes(level)
        # Bytes of two regions for each byte of a region's source, which is at least this much
        # larger.
        self._share = _REGIONS / (self._x.factor * self._y.factor)

    @property
    def slide(self) -> Slide:
        return self._reader.slide

    @property
    def tally(self) -> ReadTally:
        return self._reader.tally

    def needs(self, region: Region) -> int:
        """Its source in the slide's reader, and what is made from it twice."""
        source = self._source_needs(region)
        return source + math.ceil(self._share * source)

    def _source_needs(self, region: Region) -> int:
        source = self._largest_source(region)
        return max(self._reader.needs(source), self._nbytes(source))

    async def bigchunks(
        self, regions: Iterator[Region], memory: int
    ) -> AsyncGenerator[BigChunk, None]:
        """See `streamwsi.stages.SlideReader`."""
        first = next(regions, None)
        if first is None:
            return
        if self.needs(first) > memory:
            raise ConfigError(
                f"{self.slide.ref.uri}: resampling windows of this size needs "
                f"{self.needs(first) / 2**20:.1f} MiB for pixels, but the memory limit leaves "
                f"{memory / 2**20:.1f} MiB; raise it or work on fewer slides at once"
            )
        # In the proportion of `needs`: so both parts hold each region that `memory` holds. The
        # quotient may be rounded to a byte less than the first region, which has just fitted.
        source = max(math.floor(memory / (1 + self._share)), self._source_needs(first))
        room = _Room(memory - source)
        asked: deque[Region] = deque()
        sources = self._sources(chain((first,), regions), asked)
        async with aclosing(self._reader.bigchunks(sources, source)) as chunks:
            async for chunk in chunks:
                try:
                    made = await self._made(asked.popleft(), chunk, room)
                finally:
                    chunk.release()
                yield made

    def _sources(self, regions: Iterator[Region], asked: deque[Region]) -> Iterator[Region]:
        """The regions to read, each noted as it is asked for."""
        for region in regions:
            asked.append(region)
            wanted = region.wanted and tuple(map(self._source, region.wanted))
            yield replace(region, box=self._source(region.box), wanted=wanted)

    def _source(self, box: Box) -> Box:
        """The pixels of the source that a box depends on."""
        left, right = self._x.needs(box.x, box.right)
        top, bottom = self._y.needs(box.y, box.bottom)
        return Box.between(left, top, right, bottom)

    def _largest_source(self, region: Region) -> Region:
        """The source of a region of this size, as large as it is at any place."""
        width = self._x.most_needed(region.box.width)
        height = self._y.most_needed(region.box.height)
        return replace(region, box=Box(0, 0, width, height))

    def _nbytes(self, region: Region) -> int:
        pixel = self.slide.channels * np.dtype(self.slide.dtype).itemsize
        return region.box.width * region.box.height * pixel

    async def _made(self, region: Region, chunk: BigChunk, room: _Room) -> BigChunk:
        """The region's pixels, in a block that its release gives back."""
        nbytes = self._nbytes(region)
        await room.take(nbytes)
        lease = self._blocks.enter_context(ExitStack())
        block = lease.enter_context(self._workers.arena.reserved(nbytes))
        async with anyio.create_task_group() as tasks:
            for box, out in self._strips(region.box, chunk, block):
                tasks.start_soon(self._resample, chunk, box, out)
        shape = region.box.height, region.box.width, self.slide.channels
        pixels = self._workers.arena.resolve(block.array(shape, self.slide.dtype))
        pixels.flags.writeable = False

        def release() -> None:
            lease.close()
            room.give_back(nbytes)

        damage, filled = (
            tuple(self._resampled(some, region.box)) for some in (chunk.damage, chunk.filled)
        )
        return BigChunk(region, pixels, damage, release, filled)

    def _strips(self, box: Box, chunk: BigChunk, block: Block) -> Iterator[tuple[Box, ArrayRef]]:
        """A box in strips, a job each, and where each goes in the block."""
        height, width, channels = chunk.pixels.shape
        jobs = max(1, min(2 * self._workers.count, height * width // _JOB_PIXELS))
        rows = -(-box.height // (jobs * _STRIP)) * _STRIP
        pitch = box.width * channels * chunk.pixels.itemsize
        for top in range(box.y, box.bottom, rows):
            strip = Box.between(box.x, top, box.right, min(top + rows, box.bottom))
            shape = strip.height, strip.width, channels
            yield strip, block.array(shape, self.slide.dtype, (top - box.y) * pitch)

    async def _resample(self, chunk: BigChunk, box: Box, out: ArrayRef) -> None:
        arena, corner = self._workers.arena, (chunk.region.box.x, chunk.region.box.y)
        pixels: Any = arena.reference(chunk.pixels)
        rest = corner, self._x, self._y, box
        if pixels is not None:
            # The worker receives the arrays themselves: Workers.call resolves them.
            await self._workers.call(resample, pixels, out, *rest)  # type: ignore[arg-type]
        else:
            # Pixels of the parent's own (arrays in memory) cannot be seen from a worker.
            target: Pixels = arena.resolve(out)
            await anyio.to_thread.run_sync(resample, chunk.pixels, target, *rest)

    def _resampled(self, damages: tuple[Damage, ...], frame: Box) -> Iterator[Damage]:
        """Damage of a source chunk, in output pixels."""
        for damage in damages:
            left, right = self._x.depends(damage.box.x, damage.box.right)
            top, bottom = self._y.depends(damage.box.y, damage.box.bottom)
            box = Box.between(left, top, right, bottom).intersection(frame)
            if not box.empty:
                yield replace(damage, box=box)
