"""zarr arrays that are written durably, block by block.

Only zarr's asynchronous interface is used: its synchronous one keeps an event loop in a thread
that nobody ends.
Importing this module imports zarr; `streamwsi.sinks.heatmap_zarr` does so when it writes.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.api import asynchronous
from zarr.core.buffer import Buffer
from zarr.errors import ArrayNotFoundError
from zarr.storage import LocalStore

from ..errors import CannotWrite
from ..geometry import Run
from ..heatmaps import Block, Raster
from ..limits import cores
from .chunking import Chunking, tiles, within
from .compression import blosc_zstd
from .durable import make_folders, replace_file, sync_folders

__all__ = [
    "AnyArray",
    "DurableStore",
    "Front",
    "create_array",
    "decoding",
    "in_a_loop",
    "in_a_loop_of_its_own",
    "open_array",
    "store_cells",
    "store_files",
]

AnyArray = AsyncArray[Any]
T = TypeVar("T")

#: Beyond this, values are copied in a thread.
_QUICK_BYTES = 1 << 20


class DurableStore(LocalStore):
    """zarr's store for a local folder, with files that are whole at every instant.

    Each file is fsynced and renamed into place; `sync` makes the names durable. The folder
    itself is never made again where somebody has removed it.

    zarr writes many chunks at the same time, and when one fails it goes on with the others
    behind our back: `settle` ends that.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self._changed: set[Path] = set()
        self._running = 0
        self._settled: anyio.Event | None = None

    async def set(self, key: str, value: Buffer) -> None:
        await self._call(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        path = self.root / key
        self._changed.update(make_folders(path.parent, self.root))
        temporary = self.root / f".{key.replace('/', '.')}.partial"
        replace_file(path, value.to_bytes(), temporary)
        self._changed.add(path.parent)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # zarr's own writes a file of another name first, which would stay where a run is killed.
        if not (self.root / key).exists():
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        await self._call(self.delete_sync, key)

    def delete_sync(self, key: str) -> None:
        path = self.root / key
        if path.exists():
            path.unlink()
            self._changed.add(path.parent)

    async def _call(self, function: Callable[..., None], *args: Any) -> None:
        if self._settled is not None:
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        self._running += 1
        try:
            # anyio's thread rather than asyncio's: being cancelled, it waits for the thread.
            await anyio.to_thread.run_sync(function, *args)
        finally:
            self._running -= 1
            if self._settled is not None and self._running == 0:
                self._settled.set()

    async def settle(self) -> None:
        """Refuse all further writing, and wait for what is under way."""
        self._settled = anyio.Event()
        if self._running:
            await self._settled.wait()

    async def sync(self) -> None:
        """Make all that was set and deleted durable."""
        changed, self._changed = self._changed, set()
        await anyio.to_thread.run_sync(sync_folders, sorted(changed))


class Front:
    """An array's open block: what has begun to arrive and is not whole.

    Windows must come in the order of the raster's grid.

    Attributes:
        keeps_stored: whether a block that is opened begins with what is stored of it, rather
            than empty.
    """

    def __init__(self, array: AnyArray, raster: Raster) -> None:
        self._array = array
        self._raster = raster
        self._block = Block(0, 0, 0, 0)
        self._cells = self._empty(self._block)
        self.keeps_stored = False

    def _empty(self, block: Block) -> npt.NDArray[Any]:
        rows, columns = self._raster.cells(block)
        shape = (self._raster.channels, rows.stop - rows.start, columns.stop - columns.start)
        fill: Any = self._array.metadata.fill_value
        return np.full(shape, fill, self._array.dtype)

    def _selection(self) -> tuple[slice, ...]:
        return (slice(None),) * (self._array.ndim - 2) + self._raster.cells(self._block)

    async def restore(self, run: Run) -> None:
        """Open the block of `run` with what is stored of it."""
        await self._restore(self._raster.block(run.row, run.column))

    async def _restore(self, block: Block) -> None:
        self._block = block
        async with decoding(self._array):
            stored = np.array(await self._array.getitem(self._selection()))
        self._cells = stored.reshape(self._empty(self._block).shape)

    async def put(self, run: Run, values: npt.NDArray[Any]) -> None:
        """Take the windows of a run, ``(n, C, h, w)``; blocks that they leave are stored."""
        column, end = run.column, run.column + run.count
        while column < end:
            if not self._block.holds(run.row, column):
                await self.store()
                block = self._raster.block(run.row, column)
                if self.keeps_stored:
                    await self._restore(block)
                else:
                    self._block, self._cells = block, self._empty(block)
            n = min(end, self._block.column + self._block.columns) - column
            part, values = values[:n], values[n:]
            if part.nbytes <= _QUICK_BYTES:
                self._lay(run.row, column, part)
            else:
                await anyio.to_thread.run_sync(self._lay, run.row, column, part)
            column += n

    def _lay(self, row: int, column: int, values: npt.NDArray[Any]) -> None:
        n, channels, height, width = values.shape
        top, left = (row - self._block.row) * height, (column - self._block.column) * width
        cells = self._cells[:, top : top + height, left : left + n * width]
        # A view that splits the columns into windows, so that each number is copied once.
        cells.reshape(channels, height, n, width)[:] = values.transpose(1, 2, 0, 3)

    async def store(self) -> None:
        """Write the open block, as far as it is filled."""
        if self._block.rows:
            await store_cells(self._array, self._raster.cells(self._block), self._cells)


@asynccontextmanager
async def decoding(array: AnyArray) -> AsyncIterator[None]:
    """Stored chunks are read back where a block shares them: they may have been damaged."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise CannotWrite(
            f"{array.store_path} holds a chunk that cannot be read back ({error}); "
            "--overwrite starts afresh"
        ) from error


async def store_cells(
    array: AnyArray, cells: tuple[slice, slice], values: npt.NDArray[Any]
) -> None:
    """Write rows and columns of all channels, ``(C, rows, columns)``; of an array without a
    channel axis one channel, or ``(rows, columns)``."""
    if values.ndim > array.ndim:
        values = values[0]
    selection = (slice(None),) * (array.ndim - 2) + cells
    async with decoding(array):
        await in_a_loop_of_its_own(array.setitem, selection, values)


async def store_files(
    array: AnyArray,
    cells: tuple[slice, slice],
    values: npt.NDArray[Any],
    known: npt.NDArray[np.bool_],
) -> None:
    """Write rows and columns as `store_cells` does, file by file; those that nothing is known
    of are not written.

    Args:
        array: whose files begin where `cells` does.
        cells: rows and columns.
        values: see `store_cells`.
        known: ``(rows, columns)``: cells that have a value.
    """
    if values.ndim > array.ndim:
        values = values[0]
    # zarr compares each chunk with the fill value, which takes as long as compressing it.
    whole = array.with_config({"write_empty_chunks": True})
    every = (slice(None),) * (array.ndim - 2)
    async with decoding(array):
        for at in tiles(cells, (array.shards or array.chunks)[-2:]):
            here = within(at, cells)
            if known[here].any():
                target = whole if known[here].all() else array
                await target.setitem((*every, *at), values[(*every, *here)])


async def in_a_loop_of_its_own(
    function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
) -> T:
    """Call and await a function of zarr's in a thread.

    zarr compares and copies chunks between its awaits, more than half of the time that storing a
    map takes: reading and inference would wait for that in this loop.
    """
    return await anyio.to_thread.run_sync(lambda: in_a_loop(function, *args, **kwargs))


def in_a_loop(function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
    """Call a function of zarr's, and return when all that it has begun is done."""

    async def whole() -> T:
        # Four more than there are cores, as is usual, would only hold more memory.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(cores()))
        try:
            return await function(*args, **kwargs)
        finally:
            # Where one chunk fails, zarr leaves the others to themselves: none goes on behind us.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others)

    return asyncio.run(whole())


async def create_array(
    store: DurableStore,
    path: str,
    shape: tuple[int, ...],
    cut: Chunking,
    dtype: str,
    fill: float,
    axes: str,
) -> AnyArray:
    """A new array; what an interrupted run left in its place is removed.

    Args:
        store: the group's store.
        path: the array's name in the group.
        shape: its sizes.
        cut: its chunks and shards.
        dtype: numpy dtype.
        fill: the value of cells that nothing was computed for.
        axes: the names of the dimensions, a letter each.
    """
    return await asynchronous.create_array(
        store,
        name=path,
        shape=shape,
        chunks=cut.chunks,
        shards=cut.shards,
        dtype=dtype,
        fill_value=fill,
        compressors=blosc_zstd(cut.chunks, np.dtype(dtype).itemsize),
        dimension_names=axes,
        overwrite=True,
    )


async def open_array(
    store: DurableStore, path: str, shape: tuple[int, ...], cut: Chunking, dtype: str
) -> AnyArray | None:
    """The array of an earlier run; None where it is gone, or not of that shape, cut and dtype."""
    try:
        array: AnyArray = await asynchronous.open_array(store=store, path=path, zarr_format=3)
    except ArrayNotFoundError:
        return None
    found = array.shape, Chunking(array.chunks, array.shards), array.dtype
    return array if found == (shape, cut, np.dtype(dtype)) else None
