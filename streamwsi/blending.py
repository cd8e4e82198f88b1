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

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .geometry import Size

__all__ = ["BLENDS", "PADDING", "Blend", "Canvas", "Strip", "canvas_bytes"]

Blend = Literal["mean", "gaussian", "max", "crop", "last"]
BLENDS: tuple[str, ...] = get_args(Blend)

Edges = tuple[bool, bool, bool, bool]
_SIGMA = 1 / 8

#: Columns that a strip's rows have in memory beyond those of its cells. Where rows lie a multiple
#: of 4096 bytes apart, those that a window is added to push one another out of the cache: adding
#: took a fifth longer.
PADDING = 16


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


@lru_cache(maxsize=4)
def _gaussian_window(window: Size) -> npt.NDArray[np.float32]:
    weights: npt.NDArray[np.float32] = _gaussian(window.height)[:, None] * _gaussian(window.width)
    return weights


@lru_cache(maxsize=64)
def _depth(window: Size, edges: Edges) -> npt.NDArray[np.uint32]:
    """How deep each cell lies in a window, ``(h, w)``; ties are broken by the other axis."""
    width, height = window
    far = max(window) + 1
    left, right, top, bottom = edges

    def along(cells: int, open_before: bool, open_behind: bool) -> npt.NDArray[np.int64]:
        before = np.full(cells, far) if open_before else np.arange(1, cells + 1)
        behind = np.full(cells, far) if open_behind else np.arange(cells, 0, -1)
        depth: npt.NDArray[np.int64] = np.minimum(before, behind)
        return depth

    x, y = along(width, left, right)[None, :], along(height, top, bottom)[:, None]
    deep = np.minimum(x, y) * (2 * far + 1) + x + y
    # Beyond 46 000 cells a side the deepest are taken to be equally deep.
    return deep.clip(max=np.iinfo(np.uint32).max).astype(np.uint32)


class Strip:
    """Rows of cells of a panel, not final yet.

    Args:
        blend: see the module.
        channels: numbers per cell.
        rows, columns: of cells.

    Attributes:
        values: ``(channels, rows, columns)`` float32.
        weights: ``(rows, columns)``: added weights (averages), depths (crop), or 1 where there
            is a value; 0 where there is none.
        lost: ``(rows, columns)`` bool: whether a window with pixels that could not be had
            covers the cell; None where there was none.
    """

    def __init__(self, blend: Blend, channels: int, rows: int, columns: int) -> None:
        self._blend = blend
        self._idle = np.float32(-np.inf if blend == "max" else 0)
        padded = np.full((channels, rows, columns + PADDING), self._idle, np.float32)
        self.values = padded[:, :, :columns]
        kind = np.uint32 if blend == "crop" else np.float32
        self.weights: npt.NDArray[Any] = np.zeros((rows, columns), kind)
        self.lost: npt.NDArray[np.bool_] | None = None

    def clear(self) -> None:
        """Begin anew."""
        self.values.fill(self._idle)
        self.weights.fill(0)
        self.lost = None

    def lose(self, rows: slice, columns: slice) -> None:
        """Note that a window there could not be computed."""
        if self.lost is None:
            self.lost = np.zeros(self.weights.shape, np.bool_)
        self.lost[rows, columns] = True

    def final(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """The values of the first rows and columns, NaN where there are none: a view of
        `values`, which are final afterwards."""
        values, weights = self.values[:, :rows, :columns], self.weights[:rows, :columns]
        if self._blend in ("mean", "gaussian"):
            with np.errstate(invalid="ignore", divide="ignore"):
                values /= weights
        else:
            np.copyto(values, np.float32(np.nan), where=weights == 0)
        return values

    def codes(self, rows: int, columns: int, computed: int, lost: int) -> npt.NDArray[np.uint8]:
        """Of the first rows and columns: `computed` where there is a value, `lost` where there
        would be one, else 0."""
        there = self.weights[:rows, :columns] > 0
        codes = there.view(np.uint8)
        codes *= np.uint8(computed)
        if self.lost is not None:
            codes[self.lost[:rows, :columns] & ~there] = lost
        return codes

    def saved(self, rows: int, columns: slice) -> bytes | None:
        """The first rows of some columns, to go on with elsewhere; None where nothing was begun."""
        weights = self.weights[:rows, columns]
        lost = np.zeros_like(weights, np.bool_) if self.lost is None else self.lost[:rows, columns]
        if not weights.any() and not lost.any():
            return None
        planes = (self.values[:, :rows, columns], weights, lost)
        return b"".join(plane.tobytes() for plane in planes)

    def restore(self, rows: int, columns: int, data: bytes) -> None:
        """Begin the first rows and columns with what `saved` gave for them; zeros stand for
        cells that nothing was added to."""
        n, channels = rows * columns, len(self.values)
        values = np.frombuffer(data, np.float32, n * channels)
        weights = np.frombuffer(data, self.weights.dtype, n, values.nbytes)
        lost = np.frombuffer(data, np.bool_, n, values.nbytes + weights.nbytes)
        weights = weights.reshape(rows, columns)
        values = values.reshape(channels, rows, columns)
        self.values[:, :rows, :columns] = np.where(weights > 0, values, self._idle)
        self.weights[:rows, :columns] = weights
        if lost.any():
            self.lost = np.zeros(self.weights.shape, np.bool_)
            self.lost[:rows, :columns] = lost.reshape(rows, columns)


class Canvas:
    """The cells of a panel that are not final yet, in strips of as many rows as a band has.

    Weights are added up along a row of windows first, and spread over its cells when the row
    is complete: where windows overlap, that is a fraction of the additions.

    Args:
        blend: see the module.
        channels: numbers per cell.
        window: cells of a window.
        band: rows of cells of a strip.
        bands: how many strips there are.
        columns: columns of cells; the first is the panel's first.

    Attributes:
        top: the map's row that the first row is.
    """

    def __init__(
        self, blend: Blend, channels: int, window: Size, band: int, bands: int, columns: int
    ) -> None:
        self._blend = blend
        self._window = window
        self._band = band
        self._columns = columns
        self.top = 0
        self._strips = deque(Strip(blend, channels, band, columns) for _ in range(bands))
        weighted = blend == "gaussian"
        self._along = _gaussian(window.width) if weighted else np.ones(window.width, np.float32)
        self._down = _gaussian(window.height) if weighted else None
        self._profile = np.zeros(columns)
        self._row: int | None = None
        self._scratch = np.empty((channels, window.height, window.width), np.float32)

    def _parts(self, row: int) -> Iterator[tuple[Strip, slice, slice]]:
        """The strips that a row of windows reaches: their rows, and the windows'."""
        first, stop = row - self.top, row - self.top + self._window.height
        for number in range(max(0, first // self._band), len(self._strips)):
            begin = number * self._band
            here = slice(max(0, begin - first), min(stop, begin + self._band) - first)
            if here.stop <= here.start:
                break
            there = slice(here.start + first - begin, here.stop + first - begin)
            yield self._strips[number], there, here

    def _across(self, column: int) -> tuple[slice, slice]:
        """The columns of the canvas that a window covers, and the window's."""
        here = slice(max(0, -column), min(self._window.width, self._columns - column))
        return slice(column + here.start, max(column + here.start, column + here.stop)), here

    def add(self, row: int, column: int, value: npt.NDArray[Any], edges: Edges) -> None:
        """Blend in a window; those of a row come one after another.

        Args:
            row, column: of its first cell, in rows of the map and columns of the canvas; what
                lies outside the canvas is left out.
            value: ``(channels, h, w)``.
            edges: see `Mosaic.edges`.
        """
        if row != self._row:
            self._end_row()
            self._row = row
        x, from_x = self._across(column)
        if x.start == x.stop:
            return
        if self._blend != "crop":
            self._profile[x] += self._along[from_x]
        if self._blend == "gaussian":
            value = np.multiply(value, _gaussian_window(self._window), out=self._scratch)
        for strip, y, from_y in self._parts(row):
            cells, new = strip.values[:, y, x], value[:, from_y, from_x]
            if self._blend in ("mean", "gaussian"):
                cells += new
            elif self._blend == "max":
                np.maximum(cells, new, out=cells)
            elif self._blend == "last":
                cells[...] = new
            else:
                depth, weights = _depth(self._window, edges)[from_y, from_x], strip.weights[y, x]
                deeper = depth > weights
                np.copyto(cells, new, where=deeper)
                np.copyto(weights, depth, where=deeper)

    def _end_row(self) -> None:
        """Spread the weights of the row of windows that is complete."""
        if self._row is None or self._blend == "crop":
            return
        (covered,) = np.nonzero(self._profile)
        if len(covered):
            x = slice(int(covered[0]), int(covered[-1]) + 1)
            profile = self._profile[x]
            for strip, y, here in self._parts(self._row):
                weights = strip.weights[y, x]
                if self._down is not None:
                    # Row by row: the product of all needs as much memory again.
                    for line, weight in zip(weights, self._down[here].tolist(), strict=True):
                        line += weight * profile
                elif self._blend == "mean":
                    weights += profile.astype(np.float32)
                else:
                    weights[:, profile > 0] = 1
            self._profile.fill(0)
        self._row = None

    def lose(self, row: int, column: int) -> None:
        """Note that a window could not be computed."""
        x, _ = self._across(column)
        for strip, y, _ in self._parts(row):
            strip.lose(y, x)

    def take(self) -> Strip:
        """The first strip, whose cells no further window reaches: it is no part of the canvas
        any more, until it is given back."""
        self._end_row()
        self.top += self._band
        return self._strips.popleft()

    def give(self, strip: Strip) -> None:
        """Append a strip that has been cleared."""
        self._strips.append(strip)

    def restore(self, row: int, rows: int, columns: int, data: bytes) -> None:
        """Begin the strip of a row of the map, see `Strip.restore`."""
        self._strips[(row - self.top) // self._band].restore(rows, columns, data)

    def clear(self, top: int) -> None:
        """Begin anew at a row of the map."""
        for strip in self._strips:
            strip.clear()
        self._profile.fill(0)
        self._row = None
        self.top = top
