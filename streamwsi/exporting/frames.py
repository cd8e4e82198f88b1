"""What is in a picture of a slide: the values of a map at its pixels, whatever the map's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..sinks.cell_types import DAMAGED
from .heatmap import Heatmap, MapLevel
from .lattices import Lattice

__all__ = ["Frame", "damage", "values"]

Plane = npt.NDArray[np.float64]


class Frame(NamedTuple):
    """A picture of a whole slide.

    Attributes:
        width: in pixels.
        height: in pixels.
        scale: level-0 pixels per pixel, ``(x, y)``; pixel (0, 0) begins in the slide's corner.
    """

    width: int
    height: int
    scale: tuple[float, float]

    def centres(self, axis: int) -> Plane:
        """Level-0 places of the pixels' centres; `axis` 0 is x, 1 is y."""
        count = (self.width, self.height)[axis]
        return np.arange(0.5, count) * self.scale[axis]


def values(heatmap: Heatmap, channel: int, frame: Frame) -> Plane:
    """A channel at the pixels of a picture, ``(height, width)``; NaN where there is no value.

    A pixel shows the cell that its centre lies in; where cells are smaller than pixels, the mean
    of those with their centres in it (of labels, the one cell).
    """
    fits = [level for level in heatmap.levels if _is_smaller(level.cells, frame)]
    level = (fits or heatmap.levels)[-1 if fits else 0]
    missing = level.missing

    def numbers(block: npt.NDArray[Any]) -> Plane:
        plane = block.astype(np.float64)
        if missing is not None:
            plane[block == missing] = np.nan
        return plane

    if _is_smaller(level.cells, frame) and not level.labelled:
        return _means(level, channel, frame, numbers)
    return _picked(level, channel, frame, numbers)


def damage(heatmap: Heatmap, frame: Frame) -> npt.NDArray[np.bool_]:
    """Where windows were damaged, ``(height, width)``; of small windows, where one was."""
    if heatmap.codes is None:
        return np.zeros((frame.height, frame.width), np.bool_)
    sampled = _means if _is_smaller(heatmap.codes.cells, frame) else _picked
    share = sampled(heatmap.codes, 0, frame, lambda block: (block == DAMAGED).astype(np.float64))
    return share > 0


def _is_smaller(cells: Lattice, frame: Frame) -> bool:
    return all(cells.pitch[axis] <= frame.scale[axis] for axis in (0, 1))


def _picked(
    level: MapLevel, channel: int, frame: Frame, numbers: Callable[[npt.NDArray[Any]], Plane]
) -> Plane:
    plane = np.full((frame.height, frame.width), np.nan)
    _, rows, columns = level.shape
    i, in_rows = level.cells.holding(1, frame.centres(1), rows)
    j, in_columns = level.cells.holding(0, frame.centres(0), columns)
    for down, across in level.blocks(1):
        y = np.flatnonzero(in_rows & (i >= down.start) & (i < down.stop))
        x = np.flatnonzero(in_columns & (j >= across.start) & (j < across.stop))
        if len(y) and len(x):
            block = numbers(level.read(slice(channel, channel + 1), down, across)[0])
            plane[np.ix_(y, x)] = block[np.ix_(i[y] - down.start, j[x] - across.start)]
    return plane


def _means(
    level: MapLevel, channel: int, frame: Frame, numbers: Callable[[npt.NDArray[Any]], Plane]
) -> Plane:
    sums, counts = np.zeros((2, frame.height, frame.width))
    for down, across in level.blocks(1):
        y, x = _pixels(level.cells, 1, down, frame), _pixels(level.cells, 0, across, frame)
        there_y, there_x = (y >= 0) & (y < frame.height), (x >= 0) & (x < frame.width)
        if not (there_y.any() and there_x.any()):
            continue
        block = numbers(level.read(slice(channel, channel + 1), down, across)[0])
        block, y, x = block[np.ix_(there_y, there_x)], y[there_y], x[there_x]
        known = ~np.isnan(block)
        # Pixels are in the order of cells: those of one lie side by side.
        first_y, first_x = (np.flatnonzero(np.diff(pixels, prepend=-1)) for pixels in (y, x))
        at = np.ix_(y[first_y], x[first_x])
        for plane, parts in ((sums, np.where(known, block, 0)), (counts, known.astype(np.float64))):
            plane[at] += np.add.reduceat(np.add.reduceat(parts, first_y, 0), first_x, 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN where there is no cell
        return sums / counts


def _pixels(cells: Lattice, axis: int, part: slice, frame: Frame) -> npt.NDArray[np.int64]:
    """The pixels that the centres of cells lie in."""
    starts = cells.starts(axis, part.start, part.stop - part.start)
    centres = starts + cells.pitch[axis] / 2
    return np.floor(centres / frame.scale[axis]).astype(np.int64)
