"""MemorySource: slides that are arrays in memory, for tests, notebooks and benchmarks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import anyio

from ..chunks import BigChunk, Pixels, Region
from ..errors import CannotOpen
from ..geometry import Size
from ..slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef, snapped_downsample
from ..stages import ReadTally
from ..workers import Workers

__all__ = ["MemorySource"]


@dataclass(frozen=True, slots=True, eq=False)
class MemorySource:
    """Slides by id, each a sequence of arrays ``(height, width, channels)``, finest first.

    Big chunks are views of the arrays: nothing is copied or decoded.

    Attributes:
        slides: the pyramids.
        mpp: size of a level-0 pixel in micrometres, for all of them.
        tile: the tile size that is claimed, or ``(width, height)``.
    """

    slides: Mapping[str, tuple[Pixels, ...]]
    mpp: float | None = None
    tile: int | tuple[int, int] = 256

    def accepts(self, ref: SlideRef) -> bool:
        """Whether the array is here."""
        return ref.id in self.slides

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[_MemoryReader]:
        """A reader over views of the arrays."""
        return self._open(ref)

    @asynccontextmanager
    async def _open(self, ref: SlideRef) -> AsyncIterator[_MemoryReader]:
        if ref.id not in self.slides:
            raise CannotOpen(f"{ref.uri}: there is no array for the slide id {ref.id!r}")
        arrays = self.slides[ref.id]
        if not arrays:
            raise CannotOpen(f"{ref.uri}: the slide id {ref.id!r} has no level")
        for array in arrays:
            if array.ndim != 3:
                raise CannotOpen(f"{ref.uri}: shape {array.shape} is not (height, width, channels)")
        yield _MemoryReader(self._slide(ref, arrays), arrays)

    def _slide(self, ref: SlideRef, arrays: tuple[Pixels, ...]) -> Slide:
        base = arrays[0].shape
        levels = tuple(
            PyramidLevel(
                index,
                Size(array.shape[1], array.shape[0]),
                (
                    snapped_downsample(base[1], array.shape[1]),
                    snapped_downsample(base[0], array.shape[0]),
                ),
                Size.of(self.tile),
            )
            for index, array in enumerate(arrays)
        )
        mpp = Mpp(self.mpp, self.mpp) if self.mpp else None
        return Slide(
            ref,
            Pyramid(levels, mpp),
            arrays[0].dtype.name,
            base[2],
            vendor="memory",
            nbytes=sum(array.nbytes for array in arrays),
        )


class _MemoryReader:
    def __init__(self, slide: Slide, arrays: tuple[Pixels, ...]) -> None:
        self.slide = slide
        self.tally = ReadTally()
        self._arrays = arrays

    def needs(self, region: Region) -> int:
        """Nothing: big chunks are views."""
        return 0

    async def bigchunks(
        self, regions: Iterator[Region], memory: int
    ) -> AsyncGenerator[BigChunk, None]:
        """Views; `memory` is not needed, for nothing is allocated."""
        for region in regions:
            await anyio.lowlevel.checkpoint()
            box = region.box
            view = self._arrays[region.level][box.y : box.bottom, box.x : box.right]
            view.flags.writeable = False
            yield BigChunk(region, view)
