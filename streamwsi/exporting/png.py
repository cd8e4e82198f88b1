"""A heatmap as a picture: over its slide's thumbnail, with title, value axis and scale bar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import numpy as np
import numpy.typing as npt

from ..errors import CannotOpen, ConfigError
from .documents import Named
from .figures import Scale, blended, colour_map, draw, require_matplotlib, stripes
from .frames import Frame, damage, values
from .heatmap import Heatmap, open_heatmap
from .label_colours import label_colour
from .replacing import replacing
from .slide_pictures import find_slide, slide_picture, white_picture

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from ..stages import Source

__all__ = ["export_png"]

Picture = npt.NDArray[np.uint8]

_SIZES = (64, 4096)


def export_png(
    heatmap: str | Path,
    out: str | Path,
    *,
    slide: str | Path | None = None,
    plain: bool = False,
    channel: int | str | None = None,
    label: str | None = None,
    colormap: str = "viridis",
    alpha: float = 0.5,
    value_range: tuple[float, float] | None = None,
    max_size: int = 2048,
    source: Source | None = None,
    overwrite: bool = False,
) -> Path | None:
    """Write a picture; it blocks: in asynchronous code, call it in a thread.

    Where there is no value the slide shows through; windows that were damaged are striped. Memory
    depends on `max_size`, not on the heatmap.

    Args:
        heatmap: the folder of a heatmap.
        out: the file.
        slide: the slide, or a folder that holds it under the name it had; by default it is looked
            for beside the heatmap. Where it is not found, the map lies on white.
        plain: draw the map on white in any case.
        channel: a channel's name or number; the only one where None.
        label: a label image of the group, instead of the heatmap itself.
        colormap: one of matplotlib's.
        alpha: opacity of the map on the slide, 0 … 1; on white it is opaque.
        value_range: the values of the first and the last colour; by default those of the lowest
            and the highest pixel.
        max_size: pixels of the picture's longer side, at most, without its legend.
        source: opens the slide; by default TIFF and OME-Zarr.
        overwrite: replace a file that is there.

    Returns:
        The slide that is shown; None where the map lies on white.

    Raises:
        ConfigError: matplotlib is missing, there is no such channel or colour map, an argument is
            out of its range, the slide is another one, or the file is there already.
        CannotOpen: there is no heatmap, or it holds no values yet, or the slide cannot be opened.
        CannotRead: a chunk of it, or the slide, cannot be read.
        CannotWrite: the file cannot be written.
    """
    require_matplotlib()
    colours = colour_map(colormap)
    _check(alpha, value_range, max_size)
    opened = open_heatmap(heatmap, label)
    number = opened.channel(channel)
    with replacing(Path(out), overwrite, opened.record) as made:
        found = None if plain else find_slide(opened, None if slide is None else Path(slide))
        if found is None:
            frame, picture = white_picture(opened, max_size)
        else:
            frame, picture = _thumbnail(opened, found, source or _source(), max_size)
        plane = values(opened, number, frame)
        damaged = damage(opened, frame) & np.isnan(plane)
        opacity = 1.0 if found is None else alpha
        scale: Scale | list[Named]
        if opened.levels[0].labelled:
            coloured, scale = _labels(opened, plane)
        else:
            scale = _scale(plane, value_range, colours)
            coloured = _colours(plane, scale)
        picture = blended(picture, coloured, ~np.isnan(plane), opacity)
        picture[damaged] = stripes(frame.height, frame.width)[damaged]
        pixel, unit = _pixel(opened, frame)
        name = opened.channels[number].name
        draw(
            made,
            picture,
            title=opened.name,
            axis=name if not name.isdecimal() else f"channel {name}",
            scale=scale,
            pixel=pixel,
            unit=unit,
            damaged=bool(damaged.any()),
        )
    return found


def _check(alpha: float, value_range: tuple[float, float] | None, max_size: int) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be from 0 to 1, not {alpha}")
    if not _SIZES[0] <= max_size <= _SIZES[1]:
        raise ConfigError(f"the size must be from {_SIZES[0]} to {_SIZES[1]}, not {max_size}")
    if value_range is not None:
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"the range {low:g} to {high:g} must be finite, and ascend")


def _thumbnail(heatmap: Heatmap, slide: Path, source: Source, most: int) -> tuple[Frame, Picture]:
    try:
        return anyio.run(slide_picture, heatmap, slide, source, most)
    except CannotOpen as error:
        if not slide.is_dir():
            raise
        raise CannotOpen(
            f"{slide} holds no {heatmap.record.slide}, the slide of {heatmap.path}, and is no "
            "slide itself; name the slide, or leave it out with --no-slide"
        ) from error


def _source() -> Source:
    from ..sources import FirstOf, TiffSource, ZarrSource

    return FirstOf((TiffSource(), ZarrSource()))


def _scale(
    plane: npt.NDArray[np.float64], value_range: tuple[float, float] | None, colours: Colormap
) -> Scale:
    """The range of values, or the one that is asked for."""
    finite = plane[np.isfinite(plane)]
    lowest, highest = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if value_range is not None:
        low, high = value_range
        return Scale(colours, low, high, bool(lowest < low), bool(highest > high))
    if lowest == highest:  # all one value: in the middle of the axis
        margin = abs(lowest) / 10 or 0.5
        lowest, highest = lowest - margin, highest + margin
    return Scale(colours, float(lowest), float(highest), False, False)


def _colours(plane: npt.NDArray[np.float64], scale: Scale) -> Picture:
    shown = np.nan_to_num(plane, nan=scale.low).clip(scale.low, scale.high)
    share = (shown - scale.low) / (scale.high - scale.low)
    rgb: Picture = scale.colours(share, bytes=True)[:, :, :3]
    return rgb


def _labels(heatmap: Heatmap, plane: npt.NDArray[np.float64]) -> tuple[Picture, list[Named]]:
    """The colours of labels, and the classes that there are."""
    picture = np.zeros((*plane.shape, 3), np.uint8)
    classes = []
    for value in np.unique(plane[~np.isnan(plane)]).astype(np.int64).tolist():
        named = heatmap.labels.get(value, Named(str(value)))
        colour = label_colour(named, value)
        picture[plane == value] = colour
        classes.append(Named(named.name, colour))
    return picture, classes


def _pixel(heatmap: Heatmap, frame: Frame) -> tuple[float, str]:
    """Width of a pixel of the picture, and its unit."""
    mpp = heatmap.record.mpp
    return (frame.scale[0] * mpp[0], "µm") if mpp else (frame.scale[0], "px")
