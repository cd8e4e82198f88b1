"""The raster that a grid of windows makes: which cells a window fills, how the raster is cut
into chunks, and where its cells lie on the slide.

A processor gives each window either C numbers (a *vector*: one cell of the raster) or a map
``(C, h, w)`` (h × w cells). Maps are laid side by side here, so their windows must tile the
level: stride == kernel (`streamwsi.mosaics` is for those that overlap). Window (row, column)
fills the cells ``[row·h, (row + 1)·h) × [column·w, (column + 1)·w)``.

Windows arrive in the order of the grid: by panel, row, column. What has begun to arrive but is
not whole has to stay in memory; a `Block` is that: whole rows of windows of one panel where
they are small enough, otherwise some windows of one row. Blocks begin at chunk borders
(except where a panel begins), and once the first window behind a block has arrived, nothing
more comes for it. All of this depends on the plan and on the shape of the values only, never
on limits or on how often a run was interrupted.

Integers and shapes only: no arrays are made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .errors import StageMismatch
from .geometry import Grid, Run, Size
from .slides import Mpp, PyramidLevel

__all__ = ["Block", "Raster", "Transform", "left_out"]

#: A chunk holds at most about this much, so that a viewer fetches little per look ...
_CHUNK_BYTES = 4 << 20
#: ... and the open block at most this much (or one window).
_BLOCK_BYTES = 32 << 20

_ONE = Size(1, 1)


def left_out(grid: Grid, kept: Iterator[Run]) -> Iterator[Run]:
    """The windows of a grid that a plan does not keep, as runs numbered as in the grid.

    Args:
        grid: all windows.
        kept: the plan's, in the order of the grid.
    """
    done = 0
    for run in kept:
        first = grid.index(run.row, run.column)
        yield from grid.runs(done, first)
        done = first + run.count
    yield from grid.runs(done, grid.count)


class Block(NamedTuple):
    """The windows ``row … row + rows - 1`` × ``column … column + columns - 1``."""

    row: int
    column: int
    rows: int
    columns: int

    def holds(self, row: int, column: int) -> bool:
        """Whether a window is in the block."""
        return (
            self.row <= row < self.row + self.rows
            and self.column <= column < self.column + self.columns
        )


class Transform(NamedTuple):
    """Where cells lie: cell (i, j)'s centre is at ``scale · (i, j) + translation``.

    Attributes:
        unit: ``"micrometer"``, or None for level-0 pixels where the slide has no mpp.
        scale: distance between cells, ``(y, x)``.
        translation: centre of cell (0, 0), ``(y, x)``.
    """

    unit: str | None
    scale: tuple[float, float]
    translation: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Raster:
    """The cells that the windows of a grid fill.

    Attributes:
        grid: the windows.
        channels: numbers per cell.
        window: cells that one window fills.
        side: cells per side of a chunk, where memory allows.
        itemsize: bytes per number.
    """

    grid: Grid
    channels: int = 1
    window: Size = _ONE
    side: int = 256
    itemsize: int = 4

    @classmethod
    def of_values(cls, grid: Grid, shape: tuple[int, ...], side: int) -> Raster:
        """The raster for values ``(n, C)`` or ``(n, C, h, w)``.

        Raises:
            StageMismatch: values of another shape.
        """
        if len(shape) not in (2, 4) or 0 in shape[1:]:
            raise StageMismatch(
                "a heatmap needs values of shape (n, C) or (n, C, h, w), but the processor "
                f"returned {shape}"
            )
        window = Size(shape[3], shape[2]) if len(shape) == 4 else _ONE
        return cls(grid, shape[1], window, side)

    @property
    def of_codes(self) -> Raster:
        """The raster that has one byte for each window."""
        return Raster(self.grid, side=self.side, itemsize=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(channels, rows of cells, columns of cells)``."""
        grid, window = self.grid, self.window
        return self.channels, grid.rows * window.height, grid.columns * window.width

    @property
    def chunk(self) -> Size:
        """Windows per chunk: as many as make `side` cells, fewer where they are heavy.

        Where a row of windows is too heavy to wait for the next one, a chunk is one window
        high, and up to four sides wide: that makes fewer files.
        """
        grid, window = self.grid, self.window
        rows = min(self.side // window.height, _BLOCK_BYTES // self._row_bytes, grid.rows)
        wide = self.side if rows > 1 else 4 * self.side
        rows = max(1, rows)
        fits = _CHUNK_BYTES // (rows * self._window_bytes)
        columns = max(1, min(wide // window.width, fits, grid.columns))
        return Size(columns, rows)

    @property
    def chunks(self) -> tuple[int, int, int]:
        """The shape of a chunk, in cells: ``(channels, rows, columns)``."""
        columns, rows = self.chunk
        return self.channels, rows * self.window.height, columns * self.window.width

    @property
    def _window_bytes(self) -> int:
        return self.channels * self.window.height * self.window.width * self.itemsize

    @property
    def _row_bytes(self) -> int:
        """A row of windows of one panel."""
        return self.grid.panel * self._window_bytes

    def block(self, row: int, column: int) -> Block:
        """The block that a window belongs to."""
        grid, chunk = self.grid, self.chunk
        top = row // chunk.height * chunk.height
        rows = min(chunk.height, grid.rows - top)
        first, columns = grid.panel_at(column)
        if self._row_bytes <= _BLOCK_BYTES:
            return Block(top, first, rows, columns)
        span = chunk.width * max(1, _BLOCK_BYTES // (chunk.width * self._window_bytes))
        left = max(first, column // span * span)
        right = min(first + columns, (column // span + 1) * span)
        return Block(top, left, rows, right - left)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block."""
        block = self.block(0, 0)
        return block.rows * block.columns * self._window_bytes

    def cells(self, block: Block) -> tuple[slice, slice]:
        """The rows and columns of cells that a block fills."""
        height, width = self.window.height, self.window.width
        return (
            slice(block.row * height, (block.row + block.rows) * height),
            slice(block.column * width, (block.column + block.columns) * width),
        )

    def transform(self, level: PyramidLevel, mpp: Mpp | None) -> Transform:
        """Where the cells lie on the slide.

        Origin and unit: the corner pixel of level 0 has its centre at 0, as in OME-NGFF; so
        the centre of an extent of e level-0 pixels from the corner on is at ``(e - 1) / 2``.
        A vector stands for its whole window; a map's cell for its share of the window.
        """
        grid, window = self.grid, self.window
        downsample_x, downsample_y = level.downsample
        mpp_x, mpp_y = (mpp.x, mpp.y) if mpp else (1.0, 1.0)
        extent_y = grid.kernel.height / window.height * downsample_y
        extent_x = grid.kernel.width / window.width * downsample_x
        return Transform(
            "micrometer" if mpp else None,
            (
                grid.stride.height / window.height * downsample_y * mpp_y,
                grid.stride.width / window.width * downsample_x * mpp_x,
            ),
            (
                ((extent_y - 1) / 2 + grid.origin[1] * downsample_y) * mpp_y,
                ((extent_x - 1) / 2 + grid.origin[0] * downsample_x) * mpp_x,
            ),
        )
