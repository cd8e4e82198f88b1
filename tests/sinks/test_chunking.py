"""Chunks and shards: each file is written once, by whom holds one block, and there are few."""

from __future__ import annotations

from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
import zarr.api.asynchronous
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore

from streamwsi.errors import ConfigError
from streamwsi.sinks.chunking import SHARD_BYTES, Chunking, choose_chunks
from streamwsi.sinks.pyramids import level_shapes

SIZES = st.integers(1, 100_000) | st.sampled_from([256, 512, 4096, 99_991, 100_000])


@st.composite
def maps(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int, int | None]:
    channels = draw(st.lists(st.integers(1, 2000), max_size=1))
    block_rows, block_columns = draw(SIZES), draw(st.none() | SIZES)
    shape = (*channels, draw(SIZES), draw(SIZES))
    return shape, draw(st.sampled_from([1, 2, 4])), block_rows, block_columns


def touched(start: int, stop: int, step: int) -> set[int]:
    return set(range(start // step, ceil(stop / step)))


@settings(max_examples=300)
@given(maps(), st.integers(1, 2048), st.integers(0, 1 << 28))
def test_every_file_lies_in_one_block(
    case: tuple[tuple[int, ...], int, int, int | None], side: int, shard_bytes: int
) -> None:
    shape, itemsize, block_rows, block_columns = case
    cut = choose_chunks(
        shape, itemsize, block_rows, block_columns, side=side, shard_bytes=shard_bytes
    )
    assert len(cut.chunks) == len(cut.files) == len(shape)
    for axis, block in ((-2, block_rows), (-1, block_columns or shape[-1])):
        size, step = shape[axis], cut.files[axis]
        # As a chunk: that of the first block, and of those after it, in which each file lies.
        assert step % cut.chunks[axis] == 0
        assert block >= size or block % step == 0
        if size < 3000:
            blocks = [touched(i, min(i + block, size), step) for i in range(0, size, block)]
            assert sum(map(len, blocks)) == len(set.union(*blocks))


@given(maps(), st.integers(1, 2048), st.integers(0, 1 << 28))
def test_chunks_and_shards_are_no_larger_than_they_may_be(
    case: tuple[tuple[int, ...], int, int, int | None], side: int, shard_bytes: int
) -> None:
    shape, itemsize, block_rows, block_columns = case
    cut = choose_chunks(
        shape, itemsize, block_rows, block_columns, side=side, shard_bytes=shard_bytes
    )
    *channels, height, width = cut.chunks
    assert channels == [1] * len(channels)
    assert height * width <= max(4 * side * side, width)
    assert height <= shape[-2]
    assert width <= shape[-1]
    if cut.shards is not None:
        assert prod(cut.shards) * itemsize <= max(shard_bytes, prod(cut.chunks) * itemsize)
        assert cut.shards != cut.chunks


def files(shape: tuple[int, ...], cut: Chunking) -> int:
    """Of all levels, with the arrays' documents."""
    return sum(
        1 + prod(ceil(n / step) for n, step in zip(level, cut.files, strict=True))
        for level in level_shapes(shape)
    )


@pytest.mark.parametrize(("block_columns", "most"), [(None, 2000), (16384, 2000), (8192, 4000)])
def test_a_large_map_makes_few_files(block_columns: int | None, most: int) -> None:
    shape = (2, 100_000, 100_000)
    cut = choose_chunks(shape, 4, 512, block_columns)
    assert cut.chunks == (1, 512, 512)
    assert prod(cut.files) * 4 <= SHARD_BYTES
    assert files(shape, cut) <= most
    assert files(shape, choose_chunks(shape, 4, 512, block_columns, shard_bytes=0)) > 90_000


def test_small_maps_are_one_file() -> None:
    assert choose_chunks((1, 200, 300), 4, 512) == Chunking((1, 200, 300), None)
    assert choose_chunks((3, 200, 300), 4, 512) == Chunking((1, 200, 300), (3, 200, 300))
    assert choose_chunks((1000, 1000), 1, 1024) == Chunking((512, 512), (1024, 1024))


def test_chunks_fit_blocks_that_are_no_multiple_of_them() -> None:
    assert choose_chunks((1, 9000, 9000), 4, 300, 1536, side=256).chunks == (1, 300, 256)
    assert choose_chunks((1, 9000, 9000), 4, 301, side=256).chunks == (1, 301, 256)
    # A panel's width that nothing divides: wide chunks, and low ones for it.
    assert choose_chunks((1, 900, 99_000), 4, 300, 10_007, side=256).chunks == (1, 6, 10_007)


def test_many_channels_are_several_files() -> None:
    cut = choose_chunks((1000, 4096, 4096), 4, 512)
    assert cut.files == (64, 512, 512)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"side": 8193}, {"shard_bytes": -1}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        choose_chunks((2, 9, 9), 4, 9, **wrong)


class CountingStore(MemoryStore):
    """Counts what is written, and refuses to read any of it again."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        self.written.append(key)
        await super().set(key, value, byte_range)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        assert found is None or key.endswith("zarr.json"), f"{key} is read to be written again"
        return found


@pytest.mark.parametrize(
    ("shape", "block_rows", "block_columns", "shard_bytes"),
    [
        ((2, 100, 150), 24, None, 9000),
        ((2, 100, 150), 24, 48, 9000),
        ((3, 77, 91), 30, 35, 5000),
        ((2, 100, 150), 24, 48, 0),
        ((100, 150), 24, 48, 9000),
    ],
)
async def test_zarr_writes_each_file_once_and_reads_none(
    shape: tuple[int, ...], block_rows: int, block_columns: int | None, shard_bytes: int
) -> None:
    cut = choose_chunks(shape, 4, block_rows, block_columns, side=12, shard_bytes=shard_bytes)
    store = CountingStore()
    array = await zarr.api.asynchronous.create_array(
        store,
        name="0",
        shape=shape,
        chunks=cut.chunks,
        shards=cut.shards,
        dtype="float32",
        fill_value=np.nan,
    )
    store.written.clear()
    for top in range(0, shape[-2], block_rows):
        for left in range(0, shape[-1], block_columns or shape[-1]):
            rows = slice(top, min(top + block_rows, shape[-2]))
            columns = slice(left, min(left + (block_columns or shape[-1]), shape[-1]))
            cells = np.ones((*shape[:-2], rows.stop - top, columns.stop - left), np.float32)
            await array.setitem((..., rows, columns), cells)
    expected = prod(ceil(n / step) for n, step in zip(shape, cut.files, strict=True))
    assert len(store.written) == len({*store.written}) == expected
    assert Path(store.written[0]).parts[:2] == ("0", "c")
