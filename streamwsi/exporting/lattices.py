"""Where cells and windows lie on the slide: equal boxes at equal distances, in level-0 pixels.

Coordinates are those of QuPath and of pixel boxes everywhere in this package: the slide's corner
is ``(0, 0)``, and pixel (0, 0) covers ``[0, 1) × [0, 1)``. OME-NGFF counts from the centre of
that pixel instead; `Lattice.of_ngff` is the only place that knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Lattice", "window_lattice"]

_ROUNDING = 1e-9


class Lattice(NamedTuple):
    """Boxes ``[origin + i · pitch, origin + i · pitch + extent)``; each value is ``(x, y)``.

    Attributes:
        origin: corner of box (0, 0).
        pitch: distance between boxes.
        extent: size of a box; cells of a raster are as large as their distance.
    """

    origin: tuple[float, float]
    pitch: tuple[float, float]
    extent: tuple[float, float]

    @classmethod
    def of_ngff(
        cls,
        scale: tuple[float, float],
        translation: tuple[float, float],
        unit: tuple[float, float],
    ) -> Lattice:
        """Cells from their distance and the centre of the first, both ``(x, y)``.

        Args:
            scale: distance between cells.
            translation: from the centre of level 0's first pixel to the centre of the first cell.
            unit: length of a level-0 pixel in the unit of both.
        """
        pitch = (_snapped(scale[0] / unit[0]), _snapped(scale[1] / unit[1]))
        centre = (translation[0] / unit[0] + 0.5, translation[1] / unit[1] + 0.5)
        return cls(
            (_snapped(centre[0] - pitch[0] / 2), _snapped(centre[1] - pitch[1] / 2)), pitch, pitch
        )

    def starts(self, axis: int, first: int, count: int) -> npt.NDArray[np.float64]:
        """Where the boxes ``first … first + count - 1`` begin; `axis` 0 is x, 1 is y."""
        places = np.arange(first, first + count, dtype=np.float64)
        return self.origin[axis] + places * self.pitch[axis]

    def holding(
        self, axis: int, places: npt.NDArray[np.float64], count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Which of `count` cells hold places, or are nearest, and whether they do hold them."""
        index = np.floor((places - self.origin[axis]) / self.pitch[axis]).astype(np.int64)
        return index.clip(0, count - 1), (index >= 0) & (index < count)

    def around_centres(self) -> Lattice:
        """Cells without gaps or overlaps that have the boxes' centres."""
        x, y = (self.origin[a] + (self.extent[a] - self.pitch[a]) / 2 for a in (0, 1))
        return Lattice((x, y), self.pitch, self.pitch)


def window_lattice(
    cells: Lattice, per_window: tuple[int, int], kernel: Sequence[int], stride: Sequence[int]
) -> Lattice:
    """The windows that a raster was made from.

    A raster with one cell per window has it in the window's centre, a stride wide. Windows with
    several cells lie side by side, and their cells divide them evenly.

    Args:
        cells: of the raster.
        per_window: rows and columns of cells that a window has.
        kernel: width and height of a window, in pixels of the level that was read.
        stride: distance between windows, likewise ``(x, y)``.
    """
    if per_window != (1, 1):
        down, across = per_window
        extent = (_snapped(cells.pitch[0] * across), _snapped(cells.pitch[1] * down))
        return Lattice(cells.origin, extent, extent)
    sizes = [cells.pitch[a] / stride[a] * kernel[a] for a in (0, 1)]
    centre = [cells.origin[a] + cells.pitch[a] / 2 for a in (0, 1)]
    return Lattice(
        (_snapped(centre[0] - sizes[0] / 2), _snapped(centre[1] - sizes[1] / 2)),
        cells.pitch,
        (_snapped(sizes[0]), _snapped(sizes[1])),
    )


def _snapped(value: float) -> float:
    """The half-integer that rounding made this of, where it is one."""
    half = round(value * 2) / 2
    return half if abs(value - half) <= _ROUNDING * max(1.0, abs(value)) else value
