"""What becomes of pixels that could not be had: sources around another source.

By itself a damaged tile makes the windows that touch it NaN. `Filled` paints its pixels in one
colour instead, so that those windows are computed like all others; `Strict` ends the slide at
the first one. Both are part of an output's recipe: an output that was begun under one policy
is not completed under another. The damage is counted and reported whatever the policy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..chunks import BigChunk, Pixels, Region
from ..errors import CannotRead, ConfigError
from ..slides import Slide, SlideRef
from ..stages import ReadTally, SlideReader, Source
from ..workers import Workers, worker_modules

__all__ = ["Filled", "Strict"]


class _TreatedReader:
    """A reader whose chunks go through a function."""

    def __init__(self, reader: SlideReader, treat: Callable[[BigChunk], None]) -> None:
        self._reader = reader
        self._treat = treat

    @property
    def slide(self) -> Slide:
        return self._reader.slide

    @property
    def tally(self) -> ReadTally:
        return self._reader.tally

    def needs(self, region: Region) -> int:
        return self._reader.needs(region)

    async def bigchunks(
        self, regions: Iterator[Region], memory: int
    ) -> AsyncGenerator[BigChunk, None]:
        async with aclosing(self._reader.bigchunks(regions, memory)) as chunks:
            async for chunk in chunks:
                if chunk.damage:
                    self._treat(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class Filled:
    """Another source, with damaged pixels in one colour.

    Attributes:
        source: opens the slides.
        colour: a number per channel, in the pixels' own range (0 … 255 for uint8).

    Raises:
        ConfigError: the colour is empty, or holds what is no finite number; or, when a slide
            is opened, does not fit its pixels.
    """

    source: Source = field(metadata={"role": "source"})
    colour: tuple[float, ...] = (255, 255, 255)

    def __post_init__(self) -> None:
        if not self.colour or not np.isfinite(self.colour).all():
            raise ConfigError(f"{self.colour!r} is no colour; give a number per channel")

    @property
    def config(self) -> Mapping[str, Any]:
        """See `streamwsi.stages.Source`."""
        return {"invalid": [*self.colour]}

    @property
    def worker_modules(self) -> tuple[str, ...]:
        """See `streamwsi.workers.DecodesInWorkers`."""
        return worker_modules(self.source)

    def accepts(self, ref: SlideRef) -> bool:
        """See `streamwsi.stages.Source`."""
        return self.source.accepts(ref)

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        """See `streamwsi.stages.Source`.

        Raises:
            ConfigError: on entering, where the colour does not fit the slide's pixels.
        """
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[SlideReader]:
        async with self.source.open(ref, workers) as reader:
            colour = _as_pixel(self.colour, reader.slide)
            yield _TreatedReader(reader, lambda chunk: _fill(chunk, colour))


@dataclass(frozen=True, slots=True)
class Strict:
    """Another source; a slide ends where its first damaged pixels are needed.

    Attributes:
        source: opens the slides.
    """

    source: Source = field(metadata={"role": "source"})

    @property
    def config(self) -> Mapping[str, Any]:
        """See `streamwsi.stages.Source`."""
        return {"invalid": "fail"}

    @property
    def worker_modules(self) -> tuple[str, ...]:
        """See `streamwsi.workers.DecodesInWorkers`."""
        return worker_modules(self.source)

    def accepts(self, ref: SlideRef) -> bool:
        """See `streamwsi.stages.Source`."""
        return self.source.accepts(ref)

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        """See `streamwsi.stages.Source`; reading raises `CannotRead` at the first damage."""
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[SlideReader]:
        async with self.source.open(ref, workers) as reader:
            yield _TreatedReader(reader, lambda chunk: _refuse(ref, chunk))


def _as_pixel(colour: tuple[float, ...], slide: Slide) -> Pixels:
    if len(colour) != slide.channels:
        raise ConfigError(
            f"{slide.ref.uri}: the colour for damaged pixels has {len(colour)} value(s), but the "
            f"slide has {slide.channels} channel(s)"
        )
    dtype = np.dtype(slide.dtype)
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if not all(least <= value <= most and value == int(value) for value in colour):
            raise ConfigError(
                f"{slide.ref.uri}: the colour for damaged pixels must be whole numbers from "
                f"{least} to {most}, for the pixels are {dtype}"
            )
    return np.array(colour, dtype)


def _fill(chunk: BigChunk, colour: Pixels) -> None:
    # In place, for a copy would not be in the memory budget. Chunks that overlap share these
    # pixels, and all of them get the same colour, whenever that is.
    frame = chunk.region.box
    chunk.pixels.flags.writeable = True
    for damage in chunk.damage:
        box = damage.box.intersection(frame).shifted(-frame.x, -frame.y)
        chunk.pixels[box.y : box.bottom, box.x : box.right] = colour
    chunk.pixels.flags.writeable = False
    chunk.filled, chunk.damage = chunk.damage, ()


def _refuse(ref: SlideRef, chunk: BigChunk) -> None:
    first = chunk.damage[0]
    what = f"tile {first.tile}" if first.tile >= 0 else "a part"
    box = first.box
    raise CannotRead(
        f"{ref.uri}: {what} of level {first.level} cannot be had ({first.reason}; "
        f"{box.width}×{box.height} pixels at x {box.x}, y {box.y}); copy the slide again, or let "
        "damaged tiles become NaN or a colour"
    )
