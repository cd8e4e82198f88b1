"""Windows that fill cells of their own: laid side by side, block by block.

The open block is stored at each checkpoint as far as it is filled, so that what has come is seen
at once and never computed again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import Plan
from ..geometry import Run
from ..heatmaps import Raster, left_out
from .cell_types import COMPUTED, DAMAGED, LEFT_OUT, CellType, as_cells
from .zarr_arrays import AnyArray, Front

__all__ = ["SideBySide"]


class SideBySide:
    """The arrays of a map whose windows do not share cells.

    Args:
        image: ``(c, y, x)``, or labels ``(y, x)``.
        codes: ``(y, x)`` uint8, a cell per window: why it has a value or none.
        raster: the image's cells.
        cells: what they are stored as.
        plan: whose windows come.
    """

    def __init__(
        self, image: AnyArray, codes: AnyArray, raster: Raster, cells: CellType, plan: Plan
    ) -> None:
        self._image = Front(image, raster)
        self._codes = Front(codes, raster.of_codes)
        self._grid = raster.grid
        self._cells = cells
        self._plan = plan

    async def begin(self, piece: int, fresh: bool) -> None:
        """Go on with the windows from number `piece` on.

        Args:
            piece: their number.
            fresh: whether the arrays are new.
        """
        partly = self._plan.count < self._grid.count
        if fresh and partly:
            await self._mark_left_out()
        self._codes.keeps_stored = partly
        if piece > 0:
            for run in self._plan.runs(piece, piece + 1):
                for front in (self._image, self._codes):
                    await front.restore(run)

    async def _mark_left_out(self) -> None:
        """Say of each cell without a window that there will be none."""
        for run in left_out(self._grid, self._plan.runs(0, self._plan.count)):
            await self._codes.put(run, np.full((run.count, 1, 1, 1), LEFT_OUT, np.uint8))
        await self._codes.store()

    async def put(
        self, run: Run, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], invalid: int
    ) -> None:
        """Lay the windows of a run.

        Args:
            run: numbered as pieces.
            values: ``(n, C, h, w)``.
            valid: ``(n,)``.
            invalid: pieces before the run that are not valid.
        """
        codes = np.where(valid, np.uint8(COMPUTED), np.uint8(DAMAGED)).reshape(-1, 1, 1, 1)
        await self._image.put(run, as_cells(values, self._cells, 1))
        await self._codes.put(run, codes)

    async def flush(self, last: bool) -> None:
        """Store the open blocks."""
        await self._image.store()
        await self._codes.store()

    def durable(self, pieces: int, invalid: int) -> tuple[int, int]:
        """All that have come."""
        return pieces, invalid

    def close(self) -> None:
        """Nothing is open."""
