"""CSV and Parquet: every window with its place, against loops over the plan."""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from streamwsi import json_files
from streamwsi.errors import CannotRead, CannotWrite, ConfigError
from streamwsi.exporting import export_csv, export_parquet, heatmap
from streamwsi.geometry import Grid, Size
from streamwsi.slides import Mpp
from streamwsi.testing.outputs import grid_plan

MakeHeatmap = Callable[..., Path]
GRID = Grid.covering(Size(37, 23), Size(6, 5), Size(4, 3), (1, 2), "white")
FACTS = ["row", "column", "x", "y", "width", "height", "valid"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is in a table, as numbers; NaN where there is none."""
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read().to_pylist()
    else:
        with path.open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    return [{k: float("nan") if v == "" else float(v) for k, v in row.items()} for row in table]


EXPORTS = pytest.mark.parametrize(
    ("export", "name"), [(export_csv, "a.csv"), (export_parquet, "a.parquet")]
)


@EXPORTS
@pytest.mark.parametrize("block", [1, 16 << 20])
def test_a_row_has_a_windows_place_and_values(
    sunk: MakeHeatmap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    export: Any,
    name: str,
    block: int,
) -> None:
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", block)
    plan = grid_plan(GRID, downsample=4.0, mpp=Mpp(0.2517, 0.499))
    values = np.random.default_rng(1).normal(size=(plan.count, 2)).astype(np.float32)
    valid = np.random.default_rng(2).random(plan.count) < 0.8
    values[~valid] = np.nan
    path = sunk(plan, values, valid=valid, chunk=3, channels=["a", "b,c"])
    assert export(path, tmp_path / name) == plan.count
    found = {(row["row"], row["column"]): row for row in rows_of(tmp_path / name)}
    assert len(found) == plan.count
    for k in range(plan.count):
        row, column = GRID.cell(k)
        box = GRID.box(row, column)
        wanted = [row, column, 4 * box.x, 4 * box.y, 4 * box.width, 4 * box.height]
        wanted += [1 if valid[k] else 2]
        assert [found[row, column][fact] for fact in FACTS] == wanted
        read = [np.float32(found[row, column][channel]) for channel in ("a", "b,c")]
        np.testing.assert_array_equal(read, values[k])


def test_csv_is_plain_text(sunk: MakeHeatmap, tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(12, 4), Size(4, 4), Size(4, 4)))
    values = np.array([[0.1, 1], [np.nan, 2.5], [1e-8, -3]], np.float32)
    path = sunk(plan, values, valid=np.array([True, False, True]), channels=['"q"', "x"])
    export_csv(path, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == [
        'row,column,x,y,width,height,valid,"""q""",x_1',
        "0,0,0,0,4,4,1,0.1,1",
        "0,1,4,0,4,4,2,,2.5",
        "0,2,8,0,4,4,1,1e-08,-3",
    ]


def test_parquet_keeps_types_and_says_what_it_is(group: MakeHeatmap, tmp_path: Path) -> None:
    values = np.arange(32, dtype=np.float16).reshape(2, 4, 4)
    path = group([values], name="it", channels=["a", "a"], chunks=(2, 2, 4))
    assert export_parquet(path, tmp_path / "a.parquet") == 16
    file = pq.ParquetFile(tmp_path / "a.parquet")
    types = [str(field.type) for field in file.schema_arrow]
    assert types == ["int64"] * 2 + ["double"] * 4 + ["uint8", "halffloat", "halffloat"]
    assert file.schema_arrow.names[-2:] == ["a", "a_1"]
    metadata = file.schema_arrow.metadata[b"streamwsi"].decode()
    assert '"slide": "it.svs", "width": 32, "height": 32, "mpp": null' in metadata


@EXPORTS
def test_windows_that_were_not_computed_are_left_out_unless_asked_for(
    group: MakeHeatmap, tmp_path: Path, export: Any, name: str
) -> None:
    codes = np.array([[0, 1, 2, 3], [3, 3, 1, 0]], np.uint8)
    path = group([np.zeros((1, 2, 4), np.float32)], valid=codes, chunks=(1, 1, 4))
    assert export(path, tmp_path / name) == 3
    assert [row["valid"] for row in rows_of(tmp_path / name)] == [1, 2, 1]
    assert export(path, tmp_path / name, every=True, overwrite=True) == 8
    assert [row["valid"] for row in rows_of(tmp_path / name)] == codes.ravel().tolist()


def test_cells_of_a_map_have_their_own_place_and_their_windows_code(
    sunk: MakeHeatmap, tmp_path: Path
) -> None:
    plan = grid_plan(Grid(Size(20, 10), Size(10, 10), Size(10, 10)))
    values = np.arange(2 * 4, dtype=np.float32).reshape(2, 1, 2, 2)
    path = sunk(plan, values, valid=np.array([True, False]))
    export_csv(path, tmp_path / "a.csv")
    table = [[*row.values()] for row in rows_of(tmp_path / "a.csv")]
    assert table == [
        [0, 0, 0, 0, 5, 5, 1, 0],
        [0, 1, 5, 0, 5, 5, 1, 1],
        [0, 2, 10, 0, 5, 5, 2, 4],
        [0, 3, 15, 0, 5, 5, 2, 5],
        [1, 0, 0, 5, 5, 5, 1, 2],
        [1, 1, 5, 5, 5, 5, 1, 3],
        [1, 2, 10, 5, 5, 5, 2, 6],
        [1, 3, 15, 5, 5, 5, 2, 7],
    ]


def test_a_map_without_codes_is_all_computed(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 2, 2), np.float32)])
    (path / "valid" / "zarr.json").unlink()
    assert export_csv(path, tmp_path / "a.csv") == 4


@EXPORTS
def test_the_same_heatmap_gives_the_same_bytes(
    group: MakeHeatmap, tmp_path: Path, export: Any, name: str
) -> None:
    path = group([np.random.default_rng(1).normal(size=(1, 9, 9)).astype(np.float32)])
    export(path, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    export(path, tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_bytes() == first


@EXPORTS
def test_a_file_is_replaced_only_if_asked_for_and_only_by_a_whole_one(
    group: MakeHeatmap, tmp_path: Path, export: Any, name: str
) -> None:
    out = tmp_path / "out" / name
    path = group([np.ones((1, 4, 4), np.float32)], chunks=(1, 2, 4))
    export(path, out)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="is there already; --overwrite replaces it"):
        export(path, out)
    chunks = sorted(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    chunks[-1].write_bytes(b"rubbish")
    with pytest.raises(CannotRead, match="holds a chunk that cannot be read"):
        export(path, out, overwrite=True)
    assert out.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == [name]
    out.unlink()
    out.mkdir()
    with pytest.raises(ConfigError, match="is not a file"):
        export(path, out, overwrite=True)


def test_the_record_of_a_pdmcsv_file_protects_it(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 4, 4), np.float32)])
    (tmp_path / "map.csv").write_text("0, 0")
    (tmp_path / "map.csv.json").write_text("{}")
    with pytest.raises(ConfigError, match="was written by streamwsi heatmap"):
        export_csv(path, tmp_path / "map.csv", overwrite=True)
    assert (tmp_path / "map.csv").read_text() == "0, 0"


def test_a_folder_that_cannot_be_written_is_one_sentence(
    group: MakeHeatmap, tmp_path: Path
) -> None:
    path = group([np.ones((1, 4, 4), np.float32)])
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match=r"a\.csv cannot be written: "):
        export_csv(path, tmp_path / "file" / "a.csv")


def test_without_pyarrow_the_extra_is_named(
    group: MakeHeatmap, tmp_path: Path, uninstalled: Callable[[str], None]
) -> None:
    uninstalled("pyarrow")
    with pytest.raises(ConfigError, match=r'pip install "streamwsi\[export\]"'):
        export_parquet(group([np.ones((1, 4, 4), np.float32)]), tmp_path / "a.parquet")


@EXPORTS
def test_memory_does_not_grow_with_the_map(
    group: MakeHeatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any, name: str
) -> None:
    """2 million cells of which a few have a row."""
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", 100_000)
    monkeypatch.setattr(json_files, "_MAX_JSON_BYTES", 1 << 20)
    codes = np.zeros((1000, 2000), np.uint8)
    codes[::50, ::50] = 1
    path = group([np.zeros((1, 4, 4), np.float32)], valid=codes)
    zarr.create_array(
        str(path / "0"),
        shape=(1, 1000, 2000),
        chunks=(1, 100, 200),
        dtype="float32",
        overwrite=True,
    )
    tracemalloc.start()
    try:
        assert export(path, tmp_path / name) == 20 * 40
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1000 * 2000 * 4 / 2
