"""The smaller levels of a finished zarr array, made one from another in bounded memory.

Level k lies beside level 0 under the name k. What is made is what `streamwsi.sinks.pyramids`
says; a level's chunks, shards, compressor and fill value are those of level 0, so chunks that
are all NaN need no file where level 0's need none.

Nothing is kept of an earlier, interrupted call: the levels are made anew, and the bytes are the
same. Only what refers to the levels, which is written after them, makes them part of an image.

Importing this module imports zarr.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.api import asynchronous
from zarr.core.buffer import default_buffer_prototype

from .chunking import Chunking, Selection, tiles, within
from .pyramids import AT_ONCE, level_shapes, mean_of_cells, most_frequent_of_cells, piece, written
from .zarr_arrays import DurableStore, decoding

__all__ = ["build_pyramid", "shown_ranges"]

#: Channels: their smallest level is read at once, 256 KiB each at most.
_MOST_SHOWN = 64

Cells = npt.NDArray[Any]
Halve = Callable[[Cells], Cells]


async def build_pyramid(
    store: DurableStore, path: str = "0", *, labels: bool, smallest: int = 256, made: int = 0
) -> list[str]:
    """Write the levels 1, 2, … of an array, durably.

    Each file is written once, and each chunk of the level before is read once. Takes
    `streamwsi.sinks.pyramids.pyramid_bytes` of memory.

    Args:
        store: the group's store.
        path: level 0, whole: ``(c, y, x)`` float32 or float16, or labels, ``(y, x)`` or
            ``(c, y, x)``. Its name ends with ``0``.
        labels: whether cells are labels: the most frequent is taken, rather than the mean.
        smallest: the longest side of the last level, in cells.
        made: how many of the smaller levels are there already, whole.

    Returns:
        The paths of all levels, `path` first.

    Raises:
        CannotWrite: a chunk cannot be read back.
    """
    level: AsyncArray[Any] = await asynchronous.open_array(store=store, path=path, zarr_format=3)
    shapes = level_shapes(level.shape, smallest)
    prefix = path.removesuffix("0")
    paths = [f"{prefix}{k}" for k in range(len(shapes))]
    await anyio.to_thread.run_sync(_remove, store.root / prefix, made)
    source: AsyncArray[Any] = level
    if made:
        source = await asynchronous.open_array(store=store, path=paths[made], zarr_format=3)
    for name, shape in zip(paths[made + 1 :], shapes[made + 1 :], strict=True):
        target = await _create(store, name, level, shape)
        await _fill(source, target, labels=labels)
        source = target
    await store.sync()
    return paths


async def shown_ranges(store: DurableStore, path: str) -> list[tuple[float, float]]:
    """From which to which value each channel is best shown, as an image's smallest level has them:
    0 … 1 where that holds all; with 0 elsewhere too, which is no colour.

    Args:
        store: the group's store.
        path: the smallest level, ``(c, y, x)``.

    Returns:
        A range per channel; none of more channels than anybody looks at.

    Raises:
        CannotWrite: a chunk cannot be read back.
    """
    level: AsyncArray[Any] = await asynchronous.open_array(store=store, path=path, zarr_format=3)
    if level.shape[0] > _MOST_SHOWN:
        return []
    async with decoding(level):
        cells = np.asarray(await level.getitem(...)).reshape(level.shape[0], -1)
    ranges = []
    for channel in cells:
        finite = channel[np.isfinite(channel)]
        low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
        ranges.append((0.0, 1.0) if low == 0 and high <= 1 else (low, high))
    return ranges


def _remove(group: Path, made: int) -> None:
    """Remove what an earlier call left of the levels."""
    for folder in [*group.iterdir()]:
        if folder.name.isdecimal() and int(folder.name) > made:
            shutil.rmtree(folder)


async def _create(
    store: DurableStore, path: str, like: AsyncArray[Any], shape: tuple[int, ...]
) -> AsyncArray[Any]:
    """An empty array that is another one's like, but for its shape."""
    metadata = dataclasses.replace(like.metadata.update_shape(shape), attributes={})
    for name, document in metadata.to_buffer_dict(default_buffer_prototype()).items():
        await store.set(f"{path}/{name}", document)
    array: AsyncArray[Any] = await asynchronous.open_array(store=store, path=path, zarr_format=3)
    return array


async def _fill(source: AsyncArray[Any], target: AsyncArray[Any], *, labels: bool) -> None:
    halve = most_frequent_of_cells if labels else mean_of_cells
    cut, itemsize = Chunking(target.chunks, target.shards), target.dtype.itemsize
    made = piece(cut, target.shape, itemsize)
    for at in tiles(_whole(target.shape), written(cut, target.shape, itemsize)):
        cells = np.empty([s.stop - s.start for s in at], target.dtype)
        await _side_by_side(_make(source, cells, at, part, halve) for part in tiles(at, made))
        await target.setitem(at, cells)


async def _make(
    source: AsyncArray[Any], cells: Cells, at: Selection, part: Selection, halve: Halve
) -> None:
    """Make a part of the cells that are written at once."""
    async with decoding(source):
        finer = np.asarray(await source.getitem(_finer(part, source.shape)))
    cells[within(part, at)] = await anyio.to_thread.run_sync(halve, finer)


async def _side_by_side(made: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Make parts, always `AT_ONCE` of them at the same time: one is read while another is
    averaged."""
    running: deque[asyncio.Task[None]] = deque()
    try:
        for part in made:
            if len(running) == AT_ONCE:
                await running.popleft()
            running.append(asyncio.create_task(part))
        while running:
            await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _whole(shape: tuple[int, ...]) -> Selection:
    return tuple(slice(0, n) for n in shape)


def _finer(part: Selection, shape: tuple[int, ...]) -> Selection:
    """The cells of the level before that a part is made from."""
    axes = zip(part[-2:], shape[-2:], strict=True)
    return part[:-2] + tuple(slice(2 * s.start, min(2 * s.stop, n)) for s, n in axes)
