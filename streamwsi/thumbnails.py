"""A whole level as one array, for pictures: small levels only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import numpy.typing as npt

from .chunks import BigChunk, Region
from .errors import CannotRead
from .geometry import Box
from .slides import PyramidLevel, Slide
from .stages import SlideReader

__all__ = ["thumbnail_rgb"]

_MOST_BYTES = 256 * 2**20


async def thumbnail_rgb(
    reader: SlideReader, most: int = 2048
) -> tuple[PyramidLevel, npt.NDArray[np.uint8]]:
    """The finest level of at most `most` pixels a side (else the coarsest), and its pixels.

    The pixels are RGB, ``(height, width, 3)`` uint8:
    16-bit samples are scaled by their maximum; a single channel becomes grey; of more than
    three channels the first three are shown.

    Raises:
        CannotRead: even the coarsest level is too large for a picture.
    """
    slide = reader.slide
    small = [level for level in slide.pyramid.levels if max(level.size) <= most]
    level = (small or slide.pyramid.levels[-1:])[0]
    nbytes = level.size.width * level.size.height * slide.channels * np.dtype(slide.dtype).itemsize
    if nbytes > _MOST_BYTES:
        raise CannotRead(
            f"{slide.ref.uri}: its coarsest level, {level.size}, is too large for a picture"
        )
    region = Region(0, level.index, Box(0, 0, *level.size), 0, 0)
    async with aclosing(reader.bigchunks(iter([region]), 2 * nbytes + 2**24)) as chunks:
        return level, _rgb(slide, await _only(chunks))


async def _only(chunks: AsyncIterator[BigChunk]) -> npt.NDArray[np.generic]:
    chunk = await anext(chunks)
    pixels = chunk.pixels.copy()
    chunk.release()
    return pixels


def _rgb(slide: Slide, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if pixels.shape[2] < 3:
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    pixels = pixels[:, :, :3]
    if slide.dtype == "uint8":
        return pixels.astype(np.uint8)
    scaled = pixels.astype(np.float32)
    scaled *= 255 / max(float(scaled.max()), 1e-9)
    return scaled.astype(np.uint8)
