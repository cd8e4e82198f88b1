"""Where windows lie, as arrays: what sinks that write a row per window need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..chunks import Places, Plan
from ..errors import StageMismatch
from ..geometry import Size
from ..slides import PyramidLevel

__all__ = ["Corners", "Windows", "kernel_of", "level0_corners"]

Corners = npt.NDArray[np.int64]


class Windows:
    """Where the windows of a plan lie; all of them have one size.

    Attributes:
        kernel: a window's size; 0×0 until the first ones came, where they lie on no grid.
    """

    def __init__(self) -> None:
        self.kernel = Size(0, 0)

    def corners(self, places: Places) -> Corners:
        """The top-left corners in pixels of the level, ``(n, 2)``: x, then y.

        Raises:
            StageMismatch: the windows differ in size, among themselves or from earlier ones.
        """
        grid = places.plan.grid
        if grid is None:
            return self._one_by_one(places)
        self.kernel = grid.kernel
        corners = np.empty((len(places), 2), np.int64)
        for run in places.runs():
            at = slice(run.first - places.start, run.first - places.start + run.count)
            corners[at, 0] = np.arange(run.column, run.column + run.count)
            corners[at, 1] = run.row
        corners *= np.array(grid.stride)
        corners += np.array(grid.origin)
        np.minimum(corners, grid.last, out=corners)
        return corners

    def _one_by_one(self, places: Places) -> Corners:
        boxes = [place.box for place in places]
        sizes = {Size(box.width, box.height) for box in boxes} | {self.kernel} - {Size(0, 0)}
        if len(sizes) > 1:
            raise StageMismatch(
                f"{places.plan.slide.ref.uri}: the windows differ in size "
                f"({', '.join(map(str, sorted(sizes)))}), and this sink writes one size only"
            )
        self.kernel = sizes.pop()
        return np.array([(box.x, box.y) for box in boxes], np.int64)


def level0_corners(corners: Corners, level: PyramidLevel) -> Corners:
    """The corners in pixels of level 0, to the nearest one.

    Negative where a padded window begins outside the level.
    """
    placed: Corners = np.rint(corners * np.array(level.downsample)).astype(np.int64)
    return placed


def kernel_of(plan: Plan) -> Size | None:
    """The size of a plan's windows (of its first one, without a grid); None where it has none."""
    if plan.grid is not None:
        return plan.grid.kernel
    if plan.count == 0:
        return None
    box = plan.place(0).box
    return Size(box.width, box.height)
