"""The TIFF source as a stage: what it accepts, where it runs, how it keeps slides open."""

from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from streamwsi.chunks import Region
from streamwsi.errors import CannotOpen
from streamwsi.geometry import Box
from streamwsi.limits import Limits, WorkerKind
from streamwsi.slides import SlideRef
from streamwsi.sources.tiff import TiffSource, inspect_tiff, read_tiff
from streamwsi.workers import open_workers

IMAGE = np.random.default_rng(4).integers(0, 256, (100, 150, 3), np.uint8)


def write(path: Path, value: int = 0) -> Path:
    image = IMAGE + np.uint8(value)
    tifffile.imwrite(path, image, photometric="rgb", tile=(32, 32), compression="deflate")
    return path


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_the_parent_process_loads_no_parser(tmp_path: Path) -> None:
    code = (
        "import sys; from streamwsi.sources.tiff import TiffSource\n"
        "from streamwsi.slides import SlideRef\n"
        "assert TiffSource().accepts(SlideRef.of(sys.argv[1]))\n"
        "assert not {'tifffile', 'imagecodecs', 'torch', 'zarr'} & set(sys.modules)"
    )
    run_python(code, str(write(tmp_path / "a.tif")))


def test_the_parser_writes_nothing_to_standard_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif")
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages.first.tags[305].overwrite(b"\x81\x8d\x00")  # no text in any encoding
    code = (
        "import sys; from streamwsi.sources.tiff import inspect_tiff\n"
        "from streamwsi.slides import SlideRef\n"
        "inspect_tiff(SlideRef.of(sys.argv[1]))"
    )
    assert run_python(code, str(path)).stderr == ""
    loud = run_python("import sys, tifffile; tifffile.TiffFile(sys.argv[1])", str(path))
    assert "coercing" in loud.stderr, "the file must be one that the parser complains about"


@pytest.mark.parametrize(
    ("head", "accepted"),
    [
        (b"II*\0\x08\0\0\0", True),
        (b"MM\0*\0\0\0\x08", True),
        (b"II+\0\x08\0\0\0", True),
        (b"MM\0+\0\x08\0\0", True),
        (b"II+\0\x04\0\0\0", False),
        (b"II\0*\0\0\0\0", False),
        (b"\x89PNG\r\n\x1a\n", False),
        (b"II", False),
        (b"", False),
    ],
)
def test_accepts_by_the_first_bytes(tmp_path: Path, head: bytes, accepted: bool) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(head)
    assert TiffSource().accepts(SlideRef.of(path)) is accepted


def test_the_stage_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(TiffSource())) == TiffSource()
    assert repr(TiffSource()) == "TiffSource()"
    for function in (TiffSource.inspect, TiffSource.read_box):
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("kind", ["processes", "threads", "inline"])
async def test_through_workers(tmp_path: Path, kind: WorkerKind) -> None:
    ref = SlideRef.of(write(tmp_path / "a.tif"))
    box = Box(20, 30, 70, 60)

    def regions() -> Iterator[Region]:
        yield Region(0, 0, box, 0, 1)

    limits = Limits(workers=1, worker_kind=kind, memory="16 MiB")
    async with open_workers(limits) as workers, TiffSource().open(ref, workers) as reader:
        assert reader.slide == inspect_tiff(ref)
        pixels = [chunk.pixels.copy() async for chunk in reader.bigchunks(regions(), 2**23)]
        assert np.array_equal(pixels[0], IMAGE[box.y : box.bottom, box.x : box.right])
        with pytest.raises(CannotOpen, match="no such file"):
            async with TiffSource().open(SlideRef.of(tmp_path / "b.tif"), workers):
                pass


def test_many_slides_from_many_threads(tmp_path: Path) -> None:
    """More slides than are kept open; handles are closed, and never under a reader."""
    refs = [SlideRef.of(write(tmp_path / f"{i}.tif", i)) for i in range(50)]
    handles = Path("/proc/self/fd")
    before = len([*handles.iterdir()]) if handles.is_dir() else 0

    def read(i: int) -> bool:
        out = np.zeros((36, 64, 3), np.uint8)
        damage = read_tiff(refs[i], 0, Box(64, 64, 64, 36), out)
        expected = (IMAGE + np.uint8(i))[64:100, 64:128]
        return not damage and np.array_equal(out, expected)

    order = [i for i in range(50) for _ in range(8)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, order))
    if handles.is_dir():
        assert len([*handles.iterdir()]) - before <= 40


def test_a_slide_of_150_000_tiles_opens_fast(tmp_path: Path) -> None:
    """All tiles are the same 16 × 16 pixels: only the header is large."""
    path, side, count = tmp_path / "a.tif", 16 * 388, 388 * 388
    tables = struct.pack("<Q", 16) * count + struct.pack("<I", 768) * count
    values = {256: side, 257: side, 258: 8, 259: 1, 262: 2, 277: 3, 284: 1, 322: 16, 323: 16}
    tags = b"".join(struct.pack("<HHQQ", code, 4, 1, v) for code, v in values.items())
    tags += struct.pack("<HHQQ", 324, 16, count, 784)
    tags += struct.pack("<HHQQ", 325, 4, count, 784 + 8 * count)
    tile = bytes(range(256)) * 3
    directory = struct.pack("<Q", len(values) + 2) + tags + bytes(8)
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 784 + len(tables))
    path.write_bytes(head + tile + tables + directory)
    inspect_tiff(SlideRef.of(write(tmp_path / "b.tif")))  # the parser is imported by now
    started = time.process_time()
    slide = inspect_tiff(SlideRef.of(path))
    assert time.process_time() - started < 0.2
    out = np.zeros((16, 16, 3), np.uint8)
    assert read_tiff(slide.ref, 0, Box(side - 16, side - 16, 16, 16), out) == ()
    assert out.tobytes() == tile
