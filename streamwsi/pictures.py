"""Pictures for people: a heatmap over a slide's thumbnail, with a legend, as a PNG.

Nothing here is measured again by a program: values become colours, by cells as they are,
without smoothing, so that a picture shows what the heatmap holds and where.

The colour maps are *viridis* and *inferno* by Stéfan van der Walt and Nathaniel Smith (2015,
CC0, https://bids.github.io/colormap), whose steps look equally large all the way: 16 of their
256 colours, evenly spaced, with straight lines in between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .geometry import Box

__all__ = ["ColourMap", "coloured", "overlay", "value_range", "with_legend", "write_png"]

Picture = npt.NDArray[np.uint8]
Values = npt.NDArray[np.floating]
ColourMap = Literal["inferno", "viridis"]

_ANCHORS = {
    "viridis": "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e "
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725",
    "inferno": "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c "
    "c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4",
}
# Rows of 3 pixels, top to bottom, as octal digits: 4 is the left pixel, 1 the right one.
_GLYPHS = {
    "0": "75557",
    "1": "26227",
    "2": "71747",
    "3": "71717",
    "4": "55711",
    "5": "74717",
    "6": "74757",
    "7": "71122",
    "8": "75757",
    "9": "75717",
    ".": "00002",
    "-": "00700",
    "+": "02720",
    "e": "07743",
}
_PEN = 2  # pixels of the picture per pixel of a glyph


def overlay(
    thumbnail: Picture,
    heatmap: Values,
    box: Box,
    low: float | None = None,
    high: float | None = None,
    colour_map: ColourMap = "viridis",
    opacity: float = 0.5,
    fade: float = 0.0,
) -> Picture:
    """The thumbnail with the heatmap laid over it.

    A pixel takes the colour of the cell that its centre lies in; where the cell is NaN, and
    outside the box, the thumbnail stays as it is.

    Args:
        thumbnail: ``(height, width, 3)`` uint8 RGB; not changed.
        heatmap: ``(rows, columns)``.
        box: where the heatmap lies, in pixels of the thumbnail; it may reach beyond it.
        low: this value and all below get the first colour; by default the lowest finite one.
        high: this value and all above get the last colour; by default the highest finite one.
        colour_map: ``"viridis"`` or ``"inferno"``.
        opacity: of the heatmap: 0 leaves the thumbnail, 1 hides it.
        fade: share of the way from `low` to `high` on which the opacity rises from 0, so that
            the lowest values, as a rule those of glass, do not cover the thumbnail.

    Returns:
        ``(height, width, 3)`` uint8 RGB.
    """
    picture = thumbnail.copy()
    seen = box.intersection(Box(0, 0, thumbnail.shape[1], thumbnail.shape[0]))
    if seen.empty or heatmap.size == 0:
        return picture
    lowest, highest = value_range(heatmap)
    low, high = lowest if low is None else low, highest if high is None else high
    shown = heatmap[
        np.ix_(
            _cells(seen.y, seen.bottom, box.y, box.height, heatmap.shape[0]),
            _cells(seen.x, seen.right, box.x, box.width, heatmap.shape[1]),
        )
    ]
    share = np.where(np.isnan(shown), 0, opacity)[:, :, None]
    if fade > 0:
        share = share * np.minimum(_shares(shown, low, high) / fade, 1)[:, :, None]
    under = picture[seen.y : seen.bottom, seen.x : seen.right]
    under[:] = np.rint(under * (1 - share) + coloured(shown, low, high, colour_map) * share)
    return picture


def value_range(heatmap: Values) -> tuple[float, float]:
    """The lowest and the highest finite value; ``(0, 1)`` where there is none."""
    finite = heatmap[np.isfinite(heatmap)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def coloured(values: Values, low: float, high: float, colour_map: ColourMap = "viridis") -> Picture:
    """Values ``(…)`` as colours ``(…, 3)`` uint8: `low` the first of the map, `high` the last.

    NaN has the first colour. Where `high` is not above `low`, `low` itself has the middle one,
    and so has NaN.
    """
    anchors = np.array([list(bytes.fromhex(part)) for part in _ANCHORS[colour_map].split()])
    place = _shares(values, low, high) * (len(anchors) - 1)
    bands = [np.interp(place, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    colours: Picture = np.rint(np.stack(bands, axis=-1)).astype(np.uint8)
    return colours


def _shares(values: Values, low: float, high: float) -> npt.NDArray[np.float64]:
    """How far along from `low` to `high` values are, 0 … 1."""
    above: npt.NDArray[np.float64] = np.nan_to_num(values.astype(np.float64) - low, nan=0.0)
    return (above / (high - low) if high > low else 0.5 + np.sign(above)).clip(0, 1)


def with_legend(
    picture: Picture, low: float, high: float, colour_map: ColourMap = "viridis"
) -> Picture:
    """The picture with a bar of the colours at its right, and the values at the bar's ends.

    ``(height, width, 3)`` to ``(height, width + some, 3)``.
    """
    height = picture.shape[0]
    labels = [_text(f"{value:.3g}") for value in (low, high)]
    gap, bar = 8, 16
    left = gap + bar + gap // 2
    legend = np.full((height, left + max(t.shape[1] for t in labels) + gap, 3), 255, np.uint8)
    top, bottom = min(gap, height // 4), height - min(gap, height // 4)
    ramp = coloured(np.linspace(1, 0, bottom - top), 0, 1, colour_map)
    legend[top:bottom, gap : gap + bar] = ramp[:, None]
    for text, y in zip(labels, (max(0, bottom - labels[0].shape[0]), top), strict=True):
        spot = legend[y : y + text.shape[0], left : left + text.shape[1]]
        spot[text[: spot.shape[0]]] = 0
    return np.concatenate([picture, legend], axis=1)


def write_png(path: str | Path, picture: Picture) -> None:
    """Write ``(height, width, 3)`` RGB or ``(height, width)`` grey, uint8, as a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    import imagecodecs

    Path(path).write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


def _cells(start: int, stop: int, origin: int, extent: int, count: int) -> npt.NDArray[np.intp]:
    """For each pixel of a range, which of `count` cells along `extent` holds its centre."""
    return ((2 * (np.arange(start, stop) - origin) + 1) * count // (2 * extent)).astype(np.intp)


def _text(text: str) -> npt.NDArray[np.bool_]:
    """The text as a mask of pixels, a glyph and a gap per character."""
    rows = np.array([[int(row) for row in _GLYPHS[character]] for character in text])
    bits = (rows[:, :, None] >> np.array([2, 1, 0, 4])) & 1 == 1
    mask: npt.NDArray[np.bool_] = bits.transpose(1, 0, 2).reshape(5, -1)
    return mask.repeat(_PEN, axis=0).repeat(_PEN, axis=1)
