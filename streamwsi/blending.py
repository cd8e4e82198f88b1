"""Blending: what becomes of a cell that several windows have a value for.

``mean``      the average of all values;
``gaussian``  the average weighted by a Gaussian around each window's centre, sigma an eighth of
              the window (as nnU-Net does, Isensee et al. 2021, Nature Methods 18:203);
``max``       the largest value, channel by channel;
``crop``      the value of the window in which the cell lies deepest: the distance to the
              window's nearest edge counts, edges at the level's own edge excepted;
``last``      the value of the last window in the plan's order.

Windows whose pixels could not be had do not take part: their cells get what other windows say.

A `Canvas` holds the sums of the cells that are not final yet, as float32. Windows are added in
the plan's order and cells are divided once, when they are final, so that a cell has the same bits
however often a run was interrupted. An average is divided by the weights that were really added
for that cell: it is right at edges, in gaps of a mask and beside damage.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .geometry import Size

__all__ = ["BLENDS", "Blend", "Canvas", "canvas_bytes"]

Blend = Literal["mean", "gaussian", "max", "crop", "last"]
BLENDS: tuple[str, ...] = get_args(Blend)

Edges = tuple[bool, bool, bool, bool]
_SIGMA = 1 / 8


def canvas_bytes(channels: int, rows: int, columns: int) -> int:
    """Bytes of a canvas: sums and weights as float32, and whether cells were lost."""
    return rows * columns * (4 * channels + 4 + 1)


@lru_cache(maxsize=64)
def _gaussian(cells: int) -> npt.NDArray[np.float32]:
    """Weights along an axis, 1 at the centre; far out they stay above zero, for a cell at the
    level's corner may have no other window."""
    distance = (np.arange(cells) + 0.5 - cells / 2) / (_SIGMA * cells)
    weights: npt.NDArray[np.float64] = np.exp(-0.5 * distance**2)
    return weights.astype(np.float32)


@lru_cache(maxsize=64)
def _depth(window: Size, edges: Edges) -> npt.NDArray[np.int32]:
    """How deep each cell lies in a window, ``(h, w)``; ties are broken by the other axis."""
    width, height = window
    far = width + height
    left, right, top, bottom = edges

    def along(cells: int, open_before: bool, open_behind: bool) -> npt.NDArray[np.int64]:
        before = np.full(cells, far) if open_before else np.arange(1, cells + 1)
        behind = np.full(cells, far) if open_behind else np.arange(cells, 0, -1)
        depth: npt.NDArray[np.int64] = np.minimum(before, behind)
        return depth

    x, y = along(width, left, right)[None, :], along(height, top, bottom)[:, None]
    return (np.minimum(x, y) * (2 * far + 1) + x + y).astype(np.int32)


class Canvas:
    """The cells of a panel that are not final yet.

    Args:
        blend: see the module.
        channels: numbers per cell.
        window: cells of a window.
        rows: rows of cells; the first is row `top`.
        columns: columns of cells; the first is the panel's first.

    Attributes:
        top: the map's row that the first row is.
        values: ``(channels, rows, columns)`` float32.
        weights: ``(rows, columns)``: added weights (averages), depths (crop), or 1 where there
            is a value; 0 where there is none.
        lost: ``(rows, columns)`` bool: whether a window with pixels that could not be had
            covers the cell.
    """

    def __init__(self, blend: Blend, channels: int, window: Size, rows: int, columns: int) -> None:
        self.blend = blend
        self.window = window
        self.top = 0
        self._idle = np.float32(-np.inf if blend == "max" else 0)
        self.values = np.full((channels, rows, columns), self._idle, np.float32)
        kind = np.int32 if blend == "crop" else np.float32
        self.weights: npt.NDArray[Any] = np.zeros((rows, columns), kind)
        self.lost = np.zeros((rows, columns), np.bool_)

    def _part(self, row: int, column: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Cells of the canvas that a window covers, and the same cells of the window."""
        rows, columns = self.weights.shape
        row -= self.top
        up, left = max(0, -row), max(0, -column)
        down = min(self.window.height, rows - row)
        right = min(self.window.width, columns - column)
        there = slice(row + up, row + down), slice(column + left, column + right)
        return there, (slice(up, down), slice(left, right))

    def add(self, row: int, column: int, value: npt.NDArray[Any], edges: Edges) -> None:
        """Blend in a window.

        Args:
            row, column: of its first cell, in rows of the map and columns of the canvas; what
                lies outside the canvas is left out.
            value: ``(channels, h, w)``.
            edges: see `Mosaic.edges`.
        """
        there, here = self._part(row, column)
        cells, new = self.values[:, there[0], there[1]], value[:, here[0], here[1]]
        if not new.size:
            return
        weights = self.weights[there]
        if self.blend == "mean":
            cells += new
            weights += 1
        elif self.blend == "gaussian":
            y, x = _gaussian(self.window.height)[here[0]], _gaussian(self.window.width)[here[1]]
            weight = y[:, None] * x
            cells += new * weight
            weights += weight
        elif self.blend == "crop":
            depth = _depth(self.window, edges)[here]
            deeper = depth > weights
            np.copyto(cells, new, where=deeper)
            np.copyto(weights, depth, where=deeper)
        else:
            if self.blend == "max":
                np.maximum(cells, new, out=cells)
            else:
                cells[...] = new
            weights[...] = 1

    def lose(self, row: int, column: int) -> None:
        """Note that a window could not be computed."""
        there, _ = self._part(row, column)
        self.lost[there] = True

    def final(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """The values of the first rows and columns, NaN where there are none (a copy)."""
        values, weights = self.values[:, :rows, :columns], self.weights[:rows, :columns]
        if self.blend in ("mean", "gaussian"):
            with np.errstate(invalid="ignore", divide="ignore"):
                done: npt.NDArray[np.float32] = values / weights
            return done
        return np.where(weights > 0, values, np.float32(np.nan))

    def codes(self, rows: int, columns: int, computed: int, lost: int) -> npt.NDArray[np.uint8]:
        """Of the first rows and columns: `computed` where there is a value, `lost` where there
        would be one, else 0."""
        codes = np.where(self.lost[:rows, :columns], np.uint8(lost), np.uint8(0))
        codes[self.weights[:rows, :columns] > 0] = computed
        return codes

    def advance(self, rows: int) -> None:
        """Forget the first rows; the others move up."""
        for plane, idle in (
            (self.values, self._idle),
            (self.weights, 0),
            (self.lost, False),
        ):
            kept = plane.shape[-2] - rows
            # In steps that do not overlap: numpy would make a copy of them all.
            for i in range(0, kept, rows):
                step = min(rows, kept - i)
                plane[..., i : i + step, :] = plane[..., i + rows : i + rows + step, :]
            plane[..., kept:, :] = idle
        self.top += rows

    def saved(self, rows: int, columns: slice) -> bytes:
        """The first rows of some columns, to go on with elsewhere."""
        planes = (self.values[:, :rows, columns], self.weights[:rows, columns])
        return b"".join(p.tobytes() for p in (*planes, self.lost[:rows, columns]))

    def restore(self, first: int, rows: int, columns: int, data: bytes) -> None:
        """Begin some rows of the first columns with what `saved` gave for them; zeros stand for
        cells that nothing was added to."""
        n, channels = rows * columns, len(self.values)
        values = np.frombuffer(data, np.float32, n * channels)
        weights = np.frombuffer(data, self.weights.dtype, n, values.nbytes)
        lost = np.frombuffer(data, np.bool_, n, values.nbytes + weights.nbytes)
        there = slice(first, first + rows), slice(0, columns)
        begun = weights.reshape(rows, columns) > 0
        values = values.reshape(channels, rows, columns)
        self.values[:, there[0], there[1]] = np.where(begun, values, self._idle)
        self.weights[there] = weights.reshape(rows, columns)
        self.lost[there] = lost.reshape(rows, columns)

    def clear(self, top: int) -> None:
        """Begin anew at a row of the map."""
        self.values[...] = self._idle
        self.weights[...] = 0
        self.lost[...] = False
        self.top = top
