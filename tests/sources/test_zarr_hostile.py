"""Hostile OME-Zarr metadata: one sentence, and nothing allocated, unpickled or read elsewhere."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest

from streamwsi.chunks import Pixels, Region
from streamwsi.errors import CannotOpen
from streamwsi.geometry import Box
from streamwsi.limits import Limits
from streamwsi.slides import SlideRef
from streamwsi.sources.zarr import ZarrSource
from streamwsi.testing.ome_zarr import write_ome_zarr
from streamwsi.workers import open_workers


def image() -> Pixels:
    return np.ones((150, 210, 3), np.uint8)


async def read_all(folder: Path) -> None:
    async with (
        open_workers(Limits(worker_kind="inline", memory="64 MiB")) as workers,
        ZarrSource().open(SlideRef.of(folder), workers) as reader,
    ):
        size = reader.slide.level(0).size
        regions = iter([Region(0, 0, Box(0, 0, *size), 0, 1)])
        await anext(reader.bigchunks(regions, 32 * 2**20))


class Trap:
    """What a stranger would like us to unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the chunk was unpickled",)


async def test_nothing_is_unpickled(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "a")
    (tmp_path / "a/0/1/1/0").write_bytes(pickle.dumps(Trap()))
    for key in ("filters", "compressor"):
        value: Any = {"id": "pickle"}
        change(tmp_path / "a/0/.zarray", **{key: [value] if key == "filters" else value})
        with pytest.raises(CannotOpen, match="pickle"):
            await read_all(tmp_path / "a")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "a"
    return write_ome_zarr(folder, [image()], zarr_format=2, compressors=None)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "a"
    return write_ome_zarr(folder, [image()], chunk=(64, 64), shard=(2**12, 2**12))


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def array(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "0/.zarray", **changes)


def group(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        attributes = json.loads((folder / ".zattrs").read_text())
        edit(attributes["multiscales"])
        (folder / ".zattrs").write_text(json.dumps(attributes))

    return do


def text(name: str, content: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).write_text(content)

    return do


def path(value: Any) -> Callable[[Path], None]:
    return group(lambda m: m[0]["datasets"][0].update(path=value))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "attributes that are not JSON": (text(".zattrs", "{"), "not valid JSON"),
    "attributes that are a list": (text(".zattrs", "[]"), "not a JSON object"),
    "attributes nested deeply": (text(".zattrs", "[" * 10**5), "recursion"),
    "attributes of bytes": (text(".zattrs", "\0\1"), "not valid JSON"),
    "no attributes": (lambda folder: (folder / ".zattrs").unlink(), "zattrs is missing"),
    "no multiscales": (text(".zattrs", "{}"), "no usable 'multiscales'"),
    "no image": (group(lambda m: m.clear()), "no image"),
    "an image that is a number": (group(lambda m: m.__setitem__(0, 7)), "no image"),
    "a plate": (text(".zattrs", '{"plate": {}}'), "is a plate"),
    "no axes": (group(lambda m: m[0].pop("axes")), "no usable 'axes'"),
    "axes that are numbers": (group(lambda m: m[0].update(axes=[1, 2])), "no usable 'name'"),
    "an axis too few": (group(lambda m: m[0]["axes"].pop(0)), "not those of a slide"),
    "the same axis twice": (group(lambda m: m[0]["axes"][2].update(name="y")), "not those"),
    "an unknown axis": (group(lambda m: m[0]["axes"][2].update(name="q")), "not those"),
    "many planes": (group(lambda m: m[0]["axes"][2].update(name="z")), "3 planes along z"),
    "no datasets": (group(lambda m: m[0].pop("datasets")), "no usable 'datasets'"),
    "an empty list of datasets": (group(lambda m: m[0]["datasets"].clear()), "has 0 levels"),
    "datasets without end": (group(lambda m: m[0]["datasets"].extend([{}] * 99)), "100 levels"),
    "a path out of the store": (path("../b"), "not a plain path"),
    "a path through the store": (path("0/../../b"), "not a plain path"),
    "an absolute path": (path("/etc"), "not a plain path"),
    "an empty path": (path(""), "not a plain path"),
    "a path that is a number": (path(5), "no usable 'path'"),
    "a level that is not there": (path("7"), "not there"),
    "an array that is not JSON": (text("0/.zarray", "!"), "not valid JSON"),
    "an array without anything": (text("0/.zarray", '{"zarr_format": 2}'), "type"),
    "an array of another format": (array(zarr_format=4), "not 2 or 3"),
    "pixels of int32": (array(dtype="<i4"), "'<i4'.*convert"),
    "pixels of objects": (array(dtype="|O"), "'|O'"),
    "pixels of structures": (array(dtype=[["a", "<u2"]]), "can be read"),
    "a shape with an axis too few": (array(shape=[150, 210]), "does not fit the axes"),
    "a negative shape": (array(shape=[-1, 210, 3]), "does not fit the axes"),
    "a shape beyond all bounds": (array(shape=[2**60, 2**60, 3]), "does not fit the axes"),
    "too many chunks": (array(shape=[2**30, 2**30, 3]), "are too many"),
    "chunks of no pixels": (array(chunks=[0, 64, 3]), "no usable shape"),
    "chunks that are a word": (array(chunks="all"), "no usable shape"),
    "no chunks": (lambda folder: array(chunks=None)(folder), "no usable shape"),
    "huge chunks": (array(chunks=[2**20, 2**20, 3]), "MiB each"),
    "an unknown codec": (array(compressor={"id": "nonsense"}), "'nonsense' is not one of"),
    "a codec that is a number": (array(compressor=3), "not one of"),
    "filters": (array(filters=[{"id": "delta", "dtype": "u1"}]), "has filters, delta"),
    "an unknown order": (array(order="Z"), "'0' cannot be read"),
    "keys by another separator": (array(dimension_separator="../"), "'0' cannot be read"),
    "a fill value that is no pixel": (array(fill_value="red"), "'0' cannot be read"),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_hostile_metadata(case: str, plain: Path, tmp_path: Path) -> None:
    harm, words = HOSTILE[case]
    shutil.copytree(plain, tmp_path / "a")
    harm(tmp_path / "a")
    with pytest.raises(CannotOpen, match=words) as info:
        await read_all(tmp_path / "a")
    message = str(info.value)
    assert message.startswith(f"{tmp_path / 'a'}: ")
    assert "\n" not in message
    assert len(message) < 500 + len(str(tmp_path))


def v3(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        document = json.loads((folder / "0/zarr.json").read_text())
        edit(document)
        (folder / "0/zarr.json").write_text(json.dumps(document))

    return do


def shards(**configuration: Any) -> Callable[[Path], None]:
    return v3(lambda d: d["codecs"][0]["configuration"].update(configuration))


HOSTILE_V3: dict[str, tuple[Callable[[Path], None], str]] = {
    "a group that is an array": (text("zarr.json", '{"node_type": "array"}'), "a single array"),
    "no attributes": (text("zarr.json", '{"attributes": 3}'), "no OME metadata"),
    "tiny chunks in shards": (shards(chunk_shape=[1, 1, 1]), "are too many"),
    "chunks that do not divide a shard": (shards(chunk_shape=[63, 64, 3]), "divisible"),
    "a codec inside a shard": (shards(codecs=[{"name": "vlen-bytes"}]), "vlen-bytes"),
    "a codec of a shard's index": (shards(index_codecs=[{"name": "x"}]), "'x' is not one of"),
    "shards without a configuration": (v3(lambda d: d["codecs"][0].pop("configuration")), "has no"),
    "another grid": (v3(lambda d: d["chunk_grid"].update(name="rectilinear")), "rectilinear"),
    "no codecs": (v3(lambda d: d.pop("codecs")), "has no 'codecs'"),
    "storage transformers": (v3(lambda d: d.update(storage_transformers=[{"name": "x"}])), "'0'"),
    "a key encoding": (v3(lambda d: d["chunk_key_encoding"].update(name="../x")), "'0'"),
}


@pytest.mark.parametrize("case", HOSTILE_V3)
async def test_hostile_metadata_of_zarr_v3(case: str, sharded: Path, tmp_path: Path) -> None:
    harm, words = HOSTILE_V3[case]
    shutil.copytree(sharded, tmp_path / "a")
    harm(tmp_path / "a")
    with pytest.raises(CannotOpen, match=words) as info:
        await read_all(tmp_path / "a")
    assert "\n" not in str(info.value)


async def test_levels_that_do_not_belong_together(tmp_path: Path) -> None:
    def write() -> None:
        write_ome_zarr(tmp_path / "a", [image()[::2, ::2], image()])
        write_ome_zarr(tmp_path / "b", [image(), image()[::2, ::2]])
        write_ome_zarr(tmp_path / "c", [image()[..., :2]])
        (tmp_path / "b/1").rename(tmp_path / "b/old")
        (tmp_path / "c/0").rename(tmp_path / "b/1")

    await anyio.to_thread.run_sync(write)
    with pytest.raises(CannotOpen, match="larger than the first"):
        await read_all(tmp_path / "a")
    with pytest.raises(CannotOpen, match="2 channels of uint8, but the finest has 3"):
        await read_all(tmp_path / "b")


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match="no such folder"):
        await read_all(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CannotOpen, match="is not OME-Zarr"):
        await read_all(tmp_path / "empty")
