"""Broken and hostile OME-Zarr images: damage where it is, one sentence where all is lost."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import imagecodecs
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
from numcodecs.checksum32 import CRC32C  # type: ignore[import-untyped]

from streamwsi.chunks import Damage, Pixels, Region
from streamwsi.geometry import Box
from streamwsi.limits import Limits
from streamwsi.slides import SlideRef
from streamwsi.sources.zarr import ZarrSource
from streamwsi.testing.ome_zarr import write_ome_zarr
from streamwsi.workers import open_workers

SHAPE = (150, 210, 3)
BAD = Box(64, 64, 64, 64)
"""The pixels of the chunk in the second row and column."""


def image() -> Pixels:
    """Compressible, and nowhere 0."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (np.stack([rows, columns, rows // 9], 2) % 200 + 1).astype(np.uint8)


async def read_all(folder: Path) -> tuple[Pixels, tuple[Damage, ...], int]:
    """The finest level, its damage, and how many damaged tiles were counted."""
    async with (
        open_workers(Limits(worker_kind="threads", workers=2, memory="64 MiB")) as workers,
        ZarrSource().open(SlideRef.of(folder), workers) as reader,
    ):
        # Memory that was used before: nothing of it may come out.
        np.ndarray((workers.arena.nbytes,), np.uint8, workers.arena.buffer)[...] = 0xA5
        size = reader.slide.level(0).size
        regions = iter([Region(0, 0, Box(0, 0, *size), 0, 1)])
        chunk = await anext(reader.bigchunks(regions, 32 * 2**20))
        return chunk.pixels.copy(), chunk.damage, reader.tally.damaged_tiles


def garbage(data: bytes) -> bytes:
    return np.random.default_rng(1).bytes(len(data))


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def lying_blosc(data: bytes) -> bytes:
    """More decoded bytes than there are: trusted, this reads beyond the buffer."""
    return data[:4] + struct.pack("<I", 2**31 - 1) + data[8:]


def bomb(data: bytes) -> bytes:
    """64 MiB of zeros for a chunk of 12 KiB."""
    return bytes(imagecodecs.zstd_encode(bytes(2**26)))


def short(data: bytes) -> bytes:
    """Valid, but not all of the pixels."""
    return bytes(imagecodecs.zstd_encode(imagecodecs.zstd_decode(data)[:-3]))


def codec(name: str, zarr_format: int) -> Any:
    import zarr.codecs

    if zarr_format == 2:
        kinds = {"blosc": numcodecs.Blosc("blosclz"), "zlib": numcodecs.Zlib()}
        kinds |= {"gzip": numcodecs.GZip(), "bz2": numcodecs.BZ2(), "lz4": numcodecs.LZ4()}
        return (kinds | {"zstd": numcodecs.Zstd(), "none": None})[name]
    kinds = {"blosc": zarr.codecs.BloscCodec(cname="blosclz"), "gzip": zarr.codecs.GzipCodec()}
    return (kinds | {"zstd": zarr.codecs.ZstdCodec(), "none": None})[name]


async def written(folder: Path, zarr_format: int, name: str, **options: Any) -> None:
    def write() -> None:
        compressor = codec(name, zarr_format)
        write_ome_zarr(
            folder, [image()], zarr_format=zarr_format, compressors=compressor, **options
        )

    await anyio.to_thread.run_sync(write)


def chunk_file(folder: Path, zarr_format: int) -> Path:
    return folder / "0" / ("1/1/0" if zarr_format == 2 else "c/1/1/0")


CODECS = [(2, n) for n in ("blosc", "bz2", "gzip", "lz4", "none", "zlib", "zstd")]
CODECS += [(3, n) for n in ("blosc", "gzip", "none", "zstd")]
HARMS = [(codec, harm) for codec in CODECS for harm in (truncated, emptied)]
HARMS += [(codec, garbage) for codec in CODECS if codec[1] != "none"]
HARMS += [(codec, lying_blosc) for codec in CODECS if codec[1] == "blosc"]
HARMS += [(codec, harm) for codec in CODECS for harm in (bomb, short) if codec[1] == "zstd"]


@pytest.mark.parametrize(("how", "harm"), HARMS)
async def test_a_broken_chunk_is_damage(
    how: tuple[int, str], harm: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    zarr_format, name = how
    await written(tmp_path / "a", zarr_format, name)
    file = chunk_file(tmp_path / "a", zarr_format)
    file.write_bytes(harm(file.read_bytes()))
    pixels, damage, count = await read_all(tmp_path / "a")
    assert [(d.level, d.tile, d.box) for d in damage] == [(0, 1 * 4 + 1, BAD)]
    assert count == 1
    assert "\n" not in damage[0].reason
    expected = image()
    expected[BAD.y : BAD.bottom, BAD.x : BAD.right] = 0
    np.testing.assert_array_equal(pixels, expected)


async def test_a_folder_in_place_of_a_chunk_is_damage(tmp_path: Path) -> None:
    await written(tmp_path / "a", 3, "zstd")
    chunk_file(tmp_path / "a", 3).unlink()
    chunk_file(tmp_path / "a", 3).mkdir()
    assert [d.box for d in (await read_all(tmp_path / "a"))[1]] == [BAD]


async def test_a_failure_that_passes_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamwsi.sources import zarr_chunks

    await written(tmp_path / "a", 3, "zstd")
    calls, file = 0, chunk_file(tmp_path / "a", 3)
    real = zarr_chunks.ChunkStore._read

    def flaky(self: Any, path: Path, wanted: Any) -> bytes | None:
        nonlocal calls
        calls += path == file
        if path == file and calls == 1:
            raise OSError("the network hiccups")
        return real(self, path, wanted)

    monkeypatch.setattr(zarr_chunks.ChunkStore, "_read", flaky)
    pixels, damage, _ = await read_all(tmp_path / "a")
    assert damage == ()
    assert calls > 1
    np.testing.assert_array_equal(pixels, image())


def shard_with(index: dict[int, tuple[int, int]], file: Path, chunks: int) -> None:
    """Rewrite entries ``(offset, length)`` of a shard's index, with a right checksum."""
    data = file.read_bytes()
    entries = np.frombuffer(data[-16 * chunks - 4 : -4], "<u8").reshape(-1, 2).copy()
    for i, entry in index.items():
        entries[i] = entry
    body = bytes(CRC32C().encode(entries.tobytes()))
    file.write_bytes(data[: -16 * chunks - 4] + body)


@pytest.mark.parametrize("entry", [(10**6, 900), (0, 0), (2**63, 2**63), (0, 2**40)])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_shard_that_points_nowhere_is_damage(
    entry: tuple[int, int], whole: bool, tmp_path: Path
) -> None:
    """zarr takes what lies beyond the shard's end for chunks that were never written."""
    shard = (128, 128) if whole else (1024, 1024)
    await written(tmp_path / "a", 3, "zstd", shard=shard)
    per_row = shard[0] // 64
    shard_with({per_row + 1: entry}, tmp_path / "a/0/c/0/0/0", per_row**2)
    pixels, damage, _ = await read_all(tmp_path / "a")
    assert [d.box for d in damage] == [BAD]
    expected = image()
    expected[BAD.y : BAD.bottom, BAD.x : BAD.right] = 0
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("harm", [garbage, truncated, emptied])
async def test_a_broken_shard_is_damage(harm: Callable[[bytes], bytes], tmp_path: Path) -> None:
    await written(tmp_path / "a", 3, "zstd", shard=(128, 128))
    file = tmp_path / "a/0/c/0/1/0"
    file.write_bytes(harm(file.read_bytes()))
    pixels, damage, _ = await read_all(tmp_path / "a")
    assert {(d.box.x, d.box.y) for d in damage} == {(128, 0), (192, 0), (128, 64), (192, 64)}
    np.testing.assert_array_equal(pixels[:, :128], image()[:, :128])
    assert not pixels[:128, 128:].any()
