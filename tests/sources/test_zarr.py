"""ZarrSource against the arrays that the images were written from, and against zarr itself."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest

from streamwsi.chunks import Damage, Pixels, Region
from streamwsi.errors import CannotRead
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.pipelines import Pipeline
from streamwsi.runs import run
from streamwsi.samplers.sliding_window import SlidingWindow
from streamwsi.slides import Mpp, Slide, SlideRef
from streamwsi.sources.zarr import ZarrSource
from streamwsi.testing.faults import Checksums, RecordingSink
from streamwsi.testing.ome_zarr import write_ome_zarr
from streamwsi.workers import open_workers

LIMITS = Limits(worker_kind="threads", workers=2, memory="64 MiB")


def pyramid(dtype: str = "uint8", channels: int = 3) -> list[Pixels]:
    """Three levels of odd sizes; no two pixels near each other are alike."""
    shapes = ((131, 203), (65, 101), (16, 25))
    chance = np.random.default_rng(7)
    return [(chance.random((*s, channels)) * 250 + 1).astype(dtype) for s in shapes]


async def read(
    folder: Path, boxes: list[tuple[int, Box]]
) -> tuple[Slide, list[Pixels], list[tuple[Damage, ...]]]:
    """The pixels of boxes ``(level, box)`` and their damage, by the source."""
    regions = [Region(i, level, box, i, 1) for i, (level, box) in enumerate(boxes)]
    pixels, damage = [], []
    async with (
        open_workers(LIMITS) as workers,
        ZarrSource().open(SlideRef.of(folder), workers) as reader,
    ):
        async for chunk in reader.bigchunks(iter(regions), 16 * 2**20):
            pixels.append(chunk.pixels.copy())
            damage.append(chunk.damage)
            chunk.release()
        return reader.slide, pixels, damage


async def inspected(folder: Path) -> Slide:
    return (await read(folder, []))[0]


def whole(arrays: list[Pixels]) -> list[tuple[int, Box]]:
    return [(i, Box(0, 0, a.shape[1], a.shape[0])) for i, a in enumerate(arrays)]


def some_boxes(arrays: list[Pixels], seed: int) -> Iterator[tuple[int, Box]]:
    """All edges and corners of every level, and boxes anywhere."""
    chance = random.Random(seed)
    for index, array in enumerate(arrays):
        height, width = array.shape[:2]
        yield index, Box(0, 0, width, 1)
        yield index, Box(0, 0, 1, height)
        yield index, Box(width - 1, 0, 1, height)
        yield index, Box(0, height - 1, width, 1)
        yield index, Box(width - 1, height - 1, 1, 1)
        for _ in range(8):
            x, y = chance.randrange(width), chance.randrange(height)
            yield index, Box(x, y, chance.randint(1, width - x), chance.randint(1, height - y))


LAYOUTS: dict[str, dict[str, Any]] = {
    "v2 yxc": {"zarr_format": 2, "axes": "yxc", "chunk": (40, 24)},
    "v2 cyx big-endian": {"zarr_format": 2, "axes": "cyx", "dtype": ">u2", "chunk": (64, 32)},
    "v2 tczyx column-major": {"zarr_format": 2, "axes": "tczyx", "order": "F"},
    "v2 tczyx planes": {"zarr_format": 2, "axes": "tczyx", "planes": True, "chunk": (50, 50)},
    "v2 dotted keys": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2 plain": {"zarr_format": 2, "compressors": None},
    "v3 yxc": {"axes": "yxc", "chunk": (24, 40)},
    "v3 cyx": {"axes": "cyx", "chunk": (300, 16)},
    "v3 tczyx": {"axes": "tczyx"},
    "v3 cxy": {"axes": "cxy"},
    "v3 plain": {"compressors": None},
    "v3 shards": {"axes": "yxc", "chunk": (16, 16), "shard": (64, 48)},
    "v3 shards of planes": {"axes": "cyx", "planes": True, "chunk": (16, 16), "shard": (48, 48)},
    "v3 shards of one chunk": {"axes": "cyx", "chunk": (32, 32), "shard": (32, 32)},
    "v3 shards, larger than the level": {"axes": "tczyx", "chunk": (32, 32), "shard": (512, 512)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_every_level_and_box_is_what_was_written(layout: str, tmp_path: Path) -> None:
    options = LAYOUTS[layout]
    arrays = pyramid("uint16" if "dtype" in options else "uint8")
    await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(tmp_path / "a.ome.zarr", arrays, **options)
    )
    boxes = [*whole(arrays), *some_boxes(arrays, 3)]
    slide, pixels, damage = await read(tmp_path / "a.ome.zarr", boxes)
    assert damage == [()] * len(boxes)
    assert slide.dtype == arrays[0].dtype.name
    for (level, box), part in zip(boxes, pixels, strict=True):
        expected = arrays[level][box.y : box.bottom, box.x : box.right]
        np.testing.assert_array_equal(part, expected, f"level {level}, {box}")


@pytest.mark.parametrize("zarr_format", [2, 3])
async def test_what_zarr_reads_itself(zarr_format: int, tmp_path: Path) -> None:
    def reference() -> Any:
        import zarr

        folder = write_ome_zarr(tmp_path / "a.zarr", pyramid(), zarr_format=zarr_format, axes="cyx")
        return [np.asarray(zarr.open_array(folder / str(i), mode="r")[...]) for i in range(3)]

    expected = await anyio.to_thread.run_sync(reference)
    _, pixels, _ = await read(tmp_path / "a.zarr", whole(pyramid()))
    for array, part in zip(expected, pixels, strict=True):
        np.testing.assert_array_equal(np.moveaxis(array, 0, 2), part)


async def test_header(tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(
            tmp_path / "a.ome.zarr",
            pyramid("uint16", 5),
            axes="tczyx",
            chunk=(48, 32),
            mpp=(0.5, 0.25),
        )
    )
    slide = await inspected(tmp_path / "a.ome.zarr")
    assert slide.ref.id == "a"
    assert (slide.dtype, slide.channels, slide.vendor) == ("uint16", 5, "ome")
    assert slide.pyramid.mpp == Mpp(0.5, 0.25)
    assert [level.size for level in slide.pyramid.levels] == [(203, 131), (101, 65), (25, 16)]
    assert [level.downsample for level in slide.pyramid.levels] == [(1, 1), (2, 2), (8, 8)]
    assert {level.tile for level in slide.pyramid.levels} == {Size(48, 32)}
    assert slide.compression == "zstd"
    assert slide.properties == {
        "axes": "tczyx",
        "name": "test",
        "ome_zarr": "0.5",
        "zarr_format": 3,
    }


@pytest.mark.parametrize(
    ("unit", "mpp"),
    [
        ("micrometer", Mpp(0.5, 0.25)),
        ("nanometer", Mpp(0.5e-3, 0.25e-3)),
        ("millimeter", Mpp(500, 250)),
        ("parsec", None),
        (None, None),
    ],
)
async def test_units(unit: str | None, mpp: Mpp | None, tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(lambda: write_ome_zarr(tmp_path / "a", pyramid(), unit=unit))
    found = (await inspected(tmp_path / "a")).pyramid.mpp
    if mpp is None:
        assert found is None
    else:
        assert found is not None
        assert (found.x, found.y) == pytest.approx((mpp.x, mpp.y))


async def test_a_plane_without_channels(tmp_path: Path) -> None:
    arrays = pyramid("float32", 1)
    await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(tmp_path / "a", arrays, axes="yx", fill_value=np.nan)
    )
    slide, pixels, _ = await read(tmp_path / "a", whole(arrays))
    assert (slide.dtype, slide.channels) == ("float32", 1)
    np.testing.assert_array_equal(pixels[1], arrays[1])


async def test_the_first_image_of_bioformats2raw(tmp_path: Path) -> None:
    def write() -> None:
        import zarr

        group = zarr.open_group(tmp_path / "a", mode="w", zarr_format=2)
        group.attrs["bioformats2raw.layout"] = 3
        write_ome_zarr(tmp_path / "a" / "0", pyramid(), zarr_format=2)

    await anyio.to_thread.run_sync(write)
    assert ZarrSource().accepts(SlideRef.of(tmp_path / "a"))
    _, pixels, _ = await read(tmp_path / "a", whole(pyramid()))
    np.testing.assert_array_equal(pixels[0], pyramid()[0])


@pytest.mark.parametrize(("zarr_format", "fill"), [(2, 0), (2, 9), (3, 255)])
async def test_a_missing_chunk_is_background(zarr_format: int, fill: int, tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(
            tmp_path / "a", pyramid(), zarr_format=zarr_format, fill_value=fill or None
        )
    )
    (tmp_path / "a/0" / ("1/2/0" if zarr_format == 2 else "c/1/2/0")).unlink()
    _, pixels, damage = await read(tmp_path / "a", whole(pyramid()))
    expected = pyramid()[0]
    expected[64:128, 128:192] = fill
    np.testing.assert_array_equal(pixels[0], expected)
    assert damage[0] == ()


async def test_chunks_are_decoded_once(tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(tmp_path / "a", pyramid(), chunk=(32, 32), shard=(64, 64))
    )
    async with (
        open_workers(LIMITS) as workers,
        ZarrSource().open(SlideRef.of(tmp_path / "a"), workers) as reader,
    ):
        plan = SlidingWindow(50, 13).plan(reader.slide)
        async for chunk in reader.bigchunks(plan.regions(), 2**20):
            chunk.release()
        assert reader.tally.distinct_tiles == 4 * 7
        assert reader.tally.amplification == 1.0


async def test_a_whole_run(tmp_path: Path) -> None:
    arrays = pyramid()
    await anyio.to_thread.run_sync(lambda: write_ome_zarr(tmp_path / "a.ome.zarr", arrays))
    sink = RecordingSink()
    pipeline = Pipeline(
        source=ZarrSource(), sampler=SlidingWindow(32, 20), processor=Checksums(), sink=sink
    )
    report = await run(pipeline, [tmp_path / "a.ome.zarr"], limits=LIMITS)
    report.raise_for_failures()
    expected = [
        zlib.crc32(arrays[0][y : y + 32, x : x + 32].tobytes())
        for y in range(0, 131 - 31, 20)
        for x in range(0, 203 - 31, 20)
    ]
    assert sink.records["a"].values == dict(enumerate(expected))


async def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    def write(name: str, arrays: list[Pixels]) -> Path:
        return write_ome_zarr(tmp_path / name, arrays, axes="cyx")

    other = pyramid()
    other[0][66, 70] ^= 1
    first = await anyio.to_thread.run_sync(write, "a", pyramid())
    changed = await anyio.to_thread.run_sync(write, "b", other)
    shutil.copytree(first, tmp_path / "c")
    identity = (await inspected(first)).identity
    assert len(identity) == 32
    assert (await inspected(tmp_path / "c")).identity == identity
    assert (await inspected(changed)).identity != identity


async def test_a_folder_that_goes_away_is_not_background(tmp_path: Path) -> None:
    folder = await anyio.to_thread.run_sync(lambda: write_ome_zarr(tmp_path / "a", pyramid()))
    async with (
        open_workers(LIMITS) as workers,
        ZarrSource().open(SlideRef.of(folder), workers) as reader,
    ):
        folder.rename(tmp_path / "gone")
        regions = iter([Region(0, 0, Box(0, 0, 100, 100), 0, 1)])
        with pytest.raises(CannotRead, match="is gone"):
            await anext(reader.bigchunks(regions, 2**20))


async def test_leaving_early(tmp_path: Path) -> None:
    folder = await anyio.to_thread.run_sync(
        lambda: write_ome_zarr(tmp_path / "a", pyramid(), chunk=(8, 8))
    )
    with anyio.fail_after(5):
        async with (
            open_workers(LIMITS) as workers,
            ZarrSource().open(SlideRef.of(folder), workers) as reader,
        ):
            plan = SlidingWindow(16).plan(reader.slide)
            first = await anext(reader.bigchunks(plan.regions(), 2**20))
            assert first.region.index == 0


def test_accepts(tmp_path: Path) -> None:
    source = ZarrSource()
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / ".zgroup").write_text("{}")
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "zarr.json").write_text("not even JSON")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zarr").write_text("a file")
    names = ("v2", "v3", "empty", "file.zarr", "absent", "nul\0", "x" * 999)
    accepted = [n for n in names if source.accepts(SlideRef("a", str(tmp_path / n)))]
    assert accepted == ["v2", "v3"]


def test_configuring_it_imports_no_zarr() -> None:
    code = (
        "import sys; from streamwsi.sources.zarr import ZarrSource; ZarrSource(); "
        "print(any(name.partition('.')[0] == 'zarr' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
