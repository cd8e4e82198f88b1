"""The pyramid of an array on disk: right, in bounded memory, each file once, after any kill."""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from math import ceil, prod
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest
from zarr.abc.store import ByteRequest
from zarr.api import asynchronous
from zarr.core.buffer import Buffer, BufferPrototype

from streamwsi.errors import CannotWrite
from streamwsi.sinks.chunking import Chunking
from streamwsi.sinks.compression import blosc_zstd
from streamwsi.sinks.pyramids import level_shapes, most_frequent_of_cells, pyramid_bytes
from streamwsi.sinks.zarr_arrays import DurableStore
from streamwsi.sinks.zarr_pyramid import build_pyramid
from streamwsi.testing.outputs import tree

from .test_pyramids import slow_mean

Cells = npt.NDArray[Any]


class Killed(BaseException):
    """What no program catches."""


class CountingStore(DurableStore):
    """Counts what is written and read; ends everything before a write, where told so."""

    def __init__(self, root: Path, *, last: int | None = None) -> None:
        super().__init__(root)
        self.written: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self._last = last

    async def set(self, key: str, value: Buffer) -> None:
        if self._last is not None and self.written.total() >= self._last:
            raise Killed
        self.written[key] += 1
        await super().set(key, value)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.read[key] += 1
        return await super().get(key, prototype, byte_range)


async def make(root: Path, values: Cells, cut: Chunking, path: str = "0") -> None:
    """Write level 0."""
    await anyio.Path(root).mkdir(exist_ok=True)
    array = await asynchronous.create_array(
        DurableStore(root),
        name=path,
        shape=values.shape,
        chunks=cut.chunks,
        shards=cut.shards,
        dtype=values.dtype,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        compressors=blosc_zstd(cut.chunks, values.dtype.itemsize),
        dimension_names=("c", "y", "x")[-values.ndim :],
        attributes={"of": "level 0"},
        overwrite=True,
    )
    await array.setitem(..., values)


async def read(root: Path, path: str) -> Cells:
    array = await asynchronous.open_array(store=DurableStore(root), path=path)
    return np.asarray(await array.getitem(...))


def random_cells(shape: tuple[int, ...], dtype: str) -> Cells:
    """With single NaNs, and an area without values."""
    rng = np.random.default_rng(prod(shape))
    cells = (rng.integers(-500, 500, shape) / 32).astype(dtype)
    if cells.dtype.kind == "f":
        cells[rng.random(shape) < 0.3] = np.nan
        cells[..., : shape[-2] // 2, : shape[-1] // 2] = np.nan
    return cells


CUTS = [
    Chunking((1, 8, 8), None),
    Chunking((1, 8, 8), (2, 16, 24)),
    Chunking((2, 5, 7), (2, 5, 21)),
    Chunking((3, 64, 64), None),
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shape", [(3, 61, 83), (2, 64, 128), (1, 1, 33), (1, 20, 9)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_each_level_is_the_mean_of_the_one_before(
    tmp_path: Path, cut: Chunking, shape: tuple[int, ...], dtype: str
) -> None:
    cells = random_cells(shape, dtype)
    await make(tmp_path / "map", cells, cut)
    paths = await build_pyramid(DurableStore(tmp_path / "map"), labels=False, smallest=9)
    assert paths == [str(k) for k in range(len(level_shapes(shape, 9)))]
    for path in paths[1:]:
        cells = slow_mean(cells)
        level = await read(tmp_path / "map", path)
        assert level.dtype == dtype
        np.testing.assert_array_equal(level, cells)


@pytest.mark.parametrize("shape", [(61, 83), (2, 64, 70)])
async def test_labels_are_the_most_frequent(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 5, shape).astype(np.uint8)
    chunks = (1, 8, 8)[-len(shape) :]
    await make(tmp_path / "map", labels, Chunking(chunks, None), "labels/classes/0")
    store = DurableStore(tmp_path / "map")
    paths = await build_pyramid(store, "labels/classes/0", labels=True, smallest=16)
    assert paths == [f"labels/classes/{k}" for k in range(4)]
    for path in paths:
        level = await read(tmp_path / "map", path)
        assert level.dtype == np.uint8
        np.testing.assert_array_equal(level, labels)
        labels = most_frequent_of_cells(labels)


async def test_levels_are_stored_as_level_0_is(tmp_path: Path) -> None:
    cut = Chunking((1, 8, 8), (2, 16, 24))
    await make(tmp_path, random_cells((2, 61, 83), "float32"), cut)
    await build_pyramid(DurableStore(tmp_path), labels=False, smallest=50)
    first = await asynchronous.open_array(store=DurableStore(tmp_path), path="0")
    level = await asynchronous.open_array(store=DurableStore(tmp_path), path="1")
    assert (level.shape, level.chunks, level.shards) == ((2, 31, 42), cut.chunks, cut.shards)
    assert level.metadata.codecs == first.metadata.codecs
    assert level.metadata.dimension_names == ("c", "y", "x")
    assert np.isnan(level.metadata.fill_value)
    assert level.attrs == {}


@pytest.mark.parametrize("cut", CUTS)
async def test_each_file_is_written_once_and_read_once(tmp_path: Path, cut: Chunking) -> None:
    shape = (2, 61, 83)
    await make(tmp_path, np.ones(shape, np.float32), cut)
    store = CountingStore(tmp_path)
    await build_pyramid(store, labels=False, smallest=20)
    levels = level_shapes(shape, 20)
    files = sum(
        1 + prod(ceil(n / step) for n, step in zip(level, cut.files, strict=True))
        for level in levels[1:]
    )
    assert set(store.written.values()) == {1}
    assert len(store.written) == files
    if cut.shards is None:
        assert {n for key, n in store.read.items() if "/c/" in key and key[0] == "0"} == {1}


async def test_chunks_without_values_have_no_file(tmp_path: Path) -> None:
    cells = np.full((2, 64, 64), np.nan, np.float32)
    cells[:, 40:, 40:] = 1
    await make(tmp_path, cells, Chunking((1, 8, 8), (2, 16, 16)))
    await build_pyramid(DurableStore(tmp_path), labels=False, smallest=32)
    assert [name for name, data in tree(tmp_path / "1/c").items() if data] == ["0/1/1"]


async def test_killed_at_any_write_it_makes_the_same_bytes(tmp_path: Path) -> None:
    cells, cut = random_cells((2, 61, 83), "float32"), Chunking((1, 8, 8), (2, 16, 24))
    await make(tmp_path / "once", cells, cut)
    await build_pyramid(DurableStore(tmp_path / "once"), labels=False, smallest=20)
    once = tree(tmp_path / "once")
    killed = 0
    await make(tmp_path / "killed", cells, cut)
    while True:
        store = CountingStore(tmp_path / "killed", last=killed)
        try:
            await build_pyramid(store, labels=False, smallest=20)
            break
        except Killed:
            killed += 1
        finally:
            await store.settle()
    assert killed == len([name for name in once if name[0] in "123" and once[name]]) >= 9
    assert tree(tmp_path / "killed") == once


async def test_what_another_call_left_is_replaced(tmp_path: Path) -> None:
    cells, cut = random_cells((2, 61, 83), "float32"), Chunking((1, 8, 8), None)
    await make(tmp_path / "clean", cells, cut)
    # More levels, with other values in chunks that are to be empty; and one of them is lost.
    used = DurableStore(tmp_path / "used")
    await make(tmp_path / "used", np.ones_like(cells), cut)
    await build_pyramid(used, labels=False, smallest=3)
    await used.delete_dir("1")
    await make(tmp_path / "used", cells, cut)
    for name in ("clean", "used"):
        store = DurableStore(tmp_path / name)
        assert await build_pyramid(store, labels=False, smallest=20) == ["0", "1", "2", "3"]
    assert tree(tmp_path / "used") == tree(tmp_path / "clean")


async def test_a_damaged_chunk_is_told(tmp_path: Path) -> None:
    await make(tmp_path, np.ones((1, 64, 64), np.float32), Chunking((1, 32, 32), None))
    (tmp_path / "0/c/0/1/0").write_bytes(b"damaged")
    with pytest.raises(CannotWrite, match="0 holds a chunk that cannot be read back"):
        await build_pyramid(DurableStore(tmp_path), labels=False, smallest=32)


@pytest.mark.parametrize("shards", [(2, 256, 512), None])
async def test_memory_does_not_grow_with_the_map(
    tmp_path: Path, shards: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_WRITTEN_BYTES", "_PIECE_BYTES"):
        monkeypatch.setattr(f"streamwsi.sinks.pyramids.{name}", 1 << 18)
    cut = Chunking((1, 128, 128), shards)
    bounds = []
    for side in (1024, 2048):
        root = tmp_path / str(side)
        row = np.random.default_rng(0).random((2, 512, side), np.float32)
        await make(root, np.tile(row, (1, side // 512, 1)), cut)
        del row
        tracemalloc.start()
        try:
            await build_pyramid(DurableStore(root), labels=False, smallest=128)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        bounds.append(pyramid_bytes(cut, (2, side, side), 4))
        assert peak <= bounds[-1]
    assert bounds[0] == bounds[1] < 2 * 2048 * 2048 * 4 / 2


async def test_a_small_pyramid_takes_less_memory(tmp_path: Path) -> None:
    cut, shape = Chunking((1, 64, 64), (2, 64, 256)), (2, 300, 500)
    await make(tmp_path, np.random.default_rng(0).random(shape, np.float32), cut)
    tracemalloc.start()
    try:
        await build_pyramid(DurableStore(tmp_path), labels=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= pyramid_bytes(cut, shape, 4) < pyramid_bytes(cut, (2, 2048, 2048), 4) / 8
    assert pyramid_bytes(cut, (2, 256, 200), 4) == 0


async def test_cells_are_made_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(tmp_path, np.ones((1, 64, 64), np.float32), Chunking((1, 32, 32), None))
    threads = []

    def halve(cells: Cells) -> Cells:
        threads.append(threading.current_thread())
        return cells[..., ::2, ::2]

    monkeypatch.setattr("streamwsi.sinks.zarr_pyramid.mean_of_cells", halve)
    await build_pyramid(DurableStore(tmp_path), labels=False, smallest=32)
    assert threads
    assert threading.current_thread() not in threads
