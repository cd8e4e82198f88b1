"""The mean raster: rows in the order of their places (`streamwsi.pdmcsv.order`), added up in a
band of cells.

`streamwsi.pdmcsv.raster` says what the raster is. Sums are sequential in the order of the rows,
so that they do not depend on how rows are batched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead
from .reader import Rows

__all__ = ["Means"]

_Int = npt.NDArray[np.int64]
_Float = npt.NDArray[np.float64]

#: Numbers added at once, and numbers in the open band (or what one window needs).
_GROUP = 1 << 16
_BAND = 1 << 19


class _Axis(NamedTuple):
    """One axis of the raster: `cells` cells of ``p / q`` level pixels."""

    cells: int
    p: int
    q: int

    @classmethod
    def of(cls, size: int, kernel: int, values: int) -> _Axis:
        p, q = kernel // gcd(kernel, values), values // gcd(kernel, values)
        return cls(-(-size * q // p), p, q)

    def place(self, corner: _Int) -> tuple[_Int, _Float]:
        """The first cell that windows touch; the shares of a value in it and in the next."""
        first, rest = np.divmod(corner * self.q, self.p)
        return first, np.stack([self.p - rest, rest], axis=1) / self.p


@dataclass(frozen=True, slots=True)
class Means:
    """The raster that fits a row, and all rows that agree with it.

    Attributes:
        path: the file, for messages.
        first: the row that the others must agree with.
        scale: cells per value along each axis.
        y, x: the axes.
    """

    path: str | Path
    first: Rows
    scale: int
    y: _Axis
    x: _Axis

    @classmethod
    def of(cls, path: str | Path, first: Rows, scale: int) -> Means:
        """The raster for rows like the first of `first`.

        Raises:
            CannotRead: its numbers are beyond what can be placed exactly.
        """
        _, h, w = first.values.shape[1:]
        H, W, kernel = int(first.H[0]), int(first.W[0]), int(first.kernel[0])
        if (max(H, W) + kernel) * max(h, w) * scale >= 2**62:
            raise CannotRead(f"{path}: H, W or kernel is too large: {H}, {W}, {kernel}")
        y, x = _Axis.of(H, kernel, h * scale), _Axis.of(W, kernel, w * scale)
        return cls(path, first, scale, y, x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(rows, columns, C)``."""
        return self.y.cells, self.x.cells, self.first.values.shape[1]

    def fill(self, raster: _Float, batches: Iterator[Rows]) -> None:
        """Write all cells of `raster` from rows in order.

        Raises:
            CannotRead: a row does not agree with the first one.
        """
        band = _Band(raster)
        for rows in batches:
            self._check(rows)
            first = self.first
            kernel, H, W = rows.kernel, first.H[0], first.W[0]
            top, share_y = self.y.place(np.clip(rows.y, -kernel, H + kernel))
            left, share_x = self.x.place(np.clip(rows.x, -kernel, W + kernel))
            s = self.scale
            most = max(1, _GROUP // (rows.values[0].size * s * s))
            for i in range(0, len(rows), most):
                at = slice(i, i + most)
                values = rows.values[at].repeat(s, axis=2).repeat(s, axis=3)
                band.add(top[at], left[at], share_y[at], share_x[at], values)
        band.close()

    def _check(self, rows: Rows) -> None:
        first = self.first
        C, h, w = rows.values.shape[1:]
        C0, h0, w0 = first.values.shape[1:]
        kernel = Fraction(int(first.kernel[0]) * h, h0)
        H, W, level = first.H[0], first.W[0], first.level[0]
        same = (rows.H == H) & (rows.W == W) & (rows.level == level)
        same &= rows.kernel == (int(kernel) if kernel.denominator == 1 else -1)
        if C != C0 or h * w0 != h0 * w:
            same[:] = False
        if not same.all():
            number = rows.line[int(np.argmin(same))]
            raise CannotRead(
                f"{self.path}, line {number}: level, H, W, C and the size of a value (kernel / h "
                f"× kernel / w) must be those of line {first.line[0]} to make one raster"
            )


class _Band:
    """Sums of the rows of cells that windows still come for; the others are written.

    Args:
        raster: ``(rows, columns, C)``, to be written from top to bottom.
    """

    def __init__(self, raster: _Float) -> None:
        self._raster = raster
        self._top = 0
        self._resize(max(1, min(len(raster), _BAND // raster[0].size)))

    def _resize(self, rows: int) -> None:
        self._rows = rows
        # x + -0.0 is x for each x, -0.0 too.
        self._sums = np.full((rows, *self._raster.shape[1:]), -0.0)
        self._weights = np.zeros((rows, self._raster.shape[1]))

    def add(self, top: _Int, left: _Int, share_y: _Float, share_x: _Float, values: _Float) -> None:
        """Add windows with ascending `top`, as many at a time as the band has rows for."""
        height = values.shape[2] + 1
        start = 0
        while start < len(top):
            lowest = max(top[start], 0) + max(self._rows - height, 0)
            stop = max(start + 1, int(np.searchsorted(top, lowest, "right")))
            at = slice(start, stop)
            self._make_room(int(top[start]), int(top[stop - 1]) + height)
            self._add(top[at], left[at], share_y[at], share_x[at], values[at])
            start = stop

    def _make_room(self, first: int, stop: int) -> None:
        if min(stop, len(self._raster)) > self._top + self._rows:
            self._write(min(max(first, 0), len(self._raster)))
            if stop - self._top > self._rows:
                kept = self._sums, self._weights
                self._resize(stop - self._top)
                self._sums[: len(kept[0])], self._weights[: len(kept[1])] = kept

    def _add(self, top: _Int, left: _Int, share_y: _Float, share_x: _Float, values: _Float) -> None:
        rows, columns, C = self._raster.shape
        aligned = not (share_y[:, 1].any() or share_x[:, 1].any())
        corners = np.array([[0, 0]] if aligned else [[0, 0], [0, 1], [1, 0], [1, 1]])
        weight = (share_y[:, corners[:, 0]] * share_x[:, corners[:, 1]])[:, :, None, None]
        # Axes from here on: window, corner, row, column, and channel before row.
        y = (top[:, None] + corners[:, 0])[:, :, None, None] + np.arange(values.shape[2])[:, None]
        x = (left[:, None] + corners[:, 1])[:, :, None, None] + np.arange(values.shape[3])
        inside = (weight > 0) & ((y >= 0) & (y < rows)) & ((x >= 0) & (x < columns))
        cell = (y - self._top) * columns + x
        number = cell[:, :, None] * C + np.arange(C)[:, None, None]
        weights = np.broadcast_to(weight, cell.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            terms = values[:, None] * weight[:, :, None]
            if inside.all():
                np.add.at(self._weights.reshape(-1), cell.reshape(-1), weights.reshape(-1))
                np.add.at(self._sums.reshape(-1), number.reshape(-1), terms.reshape(-1))
            else:
                np.add.at(self._weights.reshape(-1), cell[inside], weights[inside])
                inside = np.broadcast_to(inside[:, :, None], number.shape)
                np.add.at(self._sums.reshape(-1), number[inside], terms[inside])

    def _write(self, stop: int) -> None:
        """Write the rows before `stop` and move the band there."""
        if stop <= self._top:
            return
        n = min(stop - self._top, self._rows)
        with np.errstate(invalid="ignore"):
            means = self._sums[:n] / self._weights[:n, :, None]
        self._raster[self._top : self._top + n] = means
        self._raster[self._top + n : stop] = np.nan
        kept = self._sums[n:].copy(), self._weights[n:].copy()
        self._resize(self._rows)
        self._sums[: len(kept[0])], self._weights[: len(kept[1])] = kept
        self._top = stop

    def close(self) -> None:
        """Write what is left."""
        self._write(len(self._raster))
