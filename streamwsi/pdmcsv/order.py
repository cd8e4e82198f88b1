"""The rows of a pdmcsv file from top to bottom, left to right, whatever the order of its lines.

Rows of the same place come in the order of a digest of their text, so that the sequence
depends on the set of lines only.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead
from .reader import Reader, Rows

__all__ = ["OutOfOrder", "in_order", "sorted_rows"]

_Int = npt.NDArray[np.int64]

_READ_BYTES = 1 << 19


class OutOfOrder(Exception):
    """The file's lines are not sorted by place, or two have the same place."""


def in_order(reader: Reader) -> Iterator[Rows]:
    """The rows of a file as it is.

    Raises:
        OutOfOrder: a row does not lie behind the one before it.
    """
    last = (float("-inf"), float("-inf"))
    for rows in reader:
        below, right = np.diff(rows.y), np.diff(rows.x)
        if (rows.y[0], rows.x[0]) <= last or not ((below > 0) | (below == 0) & (right > 0)).all():
            raise OutOfOrder
        last = (rows.y[-1], rows.x[-1])
        yield rows


def sorted_rows(reader: Reader) -> Iterator[Rows]:
    """The rows of a file by y, x, and a digest of their text."""
    reader.restart()
    index = _index(reader)
    try:
        with open(reader.path, "rb", buffering=0) as file:
            yield from _rows_in_order(reader, index, _LineText(reader.path, file))
    except OSError as error:
        raise CannotRead(f"{reader.path} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _LineText:
    """Lines of an open file by where they begin and their bytes."""

    path: str | Path
    file: FileIO

    def __call__(self, begin: int, size: int) -> bytes:
        self.file.seek(begin)
        data = self.file.read(size)
        if len(data) != size or not data.endswith(b"\n"):
            raise CannotRead(f"{self.path} was changed while it was read")
        return data

    def digest(self, begin: int, size: int) -> bytes:
        return hashlib.blake2b(self(begin, size)).digest()


def _rows_in_order(reader: Reader, index: _Index, text: _LineText) -> Iterator[Rows]:
    order = np.lexsort((index.x, index.y))
    for run in _same_places(index.y[order], index.x[order]):
        same = order[run]
        keys = map(text.digest, index.begin[same].tolist(), index.size[same].tolist())
        order[run] = [i for _, i in sorted(zip(keys, same.tolist(), strict=True))]
    begin, size, number = index.begin[order], index.size[order], index.number[order]
    end = begin + size
    for batch in _slices(np.diff(np.cumsum(size) // _READ_BYTES) > 0, len(size)):
        apart = np.flatnonzero(begin[batch][1:] != end[batch][:-1])
        begins = begin[batch][np.concatenate([[0], apart + 1])]
        sizes = end[batch][np.append(apart, -1)] - begins
        parts = map(text, begins.tolist(), sizes.tolist())
        yield from reader.rows(b"".join(parts), number[batch])


def _slices(breaks: npt.NDArray[np.bool_], n: int) -> Iterator[slice]:
    """Slices of ``0 … n``, cut behind each item that is marked."""
    cuts = (np.flatnonzero(breaks) + 1).tolist()
    for start, stop in itertools.pairwise([0, *cuts, n] if n else []):
        yield slice(start, stop)


def _same_places(y: _Int, x: _Int) -> Iterator[slice]:
    for run in _slices((np.diff(y) != 0) | (np.diff(x) != 0), len(y)):
        if run.stop - run.start > 1:
            yield run


class _Index(NamedTuple):
    """Per line: its corner, where it begins in the file, its bytes, its number."""

    y: _Int
    x: _Int
    begin: _Int
    size: _Int
    number: _Int


def _index(reader: Reader) -> _Index:
    parts = []
    for block in reader.blocks():
        end = np.flatnonzero(np.frombuffer(block.text, np.uint8) == ord("\n")) + 1
        size = np.diff(end, prepend=0)
        corner, good = reader.corners(block.text, block.numbers)
        part = block.offset + end - size, size, block.numbers
        parts.append((*corner, *(each[good] for each in part)))
    return _Index(*(np.concatenate(each) for each in zip(*parts, strict=True)))
