"""Where fiducials go for given windows: as far into the corners as these windows see, and in the
middle; as many as there is room for.

A spot must be seen whole, by all windows of an infinite grid that would touch it. Beyond it
there is a quarter of its radius free at the right and at the bottom, so that its edge does not
lie in the last cell of a smaller level, which may be only a part of one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..chunks import Plan
from ..errors import ConfigError
from ..geometry import Grid
from .fiducials import Fiducial

__all__ = ["FINER", "Pitch", "place"]

FINER = 4
"""A spot's radius in cells of an output, at least, for its centroid to be exact enough."""

#: Fractions of a cell that spots are moved by, so that they lie on no cell's centre or edge.
_FRACTIONS = (0.3137, 0.2291, 0.1713)


class Pitch(NamedTuple):
    """The cells of an output, in pixels of the level that the windows lie on.

    Attributes:
        size: distance between cells, ``(x, y)``.
        first: centre of a cell, or a corner of one: where pictures may be symmetric.
        dense: whether windows give maps, so that each cell is seen once.
    """

    size: tuple[float, float]
    first: tuple[float, float]
    dense: bool


def place(
    plan: Plan, pitch: Pitch, radius: float, snapped: bool, whole: bool = False
) -> tuple[Fiducial, ...]:
    """The fiducials for a plan.

    Args:
        plan: the windows, on a grid.
        pitch: the cells of its output.
        radius: of a spot, in cells.
        snapped: whether spots lie on the cells such that each is symmetric about its centre: so
            that rounding to classes does not shift it.
        whole: whether a spot must lie where no window of an infinite grid is missing: for outputs
            that spread windows over their whole extent.

    Raises:
        ConfigError: there is no room for one.
    """
    assert plan.grid is not None
    axes = []
    for axis in (0, 1):
        size = pitch.size[axis]
        lo, hi = _seen(plan.grid, axis, pitch.dense)
        if whole:
            overlap = max(0, plan.grid.kernel[axis] - plan.grid.stride[axis])
            lo, hi = lo + overlap, hi - overlap
        r = radius * size
        hi -= r / FINER
        apart = 2 * r + max(plan.grid.kernel[axis], size)
        if snapped:  # room for moving it
            lo, hi = lo + FINER * size, hi - FINER * size
        else:
            lo, hi = lo + size / 2, hi - size / 2
        if hi - lo < 2 * r:
            raise ConfigError(f"there is no room for a spot of {2 * r:g} pixels")
        count = 3 if hi - lo >= 3 * apart else 2 if hi - lo >= 2 * apart else 1
        ends = np.array([lo + r, (lo + hi) / 2, hi - r])
        chosen = {1: [1], 2: [0, 2], 3: [0, 1, 2]}[count]
        if snapped:
            step = FINER * size if pitch.dense else size
            ends = pitch.first[axis] + np.rint((ends - pitch.first[axis]) / step) * step
        else:
            ends += np.array(_FRACTIONS) * size * (-1, 1, 1)[axis] / 2
        axes.append([float(ends[i]) for i in chosen])
    return tuple(_spots(plan, axes, radius, pitch))


def _spots(plan: Plan, axes: list[list[float]], radius: float, pitch: Pitch) -> list[Fiducial]:
    """The corners and the middle of what was chosen along both axes."""
    scale = plan.level.downsample
    r = radius * pitch.size[0] * scale[0], radius * pitch.size[1] * scale[1]
    xs, ys = axes
    spots = [(x, y) for y in (ys[0], ys[-1]) for x in (xs[0], xs[-1])]
    if len(xs) == 3 or len(ys) == 3:
        spots.append((xs[len(xs) // 2], ys[len(ys) // 2]))
    return [Fiducial((x * scale[0], y * scale[1]), r) for x, y in dict.fromkeys(spots)]


def _seen(grid: Grid, axis: int, dense: bool) -> tuple[float, float]:
    """Where a spot may lie along an axis, in pixels of the level."""
    kernel, stride = grid.kernel[axis], grid.stride[axis]
    first, last, size = grid.origin[axis], grid.last[axis], grid.size[axis]
    lo, hi = (first, last + kernel) if dense else (first + max(0, kernel - stride), last + stride)
    if grid.pad == "reflect":  # what is mirrored must be white
        lo, hi = max(lo, kernel), min(hi, size - kernel)
    return float(max(lo, 0)), float(min(hi, size))
