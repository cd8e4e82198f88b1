"""Tables in an HDF5 file that is laid out once, and then written in place.

Where the number of rows is known, a dataset can be *contiguous*: one stretch of the file, at an
offset that HDF5 tells (``H5Dget_offset``), with nothing else to be kept up to date as rows
arrive. So HDF5 writes the file's few kilobytes of metadata, reserves the stretches without
filling them, and is done; rows are written by ``pwrite``. Such a file cannot be left torn by a
killed process, its bytes depend on the rows only (datasets bear no times), and a row that is
written again changes nothing. Rows that were never written are zeros.

Everything here blocks: call it in a thread. Importing this module imports h5py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p, h5s, h5t

__all__ = ["Column", "Table", "create_table", "open_table"]


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset.

    Attributes:
        name: in the root group.
        shape: rows first.
        dtype: of numpy, little-endian.
        attributes: of the dataset.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Table:
    """An open file.

    Args:
        path: the file.
        columns: its datasets.
        offsets: where their rows begin in the file.
    """

    def __init__(self, path: Path, columns: Sequence[Column], offsets: Sequence[int]) -> None:
        self._columns = columns
        self._offsets = offsets
        self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def write(self, row: int, *values: npt.NDArray[Any]) -> None:
        """Write rows from `row` on: an array for each column."""
        for column, offset, some in zip(self._columns, self._offsets, values, strict=True):
            rows = np.ascontiguousarray(some, column.dtype)
            data = rows.reshape(-1).view(np.uint8).data
            at = offset + row * rows.dtype.itemsize * int(np.prod(column.shape[1:]))
            while data:
                n = os.pwrite(self._fd, data, at)
                data, at = data[n:], at + n

    def sync(self) -> None:
        """Make all that was written durable."""
        os.fsync(self._fd)

    def is_at(self, path: Path) -> bool:
        """Whether the file is what is there.

        Raises:
            OSError: nothing is there.
        """
        return os.path.samestat(path.stat(), os.fstat(self._fd))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def create_table(path: Path, columns: Sequence[Column]) -> Table:
    """Lay out a new file.

    Raises:
        OSError: it is there already, or cannot be made.
    """
    # Mode x follows no link. Locks are not HDF5's: some file systems have none.
    with h5py.File(path, "x", locking=False) as file:
        offsets = [_laid_out(file, column) for column in columns]
    return Table(path, columns, offsets)


def _laid_out(file: h5py.File, column: Column) -> int:
    how = h5p.create(h5p.DATASET_CREATE)
    how.set_layout(h5d.CONTIGUOUS)
    how.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5d.FILL_TIME_NEVER)
    how.set_obj_track_times(False)
    kind = h5t.py_create(np.dtype(column.dtype), logical=True)
    made = h5d.create(file.id, column.name.encode(), kind, h5s.create_simple(column.shape), how)
    attributes = h5py.Dataset(made).attrs
    for name, value in column.attributes.items():
        attributes[name] = value
    return made.get_offset() or 0  # None where there are no rows


def open_table(path: Path, columns: Sequence[Column]) -> Table | None:
    """The file of an earlier run; None where it does not hold such columns.

    Raises:
        OSError: it is not there, or is no HDF5 file.
    """
    with h5py.File(path, "r", locking=False) as file:
        offsets = []
        for column in columns:
            found = file.get(column.name)
            if not isinstance(found, h5py.Dataset):
                return None
            offset = found.id.get_offset()
            if (found.shape, found.dtype) != (column.shape, np.dtype(column.dtype)) or not offset:
                return None
            offsets.append(offset)
    return Table(path, columns, offsets)
