"""The raster that PyDmed's own reader made of a pdmcsv file, with its rules.

They are kept so that results can be compared with those of PyDmed (amirakbarnejad/PyDmed,
``pdmcsvtoarray`` with ``DefaultWSIxyWHvaltoRasterPoints``); `streamwsi.pdmcsv.raster` has a
better raster.

- ``scale = kernel / h`` for both axes. The value (i, j) of a window goes to cell
  (floor(j + x / scale), floor(i + y / scale)), computed in float64, in the order of the lines:
  the last one wins.
- Only columns and rows that occur become columns and rows of the array; cells that no line
  touches are 0.0.
- A value that is no number is NaN. A line with the wrong number of values counts as zeros. C is
  that of the last line; C = 1 before it is repeated.
- Maps with w > h are read as h × h values from the front of each channel's h × w; maps with
  w < h are an error, as are lines with fewer than ten fields (blank ones too) and files
  without lines.

The file is gone through twice, for the cells that occur and for their values, and parsed once
where its numbers are few.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead
from .fields import Table, parse_lines
from .reader import Lines, lines
from .rows import HEAD

__all__ = ["pydmed_raster"]

_Int = npt.NDArray[np.int64]
_Float = npt.NDArray[np.float64]

#: Values that a line may announce (what is missing counts as zeros, and takes memory), and
#: values handled at once.
_MOST_VALUES = 1 << 22
_GROUP = 1 << 17
#: Bytes of numbers kept from the first time that a file is gone through for the second.
_KEPT = 1 << 25


class _Tables:
    """The numbers of a file, to be gone through twice."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._kept: list[tuple[int, Table]] = []
        self._room = _KEPT

    def heads(self) -> Iterator[tuple[Lines, Table]]:
        """The lines, and their numbers; the values may not have been read."""
        for block in lines(self.path):
            table = parse_lines(block.text, heads=self._room <= 0)
            self._room -= table.nbytes
            if self._room > 0:
                self._kept.append((block.first, table))
            yield block, table

    def values(self) -> Iterator[tuple[int, Table]]:
        """The number of the first line, and the numbers of some lines, when `heads` is through."""
        yield from self._kept
        if self._room <= 0:
            for block in itertools.islice(lines(self.path), len(self._kept), None):
                yield block.first, parse_lines(block.text)


class _Cells(NamedTuple):
    """The columns and rows of cells that occur, ascending, and C of the last line."""

    x: _Float
    y: _Float
    C: int


class _Distinct:
    """A growing set of numbers."""

    def __init__(self) -> None:
        self._parts: list[_Float] = []
        self._waiting = 0

    def add(self, numbers: _Float) -> None:
        self._parts.append(numbers.ravel())
        self._waiting += numbers.size
        if self._waiting > _GROUP:
            self.sorted()

    def sorted(self) -> _Float:
        """All of them, ascending."""
        self._parts = [np.unique(np.concatenate(self._parts))]
        self._waiting = 0
        return self._parts[0]


def pydmed_raster(
    path: str | Path, scale: int, create: Callable[[tuple[int, int, int]], _Float]
) -> tuple[_Float, list[str]]:
    """PyDmed's array for a file.

    Args:
        path: the file.
        scale: how often each cell is repeated along each axis.
        create: makes the array, of zeros.

    Returns:
        The array, ``(rows, columns, C)`` float64, and a note if lines count as zeros.

    Raises:
        CannotRead: PyDmed could not read the file either.
    """
    tables = _Tables(path)
    cells = _occurring(tables)
    raster = create((len(cells.y) * scale, len(cells.x) * scale, cells.C))
    flat = raster.reshape(-1, cells.C)
    zeros, first_zero = 0, 0
    for number, table in tables.values():
        head = table.head
        shape = head[-3:].astype(np.int64)
        wrong = table.counts - len(HEAD) != shape.prod(axis=0)
        if wrong.any():
            first_zero = first_zero or number + int(np.argmax(wrong))
            zeros += int(np.count_nonzero(wrong))
        for run in _alike(np.concatenate([shape, wrong[None]])):
            C, h, w = shape[:, run.start].tolist()
            if wrong[run.start]:
                values = np.zeros((run.stop - run.start, C, h * w))
            else:
                values = table.values(run).reshape(-1, C, h * w)
            points = values[:, :, : h * h].transpose(0, 2, 1)
            x, y = _coordinates(head[:, run])
            column = np.searchsorted(cells.x, x)[:, None, :] * scale
            row = np.searchsorted(cells.y, y)[:, :, None] * scale
            for dy, dx in itertools.product(range(scale), repeat=2):
                at = (row + dy) * len(cells.x) * scale + column + dx
                flat[at.reshape(-1)] = points.reshape(-1, C)
    if not zeros:
        return raster, []
    note = f"{path}: lines with the wrong number of values, which count as zeros: {zeros}"
    return raster, [f"{note}; the first is line {first_zero}"]


def _occurring(tables: _Tables) -> _Cells:
    """From the heads of all lines."""
    path = tables.path
    xs, ys = _Distinct(), _Distinct()
    shapes = set[tuple[int, ...]]()
    C = 0
    for block, table in tables.heads():
        head = _placed(path, block, table)
        shape = head[-3:].astype(np.int64)
        for run in _alike(shape):
            x, y = _coordinates(head[:, run])
            xs.add(x)
            ys.add(y)
            shapes.add(tuple(shape[:, run.start].tolist()))
        C = int(shape[0, -1])
    if not shapes:
        raise CannotRead(f"{path} has no lines to make a raster of")
    if others := {each for each, _, _ in shapes} - {1, C}:
        raise CannotRead(
            f"{path}: some lines have C = {min(others)}, but the last one has {C}; PyDmed "
            "cannot put them into one array"
        )
    return _Cells(xs.sorted(), ys.sorted(), C)


def _placed(path: str | Path, block: Lines, table: Table) -> _Float:
    """The ten numbers at the beginning of each line, ``(10, n)``, if PyDmed could place it."""
    head, counts, first = table.head, table.counts, block.first
    if (counts < len(HEAD)).any():
        number = int(np.argmax(counts < len(HEAD)))
        raise CannotRead(
            f"{path}, line {first + number}: the line has {counts[number]} fields, but "
            f"{len(HEAD)} come before the values"
        )
    kernel, shape = head[5], np.trunc(head[-3:])
    good = np.isfinite(head[:2]).all(axis=0) & np.isfinite(kernel) & (kernel != 0)
    good &= (shape >= 1).all(axis=0) & (shape[1] <= shape[2])
    good &= shape.prod(axis=0) <= _MOST_VALUES
    if first == 1:
        good[0] &= np.isfinite(head[2:4, 0]).all()
    if not good.all():
        number = int(np.argmin(good))
        texts = block.text.split(b"\n")[number].split(b",")[: len(HEAD)]
        shown = ",".join(each[:20].decode("utf-8", "replace") for each in texts)
        raise CannotRead(
            f"{path}, line {first + number}: PyDmed cannot place a line that begins with {shown}"
        )
    return head


def _coordinates(head: _Float) -> tuple[_Float, _Float]:
    """Columns and rows of the cells of windows with one h, each ``(n, h)``."""
    h = int(head[8, 0])
    scale = head[5] / h
    steps = np.arange(h)
    x, y = head[1] / scale, head[0] / scale
    return np.floor(steps + x[:, None]), np.floor(steps + y[:, None])


def _alike(keys: _Int) -> Iterator[slice]:
    """Runs of lines with equal keys, which begin with C, h, w; few where these are large."""
    breaks = (np.flatnonzero((np.diff(keys) != 0).any(axis=0)) + 1).tolist()
    for start, stop in itertools.pairwise([0, *breaks, keys.shape[1]]):
        most = max(1, _GROUP // int(keys[:3, start].prod()))
        for i in range(start, stop, most):
            yield slice(i, min(i + most, stop))
