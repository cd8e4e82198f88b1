"""TissueMask: the tissue that `streamwsi.tissue` finds on a picture of the slide.

The picture is made from the coarsest level that is large enough, a band at a time, each pixel
the mean of a square of the level's. Where the slide has no coarse level this reads all of the
finest one, once more than the run itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..chunks import BigChunk, Region
from ..errors import SlideError
from ..geometry import Box
from ..slides import PyramidLevel, Slide
from ..stages import SlideReader
from ..tissue import METHOD, tissue_mask
from .masks import ArrayMask

__all__ = ["TissueMask", "find_tissue", "picture_of"]

_LEAST, _MOST = 1024, 2048
"""Pixels of the picture's longer side: enough to see small pieces, few enough to be quick."""

_DARK = 40
"""Where half of a picture is darker than this, it is one of fluorescence."""


@dataclass(frozen=True, slots=True)
class TissueMask:
    """The stained tissue of each slide; needs ``streamwsi[tissue]``."""

    async def prepare(self, reader: SlideReader, memory: int) -> ArrayMask:
        """See `MaskSource`."""
        _, found, extent = await find_tissue(reader, memory)
        origin = {"kind": "tissue", "method": METHOD}
        return ArrayMask(found, "tissue found on the slide", origin, extent)


async def find_tissue(
    reader: SlideReader, memory: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], tuple[float, float]]:
    """A picture of a slide, where it shows tissue, and what it covers (see `picture_of`).

    Raises:
        ConfigError: scikit-image is not installed; or as `picture_of`.
        SlideError: the slide is no bright-field slide; or as `picture_of`.
    """
    picture, extent = await picture_of(reader, memory)
    if np.median(picture.max(axis=-1)) < _DARK:
        raise SlideError(
            f"{reader.slide.ref.uri}: most of the slide is black, and tissue can only be found on "
            "bright glass; give a mask of your own"
        )
    return picture, await anyio.to_thread.run_sync(tissue_mask, picture), extent


async def picture_of(
    reader: SlideReader, memory: int
) -> tuple[npt.NDArray[np.uint8], tuple[float, float]]:
    """A slide from afar, and the level-0 pixels that the picture covers from the corner on.

    Pixels that cannot be had are white. A single channel becomes grey, of more than three the
    first three are taken, and samples of more than 8 bits are scaled by the largest.

    Args:
        reader: the slide.
        memory: bytes of pixels that it may take.

    Returns:
        ``(height, width, 3)`` uint8, at most 2048 pixels a side; and ``(width, height)``.

    Raises:
        ConfigError: the memory does not hold a band of the level.
        CannotRead: the slide cannot be read at all.
    """
    slide = reader.slide
    large = [level for level in slide.pyramid.levels if max(level.size) >= _LEAST]
    level = large[-1] if large else slide.pyramid.levels[0]
    factor = -(-max(level.size) // _MOST)
    bands = []
    async with aclosing(reader.bigchunks(_bands(level, factor), memory)) as chunks:
        async for chunk in chunks:
            bands.append(await anyio.to_thread.run_sync(_reduced, chunk, factor))
            chunk.release()
    picture = np.concatenate(bands)
    rows, columns = picture.shape[:2]
    extent = columns * factor * level.downsample[0], rows * factor * level.downsample[1]
    return await anyio.to_thread.run_sync(_rgb, slide, picture), extent


def _bands(level: PyramidLevel, factor: int) -> Iterator[Region]:
    """The level from the top down, in bands that are whole pixels of the picture."""
    height = max(1, level.tile.height // factor) * factor
    for index, y in enumerate(range(0, level.size.height, height)):
        box = Box.between(0, y, level.size.width, min(y + height, level.size.height))
        yield Region(index, level.index, box, index, 1)


def _reduced(chunk: BigChunk, factor: int) -> npt.NDArray[np.float32]:
    """Means of squares; those at the right and the bottom edge may be cut."""
    pixels, frame = chunk.pixels[:, :, :3].astype(np.float32), chunk.region.box
    most = np.iinfo(chunk.pixels.dtype).max if chunk.pixels.dtype.kind in "iu" else 1
    for damage in chunk.damage:
        box = damage.box.intersection(frame).shifted(-frame.x, -frame.y)
        pixels[box.y : box.bottom, box.x : box.right] = most
    if factor == 1:
        return pixels
    rows, columns = (np.arange(0, n, factor) for n in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels, columns, axis=1), rows, axis=0)
    heights, widths = (
        np.diff(starts, append=n)
        for starts, n in zip((rows, columns), pixels.shape[:2], strict=True)
    )
    means: npt.NDArray[np.float32] = sums / (heights[:, None] * widths)[:, :, None]
    return means.astype(np.float32)


def _rgb(slide: Slide, picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    if picture.shape[2] < 3:
        picture = np.repeat(picture[:, :, :1], 3, axis=2)
    if slide.dtype != "uint8":
        picture = picture * (255 / max(float(picture.max()), 1e-9))
    return np.rint(picture).astype(np.uint8)
