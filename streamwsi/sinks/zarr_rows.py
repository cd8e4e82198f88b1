"""zarr arrays that grow by rows, in order, and are written durably chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.api import asynchronous
from zarr.codecs import ZstdCodec

from .zarr_arrays import DurableStore, decoding

__all__ = ["Rows", "create_rows", "open_rows", "open_store"]


class Rows:
    """An array ``(n, …)`` and its open chunk: rows that have arrived and are not whole.

    Args:
        array: chunked along the first axis only.
        at: the next row.
    """

    def __init__(self, array: AsyncArray[Any], at: int = 0) -> None:
        self._array = array
        self._at = self._stored = at
        self._open(at // array.chunks[0] * array.chunks[0])

    def _open(self, first: int) -> None:
        array, self._first = self._array, first
        rows = max(0, min(array.chunks[0], array.shape[0] - first))
        fill: Any = array.metadata.fill_value
        self._rows = np.full((rows, *array.shape[1:]), fill, array.dtype)

    async def restore(self) -> None:
        """Take back what is stored of the open chunk."""
        if self._at > self._first:
            async with decoding(self._array):
                stored = await self._array.getitem(slice(self._first, self._at))
            self._rows[: self._at - self._first] = stored

    async def put(self, values: npt.NDArray[Any]) -> None:
        """Take the next rows; chunks that are full are stored."""
        while len(values):
            if self._at == self._first + len(self._rows):
                await self.store()
                self._open(self._at)
            begin = self._at - self._first
            n = min(len(values), len(self._rows) - begin)
            self._rows[begin : begin + n] = values[:n]
            self._at += n
            values = values[n:]

    async def store(self) -> None:
        """Write the open chunk, as far as it is filled."""
        if self._at > self._stored:
            # All of it: a part would be read back and merged with what is stored.
            whole = slice(self._first, self._first + len(self._rows))
            async with decoding(self._array):
                await self._array.setitem(whole, self._rows)
            self._stored = self._at


def open_store(folder: Path) -> DurableStore:
    """The store of a group in a folder."""
    return DurableStore(folder)


async def create_rows(
    store: DurableStore,
    name: str,
    shape: tuple[int, ...],
    rows: int,
    dtype: str,
    fill: Any,
    axes: tuple[str, ...],
) -> Rows:
    """A new array; what an interrupted run left in its place is removed.

    Args:
        store: the group's store.
        name: the array's name in the group.
        shape: of the array.
        rows: of a chunk.
        dtype: numpy dtype.
        fill: the value of rows that have not arrived.
        axes: the names of the dimensions.
    """
    array = await asynchronous.create_array(
        store,
        name=name,
        shape=shape,
        chunks=(min(rows, shape[0]), *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        # Not blosc: its result depends on the number of threads.
        compressors=ZstdCodec(level=1),
        dimension_names=axes,
        overwrite=True,
    )
    return Rows(array)


async def open_rows(store: DurableStore, name: str, shape: tuple[int, ...], at: int) -> Rows | None:
    """The array of an earlier run, to go on at a row; None where it has another shape."""
    array: AsyncArray[Any] = await asynchronous.open_array(store=store, path=name, zarr_format=3)
    if array.shape != shape or array.chunks[1:] != shape[1:]:
        return None
    rows = Rows(array, at)
    await rows.restore()
    return rows
