"""The map that overlapping windows make: its cells, and when each of them is final.

A window gives a map ``(C, h, w)``; a cell of it is ``kernel / h`` pixels. Windows whose
distance is a whole number of cells lie on one raster of cells, so that each number of a window
belongs to one cell and none is interpolated. Other strides are refused, with the nearest that
fit: spreading a value over the cells that it touches would blur the map by up to a cell, and
nobody could tell any more what the model has said where.

Windows come by panel, row and column (`streamwsi.geometry`). Of a panel, the cells above the
next row of windows are final. They leave in *bands*, rows of whole chunks (or shards), each of
which is written once: the rest, the *front*, is what has to stay in memory. To the right, the
cells from the chunk on in which the next panel begins wait for that panel: its *seam*.

Cells beyond the level, where windows are padded, are no part of the map. All of this depends on
the plan and the shape of the values only. Integers only: no arrays are made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import NamedTuple

from .blending import PADDING, canvas_bytes
from .errors import StageMismatch
from .geometry import Grid, Size
from .heatmaps import Transform
from .slides import Mpp, PyramidLevel

__all__ = ["Mosaic", "PanelCells"]

#: Cells per side of a chunk that is as high as a band.
_LARGE = 512


class PanelCells(NamedTuple):
    """Columns of cells that a panel of windows works on.

    Attributes:
        first: first column of windows.
        columns: columns of windows.
        start: first column of cells; the panel before has begun some of those from here on.
        final: first column of cells that is the next panel's to finish.
        stop: first column of cells that no window of this panel reaches.
    """

    first: int
    columns: int
    start: int
    final: int
    stop: int

    @property
    def seam(self) -> int:
        """Columns of cells that the next panel goes on with."""
        return max(0, self.stop - self.final)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The cells of a grid of windows that may overlap.

    Attributes:
        grid: the windows.
        channels: numbers per cell.
        window: cells that one window fills.
        band: rows of cells that are finished together.
        across: columns of cells that are written together: panels are divided at multiples.
            Where there is one panel it does not matter.

    Raises:
        StageMismatch: the windows do not lie whole cells apart.
    """

    grid: Grid
    channels: int
    window: Size
    band: int = 256
    across: int = 256

    def __post_init__(self) -> None:
        grid = self.grid
        for axis, name in enumerate(("horizontal", "vertical")):
            kernel, cells, stride = grid.kernel[axis], self.window[axis], grid.stride[axis]
            if stride * cells % kernel == 0 or self._count(axis) == 1:
                continue
            unit = kernel // gcd(kernel, cells)
            below, above = stride // unit * unit, -(-stride // unit) * unit
            fitting = f"{below} or {above}" if below else f"{above}"
            raise StageMismatch(
                f"the processor returns maps of {self.window} cells for windows of {grid.kernel}, "
                f"so that a cell is {float(Fraction(kernel, cells)):.5g} pixels wide, and the "
                f"{name} stride {stride} is not a whole number of cells; the nearest that fit are "
                f"{fitting}"
            )

    def _count(self, axis: int) -> int:
        return self.grid.rows if axis else self.grid.columns

    def _at(self, axis: int, index: int) -> int:
        """Cells from the first window's corner to that of another."""
        grid = self.grid
        boxes = (grid.box(0, 0), grid.box(index, 0) if axis else grid.box(0, index))
        first, other = (box.y if axis else box.x for box in boxes)
        cells, rest = divmod((other - first) * self.window[axis], grid.kernel[axis])
        if rest:
            raise StageMismatch(
                f"window {index} lies {other - first} pixels from the first, which is not a whole "
                f"number of cells of {float(self.cell(axis)):.5g} pixels; choose a kernel and "
                "stride that are, or align the windows"
            )
        return cells

    def cell(self, axis: int) -> Fraction:
        """Pixels of the level that a cell is wide (axis 0) or high (1)."""
        return Fraction(self.grid.kernel[axis], self.window[axis])

    def _skipped(self, axis: int) -> int:
        """Cells before the level's edge, which are no part of the map."""
        origin = self.grid.origin[axis]
        return int(-origin // self.cell(axis)) if origin < 0 else 0

    def _length(self, axis: int) -> int:
        whole = self._at(axis, self._count(axis) - 1) + self.window[axis]
        inside = -(-(self.grid.size[axis] - self.grid.origin[axis]) // self.cell(axis))
        return int(min(whole, inside)) - self._skipped(axis)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, rows of cells, columns of cells)``."""
        return self.channels, self._length(1), self._length(0)

    def row(self, row: int) -> int:
        """The first row of cells of a row of windows; negative where some lie outside."""
        return self._at(1, row) - self._skipped(1)

    def column(self, column: int) -> int:
        """The first column of cells of a column of windows."""
        return self._at(0, column) - self._skipped(0)

    @classmethod
    def of(cls, grid: Grid, channels: int, window: Size, side: int) -> Mosaic:
        """With bands of two chunks' rows, or one of large chunks: a band has to stay in memory. A
        wide level's panels are divided at what makes few, large files: 32 chunks, or as many as
        half a panel has. Both are even, so that a band can be halved by itself.

        Args:
            grid, channels, window: see the class.
            side: cells per side of a chunk.
        """
        odd = side % 2
        band = 2 * side if odd or side < _LARGE else side
        whole = cls(grid, channels, window, band, side)
        panel = min(grid.panel, grid.columns) * grid.stride.width / whole.cell(0)
        chunks = 1 << max(odd, min(5, int(panel / (2 * side)).bit_length() - 1))
        return cls(grid, channels, window, band, chunks * side)

    @property
    def merging_bytes(self) -> int:
        """Bytes that merging takes: the canvas, and a band more, and what storing that takes (as
        it is stored, and the compressed chunks, apart and joined)."""
        stored = self.band * self.widest * (4 * self.channels + 2)
        rows, columns = self.front + self.band, self.widest + PADDING
        return canvas_bytes(self.channels, rows, columns) + 3 * stored

    @property
    def bands(self) -> int:
        """How many bands there are."""
        return -(-self.shape[1] // self.band)

    def finished(self, row: int) -> int:
        """How many bands are final before the windows of a row come."""
        return max(0, min(self.row(row), self.shape[1])) // self.band

    def first_band(self, row: int) -> int:
        """The first band that windows of that row, and those before, do not reach."""
        behind = min(self.row(row) + self.window.height, self.shape[1])
        return max(0, -(-behind // self.band))

    def rows_of(self, band: int) -> tuple[int, int]:
        """The first row of cells of a band, and the first behind it."""
        return band * self.band, min((band + 1) * self.band, self.shape[1])

    def panels(self) -> Iterator[PanelCells]:
        """The panels, from the left."""
        width = self.shape[2]
        start = 0
        for first in range(0, self.grid.columns, self.grid.panel):
            columns = min(self.grid.panel, self.grid.columns - first)
            stop = min(width, self.column(first + columns - 1) + self.window.width)
            final = stop = max(start, stop)
            if first + columns < self.grid.columns:
                # At a chunk's edge, so that the chunk is written once, by the next panel.
                begin = max(0, min(width, self.column(first + columns)))
                final = max(start, min(begin, stop) // self.across * self.across)
            yield PanelCells(first, columns, start, final, stop)
            start = final

    @property
    def front(self) -> int:
        """Rows of cells that may be begun and not final, at most."""
        return min(self.bands, -(-(self.band + self.window.height) // self.band)) * self.band

    @property
    def widest(self) -> int:
        """Columns of cells that a panel works on, at most."""
        return max(panel.stop - panel.start for panel in self.panels())

    def edges(self, row: int, column: int) -> tuple[bool, bool, bool, bool]:
        """Whether a window reaches the level's left, right, upper and lower edge."""
        box, size = self.grid.box(row, column), self.grid.size
        return box.x <= 0, box.right >= size.width, box.y <= 0, box.bottom >= size.height

    def transform(self, level: PyramidLevel, mpp: Mpp | None) -> Transform:
        """Where the cells lie on the slide; origin and unit as of `streamwsi.heatmaps`."""
        scale, translation = [], []
        for axis, per_pixel in enumerate((mpp.x, mpp.y) if mpp else (1.0, 1.0)):
            cell = float(self.cell(axis)) * level.downsample[axis]
            begin = self.grid.origin[axis] + self._skipped(axis) * self.cell(axis)
            scale.append(cell * per_pixel)
            translation.append(((cell - 1) / 2 + float(begin) * level.downsample[axis]) * per_pixel)
        unit = "micrometer" if mpp else None
        return Transform(unit, (scale[1], scale[0]), (translation[1], translation[0]))
