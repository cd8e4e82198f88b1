"""Merging: maps of overlapping windows blended into one, written band by band.

The panel's `Canvas` takes the windows; whenever a row of windows comes that leaves a band of it
behind, the band is taken out, divided, and written once, its half with it, in a thread of its own
while the next windows come: one band at a time. The cells at the right that the next panel goes
on with are put into a seam. What is in the canvas is never stored half done: a resume computes
again the windows that reach into the first band that is missing, at most those of a few rows, and
adds them in the same order.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..blending import Blend, Canvas, Strip, canvas_bytes
from ..chunks import Plan
from ..geometry import Run
from ..mosaics import Mosaic, PanelCells
from .cell_types import COMPUTED, DAMAGED, LEFT_OUT, CellType, as_cells
from .half_level import HalfLevel
from .seams import Seam
from .zarr_arrays import AnyArray, in_a_loop, store_files

__all__ = ["Merging"]


class _Mark(NamedTuple):
    """A row of windows that has begun.

    Attributes:
        row: of the grid.
        piece: number of its first piece.
        invalid: pieces before it that are not valid.
    """

    row: int
    piece: int
    invalid: int


class Merging:
    """The arrays of a map that is merged.

    Args:
        image: ``(c, y, x)``, or labels.
        codes: ``(y, x)`` uint8: why a cell has a value or none.
        half: level 1; None where the map is too small to have one.
        mosaic: its cells.
        blend: what becomes of those that several windows have a value for.
        cells: what they are stored as.
        plan: whose windows come.
        path: the output's, beside which seams are put.
    """

    def __init__(
        self,
        image: AnyArray,
        codes: AnyArray,
        half: AnyArray | None,
        mosaic: Mosaic,
        blend: Blend,
        cells: CellType,
        plan: Plan,
        path: Path,
    ) -> None:
        self._image = image
        self._codes = codes
        self._half = None if half is None else HalfLevel(half, labels=cells == "labels")
        self._mosaic = mosaic
        self._blend = blend
        self._cells = cells
        self._plan = plan
        self._path = path
        self._panels = [*mosaic.panels()]
        self._panel = 0
        self._band = 0
        self._left: Seam | None = None
        self._right: Seam | None = None
        self._marks: deque[_Mark] = deque()
        shape = mosaic.band, mosaic.front // mosaic.band, mosaic.widest
        self._canvas = Canvas(blend, mosaic.channels, mosaic.window, *shape)
        self._spare = Strip(blend, mosaic.channels, mosaic.band, mosaic.widest)
        self._thread = ThreadPoolExecutor(1, "merging")
        self._storing: Future[None] | None = None
        self._covered: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]] | None = None

    async def begin(self, piece: int, fresh: bool) -> None:
        """Go on with the windows from number `piece` on."""
        panel = band = 0
        if piece > 0:
            (run,) = self._plan.runs(piece, piece + 1)
            (before,) = self._plan.runs(piece - 1, piece)
            width = self._mosaic.grid.panel
            panel = run.column // width
            if before.column // width == panel:
                band = self._mosaic.first_band(before.row)
        await anyio.to_thread.run_sync(self._prepare)
        await anyio.to_thread.run_sync(self._open_panel, panel, band)

    def close(self) -> None:
        """End writing, and close the seams' files."""
        self._thread.shutdown()
        for seam in (self._left, self._right):
            if seam is not None:
                seam.close()

    async def put(
        self, run: Run, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_], invalid: int
    ) -> None:
        """Blend in the windows of a run.

        Args:
            run: numbered as pieces.
            values: ``(n, C, h, w)``.
            valid: ``(n,)``.
            invalid: pieces before the run that are not valid.
        """
        while run.column >= self._here.first + self._here.columns:
            await self._next_panel()
        if not self._marks or self._marks[-1].row != run.row:
            await self._store_until(self._mosaic.finished(run.row))
            self._marks.append(_Mark(run.row, run.first, invalid))
        await anyio.to_thread.run_sync(self._add, run, values, valid)

    async def flush(self, last: bool) -> None:
        """Make the bands that were written, and their seams, ready to be relied on.

        Args:
            last: all windows have come.
        """
        if last:
            while self._panel < len(self._panels) - 1:
                await self._next_panel()
            await self._store_until(self._mosaic.bands)
        await anyio.to_thread.run_sync(self._settle)
        if last:
            # Their memory is needed for what comes next.
            self._canvas = Canvas(self._blend, 1, self._mosaic.window, 0, 0, 0)
            self._spare = Strip(self._blend, 1, 0, 0)
        if self._right is not None:
            await anyio.to_thread.run_sync(self._right.sync)

    def durable(self, pieces: int, invalid: int) -> tuple[int, int]:
        """Pieces that need not come again after `flush`, and how many of them are not valid.

        Args:
            pieces: that have come.
            invalid: among these.
        """
        if self._band == self._mosaic.bands and self._panel == len(self._panels) - 1:
            return pieces, invalid
        # The last row counts even where it lies above the band: a resume must find the panel.
        while len(self._marks) > 1 and self._reached(self._marks[0]) <= self._band:
            self._marks.popleft()
        return self._marks[0].piece, self._marks[0].invalid

    def _reached(self, mark: _Mark) -> int:
        return self._mosaic.first_band(mark.row)

    @property
    def _here(self) -> PanelCells:
        return self._panels[self._panel]

    def _prepare(self) -> None:
        """Note which rows and columns of cells the grid's windows cover, where some are left out
        or leave gaps."""
        mosaic, grid = self._mosaic, self._mosaic.grid
        if self._plan.count == grid.count:
            return
        _, height, width = mosaic.shape
        rows, columns = np.zeros(height, np.bool_), np.zeros(width, np.bool_)
        for covered, begins, cells in (
            (rows, map(mosaic.row, range(grid.rows)), mosaic.window.height),
            (columns, map(mosaic.column, range(grid.columns)), mosaic.window.width),
        ):
            for begin in begins:
                covered[max(0, begin) : max(0, begin + cells)] = True
        self._covered = rows, columns

    def _open_panel(self, panel: int, band: int) -> None:
        """Begin a panel, or go on with it from a band on."""
        if self._left is not None:
            self._left.close()
        went_on, self._right, self._left = self._right, None, None
        self._panel, self._band = panel, band
        self._marks.clear()
        if panel > 0 and self._panels[panel - 1].seam:
            self._left = went_on or self._seam(panel)
            if went_on is None:
                self._left.open()
        if self._here.seam and panel < len(self._panels) - 1:
            self._right = self._seam(panel + 1)
            if band == 0:
                self._right.create()
            else:
                self._right.open()
        self._canvas.clear(band * self._mosaic.band)
        for entered in range(band, band + self._mosaic.front // self._mosaic.band):
            self._enter(entered)

    def _seam(self, number: int) -> Seam:
        """The seam that a panel goes on with."""
        columns = self._panels[number - 1].seam
        band_bytes = canvas_bytes(self._mosaic.channels, self._mosaic.band, columns)
        return Seam(self._path, number, band_bytes, self._mosaic.bands)

    def _enter(self, band: int) -> None:
        """Take up what the panel before has begun in a band, as far as that is in the canvas."""
        first, behind = self._mosaic.rows_of(band)
        if self._left is None or first >= behind:
            return
        columns, rows = self._panels[self._panel - 1].seam, behind - first
        data = self._left.read(band, canvas_bytes(self._mosaic.channels, rows, columns))
        self._canvas.restore(first, rows, columns, data)

    def _add(self, run: Run, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> None:
        mosaic, row = self._mosaic, self._mosaic.row(run.row)
        for i in range(run.count):
            column = mosaic.column(run.column + i) - self._here.start
            if valid[i]:
                edges = mosaic.edges(run.row, run.column + i)
                self._canvas.add(row, column, values[i], edges)
            else:
                self._canvas.lose(row, column)

    async def _next_panel(self) -> None:
        await self._store_until(self._mosaic.bands)
        await anyio.to_thread.run_sync(self._settle)
        if self._right is not None:
            await anyio.to_thread.run_sync(self._right.sync)
        await anyio.to_thread.run_sync(self._open_panel, self._panel + 1, 0)

    async def _store_until(self, band: int) -> None:
        while self._band < band:
            await anyio.to_thread.run_sync(self._let_go)

    def _settle(self) -> None:
        """Wait until the band that is being written is; raises what that has raised."""
        if self._storing is not None:
            self._storing.result()

    def _let_go(self) -> None:
        """Take the first band out of the canvas and begin to write it."""
        self._settle()
        strip = self._canvas.take()
        self._canvas.give(self._spare)
        self._storing = self._thread.submit(self._store, strip, self._band, self._here, self._right)
        self._enter(self._band + self._mosaic.front // self._mosaic.band)
        self._band += 1

    def _store(self, strip: Strip, band: int, here: PanelCells, right: Seam | None) -> None:
        """Write a band: what is final to the arrays, what the next panel goes on with to the
        seam."""
        first, behind = self._mosaic.rows_of(band)
        rows, columns = behind - first, here.final - here.start
        if right is not None:
            begun = strip.saved(rows, slice(columns, here.stop - here.start))
            if begun is not None:
                right.write(band, begun)
        if columns:
            codes = strip.codes(rows, columns, COMPUTED, DAMAGED)
            known = codes == COMPUTED
            at = slice(first, behind), slice(here.start, here.final)
            if known.any():
                image = as_cells(strip.final(rows, columns), self._cells, 0)
                in_a_loop(store_files, self._image, at, image, known)
                if self._half is not None:
                    self._half.store(*at, image)
            if self._covered is not None:
                y, x = self._covered[0][at[0], None], self._covered[1][None, at[1]]
                codes[(codes == 0) & y & x] = LEFT_OUT
            in_a_loop(store_files, self._codes, at, codes, codes > 0)
        strip.clear()
        self._spare = strip
