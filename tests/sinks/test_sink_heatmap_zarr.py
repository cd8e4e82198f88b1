"""HeatmapZarr: the exact layout, the metadata, and the errors of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image

from streamwsi import heatmaps
from streamwsi.errors import CannotWrite, ConfigError, ContractBroken, StageMismatch
from streamwsi.geometry import Grid, Size
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import durable, zarr_arrays
from streamwsi.sinks.heatmap_zarr import HeatmapZarr
from streamwsi.slides import Mpp, SlideRef
from streamwsi.testing.outputs import grid_plan, recipe, stream, tree

Floats = npt.NDArray[np.float32]


async def write(
    out: Path, plan: GridPlan, values: npt.NDArray[Any], chunk: int = 256, **kwargs: Any
) -> Path:
    sink = HeatmapZarr(out, chunk)
    processor = kwargs.pop("processor", {})
    async with sink.open(plan, recipe(plan, sink, **processor), overwrite=False) as writer:
        receipt = await writer.write(stream(plan, values, start=writer.resume_at, **kwargs))
    assert receipt.outputs == sink.outputs(plan.slide.ref)
    return Path(receipt.outputs[0])


def random_values(count: int, *shape: int) -> Floats:
    values = np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)
    values.reshape(-1)[:: max(3, values.size // 7)] = np.nan
    return values


def laid_out(plan: GridPlan, values: Floats) -> Floats:
    """The heatmap, number by number."""
    _, C, h, w = values.shape
    heatmap = np.full((C, plan.grid.rows * h, plan.grid.columns * w), np.nan, np.float32)
    for k, value in enumerate(values):
        box = plan.place(k).box
        row, column = box.y // plan.grid.stride.height, box.x // plan.grid.stride.width
        for c in range(C):
            for i in range(h):
                for j in range(w):
                    heatmap[c, row * h + i, column * w + j] = value[c, i, j]
    return heatmap


def read(path: Path) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Both arrays, by zarr's synchronous interface: call it in a thread."""
    group = zarr.open_group(path, mode="r")
    return np.asarray(group["0"][:]), np.asarray(group["valid"][:])  # type: ignore[index]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "panel", "shape", "chunk"),
    [
        ((37, 23), (5, 5), (3, 2), 0, (1,), 256),
        ((37, 23), (5, 5), (3, 2), 4, (3,), 3),
        ((37, 23), (5, 4), (3, 2), 5, (2,), 4),
        ((60, 40), (6, 5), (6, 5), 0, (2, 3, 2), 7),
        ((60, 40), (6, 5), (6, 5), 3, (1, 5, 6), 8),
        ((60, 40), (6, 5), (6, 5), 4, (2, 4, 3), 2),
        ((9, 9), (9, 9), (1, 1), 0, (4,), 256),
    ],
)
async def test_each_number_lies_where_its_window_does(
    tmp_path: Path,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    panel: int,
    shape: tuple[int, ...],
    chunk: int,
) -> None:
    plan = grid_plan(Grid(Size(*size), Size(*kernel), Size(*stride), panel))
    values = random_values(plan.count, *shape)
    valid = np.random.default_rng(1).random(plan.count) < 0.8
    path = await write(tmp_path, plan, values, chunk, valid=valid, batch=7)
    heatmap, codes = await anyio.to_thread.run_sync(read, path)
    as_maps = values.reshape(*values.shape[:2], *(shape[1:] or (1, 1)))
    np.testing.assert_array_equal(heatmap, laid_out(plan, as_maps))
    expected = np.where(valid, 1, 2).astype(np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(codes, laid_out(plan, expected)[0])


@settings(deadline=None, max_examples=25)
@given(st.data())
async def test_heavy_windows_are_written_in_blocks_of_one_row(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    grid = Grid(Size(columns * 4, rows * 4), Size(4, 4), Size(4, 4), data.draw(st.integers(1, 6)))
    plan = grid_plan(grid)
    values = random_values(
        plan.count, 2, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heatmaps, "_BLOCK_BYTES", data.draw(st.integers(1, 400)))
        patch.setattr(heatmaps, "_CHUNK_BYTES", data.draw(st.integers(1, 200)))
        out = tmp_path_factory.mktemp("out")
        path = await write(out, plan, values, batch=data.draw(st.integers(1, 9)))
    heatmap, _ = await anyio.to_thread.run_sync(read, path)
    np.testing.assert_array_equal(heatmap, laid_out(plan, values))


async def test_batches_beyond_the_quick_size_are_copied_in_a_thread(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(24, 8), Size(8, 8), Size(8, 8)))
    values = random_values(plan.count, 2, 256, 256)
    path = await write(tmp_path, plan, values, batch=3)
    heatmap, _ = await anyio.to_thread.run_sync(read, path)
    np.testing.assert_array_equal(heatmap[:, :, 256:512], values[1])


@pytest.mark.parametrize("calibrated", [True, False])
async def test_it_is_a_valid_ome_zarr_image(tmp_path: Path, calibrated: bool) -> None:
    grid = Grid(Size(40, 30), Size(8, 8), Size(4, 6))
    plan = grid_plan(grid, downsample=4.0, mpp=Mpp(0.25, 0.25) if calibrated else None)
    path = await write(tmp_path, plan, random_values(plan.count, 2))

    def validate() -> dict[str, Any]:
        image = Image.from_zarr(zarr.open_group(path, mode="r"))
        dumped: dict[str, Any] = image.ome_attributes.model_dump(exclude_none=True)
        return dumped

    ome = await anyio.to_thread.run_sync(validate)
    multiscale = ome["multiscales"][0]
    mpp = 0.25 if calibrated else 1.0
    unit = {"unit": "micrometer"} if calibrated else {}
    assert multiscale["name"] == "slide"
    assert [*multiscale["axes"]] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", **unit},
        {"name": "x", "type": "space", **unit},
    ]
    (dataset,) = multiscale["datasets"]
    scale, translation = dataset["coordinateTransformations"]
    assert dataset["path"] == "0"
    assert [*scale["scale"]] == [1.0, 6 * 4 * mpp, 4 * 4 * mpp]
    # 32 level-0 pixels from the corner on: their mean is 15.5.
    assert [*translation["translation"]] == [0.0, 15.5 * mpp, 15.5 * mpp]


async def test_a_second_validator_agrees(tmp_path: Path) -> None:
    yaozarrs = pytest.importorskip("yaozarrs")
    plan = grid_plan(Grid(Size(40, 30), Size(8, 8), Size(4, 6)))
    path = await write(tmp_path, plan, random_values(plan.count, 2))
    await anyio.to_thread.run_sync(yaozarrs.validate_zarr_store, str(path))


async def test_the_group_says_what_it_was_made_from(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    valid = np.array([True, False, True, True])
    processor = {"channels": ["tumour", "stroma"], "model": "sha256:0"}
    path = await write(tmp_path, plan, random_values(4, 2), valid=valid, processor=processor)
    document = json.loads((path / "zarr.json").read_text())
    assert document["attributes"]["streamwsi"] == {
        "version": 1,
        "slide": {
            "name": "slide.svs",
            "bytes": 1234,
            "identity": "abc",
            "width": 8,
            "height": 8,
            "mpp": [0.25, 0.25],
        },
        "source": {},
        "sampler": {"kernel_size": [4, 4], "stride": [4, 4], "panel": 2},
        "processor": processor,
        "sink": {
            "type": "heatmap-zarr",
            "chunk": 256,
            "blend": "mean",
            "dtype": "float32",
        },
        "channels": ["tumour", "stroma"],
        "cells_per_window": [1, 1],
        "state": {"complete": True, "pieces": 4, "total": 4, "invalid": 1},
    }
    assert (await anyio.to_thread.run_sync(lambda: zarr.open_group(path, mode="r").attrs)).keys()


@pytest.mark.parametrize("names", [None, ["one"], [1, 2], "ab"])
async def test_channels_without_names_are_numbered(tmp_path: Path, names: Any) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    processor = {} if names is None else {"channels": names}
    path = await write(tmp_path, plan, random_values(4, 2), processor=processor)
    document = json.loads((path / "zarr.json").read_text())
    assert document["attributes"]["streamwsi"]["channels"] == ["0", "1"]


async def test_other_numbers_become_float32(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    path = await write(tmp_path, plan, np.arange(4, dtype=np.int64)[:, None])
    heatmap, _ = await anyio.to_thread.run_sync(read, path)
    assert heatmap.dtype == np.float32
    assert heatmap.tolist() == [[[0, 1], [2, 3]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 4, "the processor returned list"),
        (np.zeros((4, 1), np.complex64), "the processor returned complex64 array"),
        (np.zeros((4, 1, 1)), r"values of shape \(n, C\)"),
        (np.zeros((4, 1, 2, 2)), "not a whole number of cells; the nearest that fit are 2 or 4"),
    ],
)
async def test_values_that_make_no_heatmap(tmp_path: Path, values: Any, message: str) -> None:
    plan = grid_plan(Grid(Size(7, 7), Size(4, 4), Size(3, 3)))
    with pytest.raises(StageMismatch, match=message):
        await write(tmp_path, plan, values)


async def test_a_number_per_window_is_a_vector_of_one(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    for name, values in (("a", np.arange(4.0)), ("b", np.arange(4.0)[:, None])):
        await write(tmp_path / name, plan, values)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


async def test_channels_are_shown_in_the_range_of_their_values(tmp_path: Path) -> None:
    """As the smallest level has them; 0 … 1 where that holds all."""
    plan = grid_plan(Grid(Size(700, 2), Size(2, 2), Size(2, 2)))
    columns = {
        "shares": (np.linspace(0.1, 0.9, plan.count), (0, 1)),
        "logits": (np.linspace(-4, 7, plan.count), None),
        "counts": (np.full(plan.count, 5.0), (0, 5)),
        "nothing": (np.full(plan.count, np.nan), (0, 1)),
        "infinite": (np.where(np.arange(plan.count) < 9, np.inf, -3), (-3, 0)),
    }
    values = np.stack([values for values, _ in columns.values()], 1).astype(np.float32)
    path = await write(tmp_path, plan, values, processor={"channels": [*columns]})
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    smallest = np.asarray(
        await (await zarr.api.asynchronous.open_array(store=path / "1", mode="r")).getitem(...)
    )
    for i, shown in enumerate(attributes["omero"]["channels"]):
        window = shown["window"]
        wanted = columns[shown["label"]][1] or (smallest[i].min(), smallest[i].max())
        assert (window["start"], window["end"]) == pytest.approx(wanted)
        assert (window["min"], window["max"]) == (window["start"], window["end"])


async def test_colours_of_channels_and_classes(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    values = np.eye(4, dtype=np.float32)[:, :2]
    for dtype in ("float32", "labels"):
        sink = HeatmapZarr(tmp_path / dtype, dtype=dtype, colours=("ff0000", "00FF7f"))
        async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
            await writer.write(stream(plan, values))
    shown = json.loads((tmp_path / "float32/slide.zarr/zarr.json").read_text())["attributes"]["ome"]
    assert [c["color"] for c in shown["omero"]["channels"]] == ["FF0000", "00FF7F"]
    labels = json.loads((tmp_path / "labels/slide.zarr/labels/classes/zarr.json").read_text())
    colours = labels["attributes"]["ome"]["image-label"]["colors"]
    assert [c["rgba"] for c in colours][-2:] == [[255, 0, 0, 255], [0, 255, 127, 255]]
    sink = HeatmapZarr(tmp_path, colours=("FF0000",))
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        with pytest.raises(ConfigError, match="1 colours were given for 2 channels"):
            await writer.write(stream(plan, values))
    with pytest.raises(ConfigError, match="six hexadecimal digits"):
        HeatmapZarr(tmp_path, colours=("red",))


async def test_values_must_keep_their_shape(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    sink = HeatmapZarr(tmp_path)
    how = recipe(plan, sink)

    async def changing() -> Any:
        async for some in stream(plan, np.zeros((4, 2), np.float32), stop=2):
            yield some
        async for some in stream(plan, np.zeros((4, 3), np.float32), start=2):
            yield some

    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(StageMismatch, match="a heatmap needs one shape"):
            await writer.write(changing())
    # And a later run finds the array that the first pieces made.
    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(CannotWrite, match="begun with other values than 5 × 1×1 per window"):
            await writer.write(stream(plan, np.zeros((4, 5), np.float32), start=writer.resume_at))
    async with sink.open(plan, how, overwrite=True) as writer:
        receipt = await writer.write(stream(plan, np.zeros((4, 5), np.float32)))
    assert receipt.pieces == 4


@pytest.mark.parametrize("array", ["0", "1", "valid"])
async def test_an_array_that_is_gone(tmp_path: Path, array: str) -> None:
    """Somebody removed it, or another version of this program has none."""
    plan = grid_plan(Grid(Size(64, 2400), Size(16, 16), Size(8, 8)))
    values = np.ones((plan.count, 1, 16, 16), np.float32)
    sink = HeatmapZarr(tmp_path)
    how = recipe(plan, sink)
    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(ContractBroken, match="the pieces ended"):
            await writer.write(stream(plan, values, stop=plan.count - 9))
    shutil.rmtree(tmp_path / "slide.zarr" / array)
    async with sink.open(plan, how, overwrite=False) as writer:
        assert writer.resume_at > 0
        with pytest.raises(CannotWrite, match="lacks an array of these; --overwrite"):
            await writer.write(stream(plan, values, start=writer.resume_at))


async def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(2, 2), Size(2, 2)))
    sink = HeatmapZarr(tmp_path)
    how = recipe(plan, sink)
    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(Exception, match="the pieces ended at 6 of 16"):
            await writer.write(stream(plan, np.ones((16, 1)), stop=6))
    (tmp_path / "slide.zarr/0/c/0/0/0").write_bytes(b"no zstd")
    async with sink.open(plan, how, overwrite=False) as writer:
        assert writer.resume_at == 6
        with pytest.raises(CannotWrite, match=r"slide\.zarr.* cannot be read back .*--overwrite"):
            await writer.write(stream(plan, np.ones((16, 1)), start=6))


async def test_after_a_failure_nothing_goes_on_behind_our_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = grid_plan(Grid(Size(128, 16), Size(2, 2), Size(2, 2)))
    calls = itertools.count()

    def replace_file(path: Path, data: bytes, temporary: Path) -> None:
        if "/c/" in str(path):
            if next(calls) == 3:
                raise OSError(5, "Input/output error")
            time.sleep(0.05)
        durable.replace_file(path, data, temporary)

    monkeypatch.setattr(zarr_arrays, "replace_file", replace_file)
    with pytest.raises(CannotWrite, match="Input/output error"):
        await write(tmp_path, plan, np.ones((plan.count, 1)), 4)
    before = tree(tmp_path)
    await anyio.sleep(0.3)
    assert tree(tmp_path) == before


async def test_a_plan_without_a_grid_is_refused(tmp_path: Path) -> None:
    plan: Any = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    how = recipe(plan, HeatmapZarr(tmp_path))

    class Gridless:
        grid = None
        slide = plan.slide

    with pytest.raises(StageMismatch, match="a heatmap needs windows on a grid"):
        async with HeatmapZarr(tmp_path).open(Gridless(), how, overwrite=False):  # type: ignore[arg-type]
            pass
    assert tree(tmp_path) == {}


def test_making_the_sink_imports_no_zarr() -> None:
    code = (
        "import sys; from streamwsi.sinks.heatmap_zarr import HeatmapZarr; HeatmapZarr('x').config;"
        "from streamwsi.sinks.pdmcsv import Pdmcsv; Pdmcsv('x').config;"
        "sys.exit(any(m in sys.modules for m in ('zarr', 'torch', 'tifffile')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_outputs() -> None:
    assert HeatmapZarr("out").outputs(SlideRef("a", "x/a.svs")) == ("out/a.zarr",)


async def test_it_is_an_image_before_the_first_pieces(tmp_path: Path) -> None:
    """One that is empty, and gone when the run is resumed."""
    yaozarrs = pytest.importorskip("yaozarrs")
    plan = grid_plan(Grid(Size(40, 30), Size(8, 8), Size(4, 6)))
    values, sink = random_values(plan.count, 2), HeatmapZarr(tmp_path / "a")
    path = Path(sink.outputs(plan.slide.ref)[0])

    def look() -> Any:
        yaozarrs.validate_zarr_store(str(path))
        group = zarr.open_group(path, mode="r")
        (dataset,) = Image.from_zarr(group).ome_attributes.multiscales[0].datasets
        return np.asarray(group[dataset.path][:])  # type: ignore[index]

    for _ in range(2):  # the second time as a resumed run finds it
        async with sink.open(plan, recipe(plan, sink), overwrite=False):
            seen = await anyio.to_thread.run_sync(look)
        assert seen.shape == (1, plan.grid.rows, plan.grid.columns)
        assert np.isnan(seen).all()
    await write(tmp_path / "a", plan, values)
    await write(tmp_path / "b", plan, values)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not (path / "planned").exists()


async def test_killed_while_the_empty_image_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = grid_plan(Grid(Size(40, 30), Size(8, 8), Size(4, 6)))
    values = random_values(plan.count, 2)

    def break_off(_: object) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("streamwsi.sinks.heatmap_group.HeatmapGroup.forget_planned", break_off)
        with pytest.raises(KeyError):
            await write(tmp_path / "a", plan, values)
    (left,) = (tmp_path / "a").glob("*.zarr/planned")
    await write(tmp_path / "a", plan, values)
    await write(tmp_path / "b", plan, values)
    assert not left.exists()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


async def test_vectors_at_unequal_distances_are_refused(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(22, 9), Size(4, 4), Size(4, 4), shift=1))
    with pytest.raises(StageMismatch, match="moved back to the level's edge"):
        await write(tmp_path, plan, random_values(plan.count, 2))
