"""Files that lie in their headers are refused in one sentence, or their tiles are damage."""

from __future__ import annotations

import faulthandler
import io
import os
import random
import resource
import signal
import struct
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from streamwsi.errors import CannotOpen, CannotRead
from streamwsi.geometry import Box, Size
from streamwsi.slides import SlideRef
from streamwsi.sources.tiff import TiffSource, inspect_tiff, read_tiff

SHORT, LONG, ASCII, LONG8 = 3, 4, 2, 16
FORMATS = {ASCII: "B", SHORT: "H", LONG: "I", LONG8: "Q"}
Tags = dict[int, tuple[int, Sequence[int]]]
IMAGE = np.random.default_rng(2).integers(0, 256, (64, 96, 3), np.uint8)


def page(width: int = 96, height: int = 64, tile: tuple[int, int] = (32, 32)) -> Tags:
    """The tags of a tiled, uncompressed RGB page whose tiles all lie at byte 8."""
    count = -(-width // tile[0]) * -(-height // tile[1])
    return {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8, 8, 8]),
        259: (SHORT, [1]),
        262: (SHORT, [2]),
        277: (SHORT, [3]),
        284: (SHORT, [1]),
        322: (LONG, [tile[0]]),
        323: (LONG, [tile[1]]),
        324: (LONG, [8] * count),
        325: (LONG, [tile[0] * tile[1] * 3] * count),
    }


def bare_tiff(*pages: Tags, link: int = 0) -> bytes:
    """A little-endian classic TIFF of these pages; the last one links to byte `link`."""
    data = bytearray(b"II*\0\0\0\0\0" + bytes(4096))
    previous = 4
    for tags in pages:
        entries = bytearray()
        for code, (kind, values) in sorted(tags.items()):
            packed = struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)
            if len(packed) > 4:
                packed, at = struct.pack("<I", len(data)), packed
                data += at
            entries += struct.pack("<HHI", code, kind, len(values)) + packed.ljust(4, b"\0")
        struct.pack_into("<I", data, previous, len(data))
        data += struct.pack("<H", len(tags)) + entries
        previous = len(data)
        data += bytes(4)
    struct.pack_into("<I", data, previous, link)
    return bytes(data)


def inspect(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return inspect_tiff(SlideRef.of(path))


def test_the_bare_file_is_fine(tmp_path: Path) -> None:
    slide = inspect(tmp_path / "a.tif", bare_tiff(page(), page(48, 32)))
    assert [level.size for level in slide.pyramid.levels] == [Size(96, 64), Size(48, 32)]


def without(code: int) -> Tags:
    return {c: tag for c, tag in page().items() if c != code}


LIES: dict[str, tuple[bytes, str]] = {
    "no directory": (b"II*\0" + bytes(60), "holds no image"),
    "directory beyond the end": (b"II*\0\xff\xff\xff\x7f" + bytes(60), "cut short"),
    "next directory beyond the end": (bare_tiff(page(), link=2**31), "cut short"),
    "offsets beyond the end": (bare_tiff(page())[:-100], "cut short"),
    "terabytes": (bare_tiff(page() | {256: (LONG, [10**6]), 257: (LONG, [10**6])}), "needs"),
    "as wide as a country": (bare_tiff(page() | {256: (LONG, [2**31])}), "no slide has"),
    "fewer tiles than needed": (bare_tiff(page() | {324: (LONG, [8] * 3)}), "3 tiles .* needs 6"),
    "fewer counts than needed": (bare_tiff(page() | {325: (LONG, [8] * 3)}), "3 tiles .* needs 6"),
    "no offsets": (bare_tiff(without(324)), "0 tiles where it needs 6"),
    "no width": (bare_tiff(without(256)), "cannot be"),
    "tile of no width": (bare_tiff(page() | {322: (LONG, [0])}), "header cannot be read|cannot"),
    "tile of no height": (bare_tiff(page() | {323: (LONG, [0])}), "header cannot be read|cannot"),
    "tile of gigabytes": (bare_tiff(page(tile=(20000, 20000))), "above the limit of 268435456"),
    "samples without end": (bare_tiff(page() | {277: (SHORT, [65535])}), "65535 channels"),
    "no planar layout": (bare_tiff(page() | {284: (SHORT, [7])}), "laid out|cannot be read"),
    "sub-images": (bare_tiff(page() | {330: (LONG, [2**31])}), "cut short"),
    "list of sub-images": (bare_tiff(page() | {330: (ASCII, [1, 2, 3])}), "sub-images is damaged"),
    "BigTIFF of odd offsets": (b"II+\0\x04\0\0\0" + bytes(60), "not a TIFF"),
    "text": (b"Once upon a time there was a slide.", "not a TIFF"),
    "three bytes": (b"II*", "not a TIFF"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize(("data", "words"), LIES.values(), ids=LIES)
def test_lies_are_refused_in_a_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(CannotOpen, match=words) as caught:
        inspect(tmp_path / "a.tif", data)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "a.tif") + ": ")
    assert "\n" not in message


def test_directories_in_a_circle(tmp_path: Path) -> None:
    two = bare_tiff(page(), page())
    (first,) = struct.unpack_from("<I", two, 4)
    with pytest.raises(CannotOpen, match="circle"):
        inspect(tmp_path / "a.tif", two[:-4] + struct.pack("<I", first))


def test_a_strip_above_the_limit(tmp_path: Path) -> None:
    tags = {c: tag for c, tag in page(20000, 20000).items() if c not in (322, 323, 324, 325)}
    strip: Tags = {273: (LONG, [8]), 278: (LONG, [20000]), 279: (LONG, [4096])}
    with pytest.raises(CannotOpen, match="strips of 20000×20000 pixels, 1200000000 bytes each"):
        inspect(tmp_path / "a.tif", bare_tiff(tags | strip))


@pytest.mark.parametrize("code", [324, 325, 270, 65426])
def test_a_billion_numbers_are_not_read(tmp_path: Path, code: int) -> None:
    """The counts fit into the file, which is sparse; a list of them would not fit into memory."""
    path = tmp_path / "a.tif"
    data = bytearray(bare_tiff(page() | {code: (LONG, [8] * 6)}))
    entry = data.rindex(struct.pack("<HHI", code, LONG, 6))
    struct.pack_into("<I", data, entry + 4, 2**29)
    path.write_bytes(data)
    os.truncate(path, 2**32)
    inspect_tiff(SlideRef.of(_good(tmp_path)))
    tracemalloc.start()
    try:
        with pytest.raises(CannotOpen, match="numbers, too many"):
            inspect_tiff(SlideRef.of(path))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_description_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = bytearray(bare_tiff(page() | {270: (ASCII, [65] * 6)}))
    struct.pack_into("<I", data, data.rindex(struct.pack("<HHI", 270, ASCII, 6)) + 4, 2**31)
    path.write_bytes(data)
    os.truncate(path, 2**32)
    with pytest.raises(CannotOpen, match="tag 270 has 2147483648 bytes"):
        inspect_tiff(SlideRef.of(path))


def test_ten_thousand_pages_are_no_slide(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match="over 4096 images"):
        inspect(tmp_path / "a.tif", bare_tiff(*[page(32, 32)] * 4100))


def test_jpeg_tables_that_hold_a_picture(tmp_path: Path) -> None:
    """They would decide the size of what libjpeg decodes."""
    tables = b"\xff\xd8\xff\xc0\x00\x11\x08\xfd\xe8\xfd\xe8\x03" + bytes(9) + b"\xff\xd9"
    tags = page() | {259: (SHORT, [7]), 347: (ASCII, list(tables))}
    with pytest.raises(CannotOpen, match="damaged JPEG tables"):
        inspect(tmp_path / "a.tif", bare_tiff(tags))


def _good(folder: Path) -> Path:
    path = folder / "good.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(32, 32))
    return path


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    """Never does a shorter copy pass for the whole."""
    source = tmp_path / "source.tif"
    with tifffile.TiffWriter(source) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
        writer.write(IMAGE, compression="deflate", **options)
        writer.write(IMAGE[::2, ::2], compression="deflate", subfiletype=1, **options)
    whole = source.read_bytes()
    path = tmp_path / "cut.tif"
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        try:
            slide = inspect_tiff(SlideRef.of(path))
        except CannotOpen:
            continue
        assert len(slide.pyramid.levels) == 2
        damage = [d for level in slide.pyramid.levels for d in read_whole(slide.ref, level.index)]
        assert damage, length


def read_whole(ref: SlideRef, level: int) -> Sequence[Any]:
    slide = inspect_tiff(ref)
    width, height = slide.level(level).size
    out = np.full((height, width, slide.channels), 9, slide.dtype)
    damage = read_tiff(ref, level, Box(0, 0, width, height), out)
    for d in damage:
        assert not out[d.box.y : d.box.bottom, d.box.x : d.box.right].any()
    return damage


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TiffSource()
    fifo = tmp_path / "fifo.tif"
    os.mkfifo(fifo)
    cases = {
        str(tmp_path / "missing.tif"): "no such file",
        str(tmp_path): "is a folder",
        str(fifo): "not a regular file",
        "a\0b.tif": "cannot be opened",
        str(tmp_path / "good.tif" / "b.tif"): "cannot be opened",
    }
    good = _good(tmp_path)
    assert source.accepts(SlideRef("x", str(good)))
    for uri, words in cases.items():
        assert not source.accepts(SlideRef("x", uri))
        with pytest.raises(CannotOpen, match=words):
            inspect_tiff(SlideRef("x", uri))

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CannotOpen, match=r"fresh\.tif: may not be read; check"):
        inspect(tmp_path / "fresh.tif", bare_tiff(page()))


def test_ome_xml_bomb(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY l0 "ha">{laughs}]><OME>&l12;</OME>'
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", description=xml.encode(), metadata=None)
    started = time.process_time()
    assert inspect_tiff(SlideRef.of(path)).pyramid.mpp is None
    assert time.process_time() - started < 2


def small_files() -> list[bytes]:
    """One of each kind, a few kilobytes each."""
    grey = IMAGE[..., 0].astype(np.uint16) * 200
    files = [bare_tiff(page(), page(48, 32))]

    def add(image: Any, **options: Any) -> None:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, **options)
        files.append(buffer.getvalue())

    for codec in ("deflate", "lzw", "zstd", "packbits", "jpeg", 33005, 33003):
        add(IMAGE[:40, :40], photometric="rgb", tile=(32, 32), compression=codec)
    add(IMAGE, photometric="ycbcr", rowsperstrip=16, compression="jpeg", bigtiff=True)
    add(IMAGE, photometric="rgb", tile=(32, 16), byteorder=">", bigtiff=True)
    planes = np.stack([grey, grey // 2])
    add(planes, photometric="minisblack", tile=(32, 32), compression="zlib", ome=True)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
        writer.write(IMAGE, subifds=1, **options)
        writer.write(IMAGE[::2, ::2], subfiletype=1, **options)
    return [*files, buffer.getvalue()]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes, words or stretches changed, most of them where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        near_header = rng.random() < 0.5
        at = rng.randrange(min(len(out), 1000) if near_header else len(out))
        match rng.randrange(6):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                value = rng.choice((0, 1, 7, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, len(out)))
                size = rng.choice((2, 4, 8))
                order = rng.choice(("little", "big"))
                out[at : at + size] = (value % 256**size).to_bytes(size, order)
            case 3:
                start = rng.randrange(len(out))
                out[at : at + 30] = out[start : start + 30]
            case 4:
                out[at : at + 20] = bytes(20)
            case 5 if rng.random() < 0.3:
                del out[max(9, at) :]
    return bytes(out)


def fuzz(path: Path, seed: int, count: int) -> dict[str, int]:
    """Open and read mutated files; only CannotOpen, CannotRead and Damage may come of it, each
    within 10 s, and all within 1 GiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng, files = random.Random(seed), small_files()
    seen = {"refused": 0, "damaged": 0, "whole": 0}
    for _ in range(count):
        # A fresh name, so that nothing is taken from an earlier file that looks the same.
        path.unlink(missing_ok=True)
        path = path.with_suffix(rng.choice((".tif", ".tif", ".ndpi")))
        path.write_bytes(mutated(rng.choice(files), rng))
        ref = SlideRef.of(path)
        TiffSource().accepts(ref)
        try:
            with within(10):
                slide = inspect_tiff(ref)
                levels = [x for x in slide.pyramid.levels if x.size.width * x.size.height < 10**6]
                damaged = [read_whole(ref, level.index) for level in levels]
        except (CannotOpen, CannotRead):
            seen["refused"] += 1
        else:
            seen["damaged" if any(damaged) else "whole"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20  # in KiB
    return seen


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer: a hang that releases the interpreter, or does not."""

    def late(*_: object) -> None:
        raise AssertionError(f"a file took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    # Should the hang be in C code that never comes back, the traceback is printed, and all ends.
    faulthandler.dump_traceback_later(2 * seconds, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def test_mutated_files(tmp_path: Path) -> None:
    seen = fuzz(tmp_path / "a.tif", seed=1, count=300)
    assert min(seen.values()) > 20, seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_many_mutated_files(tmp_path: Path, seed: int) -> None:
    fuzz(tmp_path / "a.tif", seed=100 + seed, count=2000)
