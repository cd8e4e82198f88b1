"""A tile that cannot be had is zero and reported; its neighbours are whole."""

from __future__ import annotations

import errno
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from streamwsi.chunks import Damage
from streamwsi.errors import CannotRead, ContractBroken, LevelNotFound
from streamwsi.geometry import Box
from streamwsi.slides import SlideRef
from streamwsi.sources.tiff import inspect_tiff, read_tiff
from streamwsi.sources.tiff_files import SlideFile

Array = npt.NDArray[Any]
TILE = 32
SIZE = 80  # 3 × 3 tiles, the last ones cut
OFFSETS, COUNTS = 324, 325
VICTIM = 4
ALL = Box(0, 0, SIZE, SIZE)

SMOOTH = np.add.outer(np.arange(SIZE), np.arange(SIZE))[..., None] + np.array([0, 20, 40])
IMAGE: Array = SMOOTH.astype(np.uint8)


def write(path: Path, compression: Any, **options: Any) -> Array:
    """A TIFF of nine tiles; returns its pixels."""
    tifffile.imwrite(
        path, IMAGE, photometric="rgb", tile=(TILE, TILE), compression=compression, **options
    )
    return np.asarray(tifffile.imread(path))


def read(path: Path, channels: int = 3) -> tuple[Array, tuple[Damage, ...]]:
    out = np.full((SIZE, SIZE, channels), 9, np.uint8)
    return out, read_tiff(SlideRef.of(path), 0, ALL, out)


def set_table(path: Path, tag: int, changes: dict[int, int]) -> None:
    """Write other numbers into the table of offsets or byte counts."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        entry = tif.pages.first.tags[tag]
        numbers = tuple(changes.get(i, value) for i, value in enumerate(entry.value))
        entry.overwrite(numbers, dtype="I")


def stored(path: Path, tile: int = VICTIM) -> tuple[int, int]:
    """Offset and byte count of a tile."""
    with tifffile.TiffFile(path) as tif:
        return tif.pages.first.dataoffsets[tile], tif.pages.first.databytecounts[tile]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def put(path: Path, data: bytes) -> None:
    """Let the victim's data be these, stored at the end of the file."""
    offset = path.stat().st_size
    overwrite(path, offset, data)
    set_table(path, OFFSETS, {VICTIM: offset})
    set_table(path, COUNTS, {VICTIM: len(data)})


def box_of(tile: int) -> Box:
    row, column = divmod(tile, 3)
    return Box(column * TILE, row * TILE, TILE, TILE).intersection(ALL)


def assert_damaged(path: Path, expected: Array, reason: str, *tiles: int) -> None:
    """Exactly these tiles are zero and reported, with that reason."""
    pixels, damage = read(path, expected.shape[2])
    assert [(d.level, d.tile, d.box) for d in damage] == [(0, t, box_of(t)) for t in tiles]
    for d in damage:
        assert reason in d.reason
    expected = expected.copy()
    for tile in tiles:
        box = box_of(tile)
        expected[box.y : box.bottom, box.x : box.right] = 0
    assert np.array_equal(pixels, expected)


CODECS = ["jpeg", 33005, "deflate", "lzw", "zstd", None]


@pytest.mark.parametrize("codec", CODECS)
def test_no_bytes(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    set_table(path, COUNTS, {2: 0, 8: 0})
    assert_damaged(path, image, "no bytes", 2, 8)


@pytest.mark.parametrize("codec", CODECS)
def test_outside_the_file(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    size = path.stat().st_size
    set_table(path, OFFSETS, {0: size, 4: size - 1, 7: 2**32 - 1, 8: 0})
    assert_damaged(path, image, "outside the file", 0, 4, 7, 8)


@pytest.mark.parametrize("codec", CODECS)
def test_cut_short(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    set_table(path, COUNTS, {VICTIM: stored(path)[1] // 2})
    assert_damaged(path, image, "", VICTIM)


@pytest.mark.parametrize("codec", ["jpeg", 33005])
def test_the_end_of_the_data_is_lost_and_zero(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    offset, count = stored(path)
    overwrite(path, offset + count - 8, bytes(8))
    assert_damaged(path, image, "end early", VICTIM)


@pytest.mark.parametrize("codec", ["jpeg", 33005])
def test_padding_behind_the_data_is_no_damage(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    offset, count = stored(path)
    put(path, path.read_bytes()[offset : offset + count] + bytes(7))
    assert_damaged(path, image, "")


@pytest.mark.parametrize("codec", ["jpeg", 33005, "deflate", "zstd"])
def test_garbage(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    offset, count = stored(path)
    overwrite(path, offset, np.random.default_rng(5).bytes(count))
    assert_damaged(path, image, "", VICTIM)


def encoded(codec: Any, image: Array) -> bytes:
    if codec == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(image, 90))
    if codec == "deflate":
        return zlib.compress(image.tobytes())
    if codec == "zstd":
        return bytes(imagecodecs.zstd_encode(image.tobytes()))
    return bytes(imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"))


@pytest.mark.parametrize("codec", ["jpeg", 33005, "deflate", "zstd"])
@pytest.mark.parametrize("shape", [(16, 32, 3), (64, 32, 3), (16, 64, 3), (32, 32)], ids=str)
def test_data_of_another_size(tmp_path: Path, codec: Any, shape: tuple[int, ...]) -> None:
    path = tmp_path / "a.tif"
    if codec in ("deflate", "zstd") and shape != (16, 32, 3) and shape != (32, 32):
        # tifffile cuts longer data, and knows nothing of rows and columns in them.
        return
    image = write(path, codec, subsampling=(1, 1) if codec == "jpeg" else None)
    put(path, encoded(codec, np.zeros(shape, np.uint8)))
    assert_damaged(path, image, "", VICTIM)


def bomb(codec: Any) -> bytes:
    """Little data that promise a picture of gigabytes."""
    if codec in ("deflate", "zstd"):
        return encoded(codec, np.zeros(2**26, np.uint8))
    if codec == "jpeg":
        data = encoded(codec, np.zeros((TILE, TILE, 3), np.uint8))
        size = data.index(b"\xff\xc0") + 5
        return data[:size] + b"\xfd\xe8" * 2 + data[size + 4 :]
    data = encoded(codec, np.zeros((TILE, TILE, 3), np.uint8))
    at = data.index(b"\xff\x51") + 6
    large = (40000).to_bytes(4, "big")
    return data[:at] + large * 2 + data[at + 8 : at + 16] + large * 2 + data[at + 24 :]


@pytest.mark.parametrize("codec", ["jpeg", 33005, "deflate", "zstd"])
def test_a_bomb_takes_no_memory(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec)
    put(path, bomb(codec))
    read(path)
    tracemalloc.start()
    try:
        assert_damaged(path, image, "", VICTIM)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_byte_counts_beyond_reason_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = write(path, "deflate")
    set_table(path, COUNTS, {VICTIM: 2**30})
    os.truncate(path, 2**31)
    assert_damaged(path, image, "claims 1073741824 bytes", VICTIM)


def test_a_plane_spoils_its_tile_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.moveaxis(IMAGE, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=(TILE, TILE),
        compression="deflate",
    )
    set_table(path, COUNTS, {9 + VICTIM: 0, 18 + VICTIM: 0, 18 + 8: 0})
    assert_damaged(path, IMAGE, "no bytes", VICTIM, 8)


@pytest.mark.parametrize("codec", CODECS)
def test_tiles_that_were_never_stored_are_background(tmp_path: Path, codec: Any) -> None:
    path = tmp_path / "a.tif"
    image = write(path, codec).copy()
    for tag in (OFFSETS, COUNTS):
        set_table(path, tag, {VICTIM: 0, 8: 0})
    assert inspect_tiff(SlideRef.of(path)).properties["background"] == 255
    for tile in (VICTIM, 8):
        box = box_of(tile)
        image[box.y : box.bottom, box.x : box.right] = 255
    assert_damaged(path, image, "")


def test_sparse_fluorescence_is_dark(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = IMAGE[..., :1].copy()
    tifffile.imwrite(path, image[..., 0], photometric="minisblack", tile=(TILE, TILE))
    for tag in (OFFSETS, COUNTS):
        set_table(path, tag, {VICTIM: 0})
    box = box_of(VICTIM)
    image[box.y : box.bottom, box.x : box.right] = 0
    assert_damaged(path, image, "")


def test_damage_is_numbered_within_the_level_and_not_the_box(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, "jpeg")
    set_table(path, COUNTS, {VICTIM: 0, 0: 0})
    out = np.zeros((TILE, TILE, 3), np.uint8)
    (damage,) = read_tiff(SlideRef.of(path), 0, box_of(VICTIM), out)
    assert (damage.tile, damage.box) == (VICTIM, box_of(VICTIM))


Faulty = Callable[[int, int], bool]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[[Faulty], list[int]]:
    """Make reads fail that a function picks; the list counts opened files."""

    def install(fails: Faulty) -> list[int]:
        opened: list[int] = []
        init, real = SlideFile.__init__, SlideFile.read

        def counted(self: SlideFile, uri: str) -> None:
            opened.append(1)
            init(self, uri)

        def read(self: SlideFile, offset: int, count: int) -> bytes:
            if fails(offset, len(opened)):
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(self, offset, count)

        monkeypatch.setattr(SlideFile, "__init__", counted)
        monkeypatch.setattr(SlideFile, "read", read)
        return opened

    return install


def test_a_stale_handle_is_opened_anew(
    tmp_path: Path, faulty: Callable[[Faulty], list[int]]
) -> None:
    path = tmp_path / "a.tif"
    image = write(path, "jpeg")
    inspect_tiff(SlideRef.of(path))
    opened = faulty(lambda offset, opened: opened == 0)
    for _ in range(3):
        assert_damaged(path, image, "")
    assert len(opened) == 1, "later reads use the fresh handle"


def test_a_bad_sector_is_damage(tmp_path: Path, faulty: Callable[[Faulty], list[int]]) -> None:
    path = tmp_path / "a.tif"
    image = write(path, "jpeg")
    bad = stored(path)[0]
    inspect_tiff(SlideRef.of(path))
    faulty(lambda offset, opened: offset == bad)
    assert_damaged(path, image, "Stale file handle", VICTIM)


def test_a_file_that_went_away_cannot_be_read(
    tmp_path: Path, faulty: Callable[[Faulty], list[int]]
) -> None:
    path = tmp_path / "a.tif"
    write(path, "jpeg")
    inspect_tiff(SlideRef.of(path))
    path.unlink()
    with pytest.raises(CannotRead, match=r"a\.tif: there is no such file"):
        read(path)


def test_a_file_that_changes_under_a_read_cannot_be_read(
    tmp_path: Path, faulty: Callable[[Faulty], list[int]]
) -> None:
    path = tmp_path / "a.tif"
    write(path, "jpeg")
    inspect_tiff(SlideRef.of(path))

    def touched(offset: int, opened: int) -> bool:
        os.utime(path, ns=(0, 0))
        return True

    faulty(touched)
    with pytest.raises(CannotRead, match="was changed while it was read"):
        read(path)


def test_a_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, "deflate")
    before = inspect_tiff(SlideRef.of(path))
    path.unlink()
    tifffile.imwrite(path, IMAGE[::-1], photometric="rgb", tile=(16, 16))
    assert np.array_equal(read(path)[0], IMAGE[::-1])
    after = inspect_tiff(SlideRef.of(path))
    assert after.identity != before.identity
    assert after.pyramid.levels[0].tile != before.pyramid.levels[0].tile


def test_identity_tells_a_damaged_table(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, "deflate")
    before = inspect_tiff(SlideRef.of(path)).identity
    set_table(path, COUNTS, {VICTIM: 0})
    assert inspect_tiff(SlideRef.of(path)).identity != before
    assert len(before) == 32


def test_what_is_asked_for_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, "deflate")
    ref = SlideRef.of(path)
    out = np.zeros((SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ContractBroken, match="not made of whole tiles"):
        read_tiff(ref, 0, Box(1, 0, TILE, TILE), out)
    with pytest.raises(ContractBroken, match="not made of whole tiles"):
        read_tiff(ref, 0, Box(64, 64, TILE, TILE), out)
    with pytest.raises(ContractBroken, match="do not fit"):
        read_tiff(ref, 0, ALL, out[:-1])
    with pytest.raises(LevelNotFound):
        read_tiff(ref, 1, ALL, out)


BROKEN = {
    "jpeg2000_garbage_1tile.svs": 1,
    "jpeg_bytecount_halved_1tile.svs": 1,
    "jpeg_garbage_1tile.svs": 1,
    "jpeg_offset_past_eof_1tile.svs": 1,
    "jpeg_zero_bytecount_lastcol.svs": 13,
}


@pytest.mark.parametrize("name", BROKEN)
def test_real_slides_with_damage(shared: Path, name: str) -> None:
    folder = shared / "slides"
    whole = "aperio_jpeg2000_tcga.svs" if "2000" in name else "aperio_jpeg_cmu1_small_region.svs"
    arrays = []
    for path in (folder / whole, folder / "broken" / name):
        ref = SlideRef.of(path)
        level = inspect_tiff(ref).level(0)
        box = Box(0, 0, *level.size)
        if "2000" in name:  # slow to decode: the third that the damage is in
            box = Box(0, 1536, 1024, 1024)
        out = np.full((box.height, box.width, 3), 9, np.uint8)
        damage = read_tiff(ref, 0, box, out)
        arrays.append(out)
    assert len(damage) == BROKEN[name]
    for d in damage:
        place = d.box.shifted(-box.x, -box.y)
        view = arrays[0][place.y : place.bottom, place.x : place.right]
        assert view.any()
        view[...] = 0
    assert np.array_equal(arrays[0], arrays[1])
