"""ZarrSource: OME-Zarr images in a local folder, read by zarr's asynchronous interface.

Metadata is read and checked in a thread (`zarr_header`), then zarr gets one array per level
(`zarr_levels`) over a store and codecs that do not trust the chunks (`zarr_chunks`). zarr
fetches and decodes in threads of its own; its synchronous interface, which runs a second
event loop, is never used.

A chunk that was never written is background and has the array's fill value: by zarr's rules
that is no damage. A chunk that is there and cannot be decoded is tried once more and is then
damage, its pixels 0.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import numpy as np

from ..blocks import ArrayRef
from ..chunks import Damage, Pixels
from ..errors import CannotOpen, CannotRead
from ..geometry import Box
from ..slides import Pyramid, PyramidLevel, Slide, SlideRef, snapped_downsample
from ..workers import Workers
from .base import ScrollReader, scroll_reader
from .zarr_header import GROUP_DOCUMENTS, ImageHeader, read_header

if TYPE_CHECKING:
    from .zarr_levels import ZarrLevel

__all__ = ["ZarrSource"]


@dataclass(frozen=True, slots=True)
class ZarrSource:
    """OME-Zarr 0.4 and 0.5 (zarr v2 and v3) in local folders.

    Pixels are uint8, uint16 or float32, with axes y and x, maybe c, and t and z of length 1,
    in any order. Of a folder made by bioformats2raw, the first image is read.
    """

    def accepts(self, ref: SlideRef) -> bool:
        """Whether it is a folder with the metadata of a zarr group."""
        try:
            return any((Path(ref.uri) / name).is_file() for name in GROUP_DOCUMENTS)
        except OSError:
            return False

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[ScrollReader]:
        """See `streamwsi.stages.Source`; the workers only lend their memory."""
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[ScrollReader]:
        slide, levels = await anyio.to_thread.run_sync(_inspect, ref)
        # Each box is decoded beside the arena, so that there must not be many at a time.
        slots = anyio.CapacityLimiter(workers.count)

        async def fill(level: PyramidLevel, box: Box, target: ArrayRef) -> tuple[Damage, ...]:
            async with slots:
                return await _fill(level, levels[level.index], box, workers.arena.resolve(target))

        async with scroll_reader(slide, fill, workers) as reader:
            yield reader


def _inspect(ref: SlideRef) -> tuple[Slide, Sequence[ZarrLevel]]:
    """The slide and its arrays; runs in a thread, for importing zarr and reading block."""
    from .zarr_levels import digest, open_level

    header = read_header(ref.uri)
    levels = [open_level(ref.uri, level, header.axes) for level in header.levels]
    _check_alike(ref, levels)
    slide = _slide(ref, header, levels, digest(header.documents, levels))
    return slide, levels


def _check_alike(ref: SlideRef, levels: Sequence[ZarrLevel]) -> None:
    base = levels[0]
    for level in levels[1:]:
        if (level.header.dtype, level.channels) != (base.header.dtype, base.channels):
            raise CannotOpen(
                f"{ref.uri}: level {level.header.name!r} has {level.channels} channels of "
                f"{level.header.dtype}, but the finest has {base.channels} of {base.header.dtype}"
            )
        if level.size.width > base.size.width or level.size.height > base.size.height:
            raise CannotOpen(
                f"{ref.uri}: level {level.header.name!r} of {level.size} is larger than the first "
                f"one of {base.size}; the finest must come first"
            )


def _slide(ref: SlideRef, header: ImageHeader, levels: Sequence[ZarrLevel], identity: str) -> Slide:
    base = levels[0].size
    pyramid = [
        PyramidLevel(
            index,
            level.size,
            (
                snapped_downsample(base.width, level.size.width),
                snapped_downsample(base.height, level.size.height),
            ),
            level.tile,
        )
        for index, level in enumerate(levels)
    ]
    return Slide(
        ref,
        Pyramid(tuple(pyramid), header.mpp),
        levels[0].header.dtype,
        levels[0].channels,
        vendor="ome",
        # How many bytes all chunks take is not known without looking at each of them.
        nbytes=0,
        compression=levels[0].compression,
        identity=identity,
        properties={
            "axes": "".join(header.axes),
            "name": header.name,
            "ome_zarr": header.version,
            "zarr_format": levels[0].header.document["zarr_format"],
        },
    )


async def _fill(
    level: PyramidLevel, source: ZarrLevel, box: Box, out: Pixels
) -> tuple[Damage, ...]:
    """Read a box of whole chunks at once, or chunk by chunk where that fails."""
    try:
        await _copy(source, box, out)
    except CannotRead:
        raise
    except Exception:
        # zarr does not say which chunk it was; this is also the second try of that one.
        parts = [await _part(level, source, box, part, out) for part in _chunks(level, box)]
        return tuple(damage for damage in parts if damage is not None)
    return ()


async def _part(
    level: PyramidLevel, source: ZarrLevel, box: Box, part: Box, out: Pixels
) -> Damage | None:
    y, x = part.y - box.y, part.x - box.x
    out = out[y : y + part.height, x : x + part.width]
    try:
        await _copy(source, part, out)
    except CannotRead:
        raise
    except Exception as error:
        out[...] = 0
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        columns = -(-level.size.width // level.tile.width)
        tile = part.y // level.tile.height * columns + part.x // level.tile.width
        return Damage(level.index, tile, part, f"a chunk cannot be decoded: {reason}")
    return None


def _chunks(level: PyramidLevel, box: Box) -> Iterator[Box]:
    width, height = level.tile
    for y in range(box.y, box.bottom, height):
        for x in range(box.x, box.right, width):
            yield Box.between(x, y, min(x + width, box.right), min(y + height, box.bottom))


async def _copy(source: ZarrLevel, box: Box, out: Pixels) -> None:
    # zarr gets an array of its own, never the arena's: what it has in flight when one chunk
    # fails goes on writing.
    pixels = await source.pixels(box)
    await anyio.to_thread.run_sync(np.copyto, out, pixels)
