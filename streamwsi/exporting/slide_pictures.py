"""The slide that a heatmap was made from, as a small picture to lay it over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..limits import Limits
from ..slides import SlideRef
from .frames import Frame

if TYPE_CHECKING:
    from ..stages import Source
    from .heatmap import Heatmap

__all__ = ["find_slide", "slide_picture", "white_picture"]

Picture = npt.NDArray[np.uint8]

_MEMORY = "1GiB"
_MOST_READ = 4096  # pixels of the longer side of the level that is read, where there is such a one
_SMALL = 512  # of smaller slides, each pixel becomes a square of pixels


def find_slide(heatmap: Heatmap, slide: Path | None) -> Path | None:
    """Where the slide is.

    Args:
        heatmap: which records the slide's file name.
        slide: the slide, or a folder that holds it under that name; where None, the heatmap's own
            folder is such a folder.

    Returns:
        The path; None where `slide` is None and there is none beside the heatmap.
    """
    name = heatmap.record.slide
    if slide is None:
        beside = heatmap.path.parent / name
        return beside if name and beside.exists() else None
    return slide / name if name and (slide / name).exists() else slide


async def slide_picture(
    heatmap: Heatmap, slide: Path, source: Source, most: int
) -> tuple[Frame, Picture]:
    """The slide as RGB ``(height, width, 3)``, at most `most` pixels a side, and its scale.

    Raises:
        ConfigError: it is not the slide that the heatmap was made from.
        SlideError: it cannot be read, or has no level that is small enough to be shrunk.
    """
    from ..thumbnails import thumbnail_rgb
    from ..workers import open_workers

    async with (
        open_workers(Limits(workers=1, memory=_MEMORY)) as workers,
        source.open(SlideRef.of(slide), workers) as reader,
    ):
        size = reader.slide.level(0).size
        if tuple(size) != heatmap.record.size:
            width, height = heatmap.record.size
            raise ConfigError(
                f"{slide} has {size} pixels, but {heatmap.path} was made from a slide of "
                f"{width}×{height}; name that one with --slide, or leave it out with --no-slide"
            )
        level, picture = await thumbnail_rgb(reader, min(2 * most, _MOST_READ))
    read = picture.shape[:2]
    if max(read) > most:
        picture = _shrunk(picture, most / max(read))
    larger = max(1, min(_SMALL, most) // max(picture.shape[:2]))
    picture = picture.repeat(larger, axis=0).repeat(larger, axis=1)
    height, width = picture.shape[:2]
    x, y = level.downsample
    return Frame(width, height, (x * read[1] / width, y * read[0] / height)), picture


def white_picture(heatmap: Heatmap, most: int) -> tuple[Frame, Picture]:
    """As much white as the slide would take, with `most` pixels along its longer side."""
    width, height = heatmap.record.size
    scale = max(width, height) / most
    frame = Frame(max(1, round(width / scale)), max(1, round(height / scale)), (scale, scale))
    return frame, np.full((frame.height, frame.width, 3), 255, np.uint8)


def _shrunk(picture: Picture, factor: float) -> Picture:
    """A smaller picture, by a triangle filter as wide as two of its pixels."""
    from PIL import Image

    height, width = (max(1, round(n * factor)) for n in picture.shape[:2])
    smaller = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(smaller)
