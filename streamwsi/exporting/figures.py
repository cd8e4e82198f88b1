"""A picture of a map over a slide, with all that is needed to read it: title, value axis or
classes, scale bar, and what damaged windows look like.

The picture's pixels are put into the figure one to one; all else is laid out in *ems*: the height
of a line of text, which grows with the picture. matplotlib draws it, without pyplot: nothing is
global.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..pictures import write_png

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from .documents import Named

__all__ = ["Scale", "blended", "colour_map", "draw", "require_matplotlib", "stripes"]

Picture = npt.NDArray[np.uint8]

_DPI = 72.0  # a point is a pixel
_LINE = 100
_STRIPE = 4
_STRIPES = ((40, 40, 40), (235, 235, 235))


class Scale(NamedTuple):
    """What colours mean.

    Attributes:
        colours: of values.
        low: has the first colour.
        high: has the last colour.
        below: whether there are values below `low`.
        above: whether there are values above `high`.
    """

    colours: Colormap
    low: float
    high: float
    below: bool
    above: bool


def require_matplotlib() -> None:
    """Raise a `ConfigError` where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError('pictures need matplotlib: pip install "streamwsi[export]"') from error


def colour_map(name: str) -> Colormap:
    """One of matplotlib's colour maps.

    Raises:
        ConfigError: it has none of that name.
    """
    import difflib

    import matplotlib

    if name not in matplotlib.colormaps:
        near = difflib.get_close_matches(name, [*matplotlib.colormaps], 1)
        hint = f"did you mean {near[0]}?" if near else "try viridis, magma, turbo or coolwarm"
        raise ConfigError(f"matplotlib has no colour map {name!r}; {hint}")
    return matplotlib.colormaps[name]


def blended(
    under: Picture, colours: Picture, shown: npt.NDArray[np.bool_], alpha: float
) -> Picture:
    """Colours laid over a picture where they are shown.

    Args:
        under: ``(height, width, 3)``; changed.
        colours: likewise.
        shown: ``(height, width)``.
        alpha: opacity of the colours, 0 … 1.

    Returns:
        `under`.
    """
    under[shown] = np.rint(under[shown] * (1 - alpha) + colours[shown] * alpha)
    return under


def stripes(height: int, width: int) -> Picture:
    """What damage looks like, in every colour map: dark and light diagonal stripes."""
    y, x = np.ogrid[:height, :width]
    striped: Picture = np.array(_STRIPES, np.uint8)[(x + y) // _STRIPE % 2]
    return striped


def draw(
    path: Path,
    picture: Picture,
    *,
    title: str,
    axis: str,
    scale: Scale | list[Named],
    pixel: float,
    unit: str,
    damaged: bool,
) -> None:
    """Write the picture with its legend as a PNG file.

    Args:
        path: the file.
        picture: ``(height, width, 3)``.
        title: above the picture.
        axis: what values are.
        scale: of values; or the classes that are shown.
        pixel: width of a pixel of the picture, in `unit`.
        unit: ``"µm"`` or ``"px"``.
        damaged: whether stripes are to be explained.
    """
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    em = min(max(12.0, max(height, width) / 56), 32.0)
    left, top, bottom = round(em), round(2.5 * em), round(3.5 * em)
    right = round((16 if isinstance(scale, list) else 8) * em)
    whole = (max(left + width + right, round(24 * em)), top + height + bottom)
    figure = Figure(figsize=(whole[0] / _DPI, whole[1] / _DPI), dpi=_DPI, facecolor="white")
    ruler = _Ruler(figure, em)
    ruler.picture(left, bottom, picture)
    ruler.text(left, bottom + height + 0.8 * em, _fitting(title, (whole[0] - left) / em))
    beside = left + width + em
    if isinstance(scale, list):
        ruler.classes(beside, bottom + height, scale)
    else:
        ruler.colour_bar(beside, bottom, height, scale, axis)
    end = ruler.scale_bar(left, bottom - 1.2 * em, width, pixel, unit)
    if damaged:
        ruler.patch(end + 2 * em, bottom - 1.5 * em, stripes(round(em), round(em)), "damaged")
    write_png(path, ruler.drawn())


class _Ruler:
    """Draws into a figure, in pixels from its lower left corner."""

    def __init__(self, figure: Figure, em: float) -> None:
        self._figure, self._em = figure, em
        self._pictures: list[tuple[int, int, Picture]] = []

    def drawn(self) -> Picture:
        """The figure, ``(height, width, 3)``."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas: Any = FigureCanvasAgg(self._figure)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
            canvas.draw()
        drawn: Picture = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
        # Not by way of matplotlib, which takes 80 bytes a pixel for it.
        for x, y, picture in self._pictures:
            height, width = picture.shape[:2]
            top = len(drawn) - y - height
            drawn[top : top + height, x : x + width] = picture
        return drawn

    def text(self, x: float, y: float, text: str, **options: Any) -> None:
        width, height = self._figure.get_size_inches() * _DPI
        self._figure.text(
            x / width, y / height, text, fontsize=self._em, parse_math=False, **options
        )

    def picture(self, x: float, y: float, picture: Picture) -> None:
        """A picture, pixel by pixel, with a line around it."""
        framed = np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=_LINE)
        self._pictures.append((round(x) - 1, round(y) - 1, framed))

    def patch(self, x: float, y: float, picture: Picture, text: str) -> None:
        """A small picture and what it means."""
        self.picture(x, y, picture)
        self.text(x + 1.6 * self._em, y + 0.15 * self._em, text)

    def classes(self, x: float, top: float, classes: list[Named]) -> None:
        """A line for each class, as far as there is room."""
        em = self._em
        room = int((top / em - 2) / 1.5)
        for i, named in enumerate(classes[:room]):
            colour = np.full((round(em), round(em), 3), named.colour, np.uint8)
            self.patch(x, top - (1 + 1.5 * i) * em, colour, _fitting(named.name, 13))
        if len(classes) > room:
            self.text(x, top - (1 + 1.5 * room) * em, f"and {len(classes) - room} more")

    def colour_bar(self, x: float, y: float, height: float, scale: Scale, axis: str) -> None:
        """The value axis."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        whole = self._figure.get_size_inches() * _DPI
        box = self._figure.add_axes(
            (x / whole[0], y / whole[1], 1.2 * self._em / whole[0], height / whole[1])
        )
        ends = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
        bar = self._figure.colorbar(
            ScalarMappable(Normalize(scale.low, scale.high), scale.colours),
            cax=box,
            extend=ends[scale.below, scale.above],
            format=lambda value, _: f"{value:g}",
        )
        bar.ax.tick_params(labelsize=0.9 * self._em)
        label = _fitting(axis, max(8.0, height / self._em))
        bar.ax.set_ylabel(label, fontsize=self._em, parse_math=False)

    def scale_bar(self, x: float, y: float, width: float, pixel: float, unit: str) -> float:
        """A bar of a round length, at most a quarter of `width`; returns where its text ends."""
        length = _round_length(width / 4 * pixel)
        bar = length / pixel
        black = np.zeros((round(0.3 * self._em), max(1, round(bar)), 3), np.uint8)
        self._pictures.append((round(x), round(y), black))
        text = f"{length / 1000:g} mm" if unit == "µm" and length >= 1000 else f"{length:g} {unit}"
        self.text(x, y - 1.3 * self._em, text)
        return x + max(bar, len(text) * 0.65 * self._em)


def _round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, … that is at most that."""
    power = 10.0 ** math.floor(math.log10(most))
    return max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))


def _fitting(text: str, ems: float) -> str:
    """A text that takes about so much room, cut where it is longer."""
    most = max(4, int(ems / 0.6))
    return text if len(text) <= most else f"{text[: most - 1]}…"
