"""What the exporters know of a heatmap: where its cells and windows lie, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwsi.errors import CannotOpen, CannotRead, ConfigError
from streamwsi.exporting import heatmap as reader
from streamwsi.exporting.documents import Named
from streamwsi.exporting.heatmap import open_heatmap
from streamwsi.exporting.lattices import Lattice
from streamwsi.geometry import Grid, Size
from streamwsi.slides import Mpp
from streamwsi.testing.outputs import grid_plan

MakeHeatmap = Callable[..., Path]
Change = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


def box(lattice: Lattice, row: int, column: int) -> tuple[float, ...]:
    (x,), (y,) = lattice.starts(0, column, 1), lattice.starts(1, row, 1)
    return (x, y, *lattice.extent)


@pytest.mark.parametrize("mpp", [None, Mpp(0.499, 0.2517), Mpp(0.25, 0.25)])
@pytest.mark.parametrize("downsample", [1.0, 4.0, 2.5])
@pytest.mark.parametrize(
    "grid",
    [
        Grid(Size(37, 23), Size(5, 5), Size(3, 2)),
        Grid(Size(37, 23), Size(4, 5), Size(7, 6), 0, (3, 1)),
        Grid.covering(Size(37, 23), Size(6, 6), Size(3, 4), (1, 2), "white"),
    ],
)
def test_windows_lie_where_the_sampler_put_them(
    sunk: MakeHeatmap, grid: Grid, downsample: float, mpp: Mpp | None
) -> None:
    plan = grid_plan(grid, mpp=mpp, downsample=downsample)
    opened = open_heatmap(sunk(plan, np.zeros((plan.count, 1), np.float32)))
    assert opened.windows is not None
    cells = opened.levels[0].cells
    for row, column in [(0, 0), (grid.rows - 1, grid.columns - 1), (1, 2)]:
        window = grid.box(row, column)
        wanted = [downsample * n for n in (window.x, window.y, window.width, window.height)]
        assert box(opened.windows, row, column) == pytest.approx(wanted, abs=1e-9)
        # A cell is around the window's centre, a stride wide: the cells cover the plane.
        x, y, width, height = box(cells, row, column)
        assert (x + width / 2, y + height / 2) == pytest.approx(
            (wanted[0] + wanted[2] / 2, wanted[1] + wanted[3] / 2), abs=1e-9
        )
        assert (width, height) == pytest.approx([downsample * n for n in grid.stride], abs=1e-9)
    if downsample != 2.5:  # then all are halves, and exact
        assert all(value * 2 == int(value * 2) for pair in cells for value in pair)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (6, 5)])
def test_cells_of_maps_share_their_window(sunk: MakeHeatmap, shape: tuple[int, int]) -> None:
    grid = Grid(Size(47, 43), Size(10, 12), Size(10, 12), 0, (2, 3))
    plan = grid_plan(grid, downsample=2.0)
    opened = open_heatmap(sunk(plan, np.zeros((plan.count, 1, *shape), np.float32)))
    height, width = 24 / shape[0], 20 / shape[1]
    i, j = 2 * shape[0] + shape[0] - 1, shape[1]
    wanted = (4 + j * width, 6 + i * height, width, height)
    assert box(opened.levels[0].cells, i, j) == pytest.approx(wanted, abs=1e-9)
    assert opened.windows == Lattice((4, 6), (20, 24), (20, 24))


def test_blended_maps_have_a_code_for_each_cell(sunk: MakeHeatmap) -> None:
    """Windows of 16 pixels every 4, with cells of 2 pixels, on a level 4 times as coarse."""
    plan = grid_plan(Grid(Size(47, 43), Size(16, 16), Size(4, 4)), downsample=4.0)
    values = np.ones((plan.count, 1, 8, 8), np.float32)
    valid = np.ones(plan.count, np.bool_)
    valid[0] = False
    values[0] = np.nan
    opened = open_heatmap(sunk(plan, values, valid=valid))
    assert opened.windows is None
    assert opened.codes is not None
    assert opened.levels[0].cells == opened.codes.cells == Lattice((0, 0), (8, 8), (8, 8))
    # Of the first window, only the cells that no other one reaches are lost: two by two.
    codes = opened.codes_at(np.arange(4, 40, 8.0), np.arange(4, 40, 8.0))
    wanted = np.ones((5, 5))
    wanted[:2, :2] = 2
    np.testing.assert_array_equal(codes, wanted)


def test_labels_stand_for_channels(sunk: MakeHeatmap) -> None:
    plan = grid_plan(Grid(Size(40, 30), Size(10, 10), Size(5, 5)))
    values = np.zeros((plan.count, 3, 2, 2), np.float32)
    values[:, 1] = 1
    opened = open_heatmap(sunk(plan, values, dtype="labels", channels=["a", "b", "c"]))
    level = opened.levels[0]
    assert level.shape == (1, 6, 8)
    assert level.dtype == np.uint8
    assert level.missing == 0
    assert opened.channels == (Named("label"),)
    assert [opened.labels[n].name for n in (1, 2, 3)] == ["a", "b", "c"]
    assert (level.read(slice(0, 1), slice(0, 6), slice(0, 8)) == 2).all()


def test_codes_of_something_else_are_refused(group: MakeHeatmap) -> None:
    path = group([np.ones((1, 4, 4), np.float32)], valid=np.ones((3, 4), np.uint8))
    with pytest.raises(CannotOpen, match=r"has \(3, 4\) codes for \(4, 4\) cells"):
        open_heatmap(path)


def test_types_levels_names_and_shards_are_read(group: MakeHeatmap) -> None:
    base = np.arange(2 * 12 * 10, dtype=np.float16).reshape(2, 12, 10)
    omero = {"channels": [{"label": "tumour", "color": "FF0000"}, {"label": "stroma"}]}
    path = group(
        [base, base[:, ::2, ::2]], chunks=(1, 3, 5), shards=(2, 6, 10), omero=omero, pitch=(4, 2)
    )
    opened = open_heatmap(path)
    assert opened.channels == (Named("tumour", (255, 0, 0)), Named("stroma"))
    assert [level.cells.pitch for level in opened.levels] == [(4, 2), (8, 4)]
    assert {level.cells.origin for level in opened.levels} == {(0, 0)}
    part = opened.levels[0].read(slice(1, 2), slice(2, 7), slice(3, 9))
    np.testing.assert_array_equal(part, base[1:2, 2:7, 3:9])
    assert opened.levels[1].shape == (2, 6, 5)
    rows = {(rows.start, rows.stop) for rows, _ in opened.levels[0].blocks(1)}
    assert rows == {(0, 12)}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_blocks_cover_each_cell_once_and_keep_chunks_whole_where_they_fit(
    group: MakeHeatmap, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    rows, columns, high, wide = (data.draw(st.integers(1, n)) for n in (20, 20, 9, 9))
    level = open_heatmap(
        group([np.zeros((1, rows, columns), np.float32)], chunks=(1, high, wide))
    ).levels[0]
    most = data.draw(st.integers(1, 2000))
    monkeypatch.setattr(reader, "_BLOCK_BYTES", most)
    seen = np.zeros((rows, columns), int)
    ends = []
    for down, across in level.blocks(1):
        seen[down, across] += 1
        ends.append((down.start, across.start))
        size = (down.stop - down.start, across.stop - across.start)
        assert 4 * size[0] * size[1] <= max(most, 4)
        if 4 * high * wide <= most:
            assert down.start % high == across.start % wide == 0
    assert (seen == 1).all()
    assert ends == sorted(ends)


def test_an_unfinished_heatmap_says_how_far_it_is(sunk: MakeHeatmap) -> None:
    plan = grid_plan(Grid(Size(40, 30), Size(5, 5), Size(5, 5)))
    values = np.ones((plan.count, 1), np.float32)
    finished = open_heatmap(sunk(plan, values))
    assert finished.unfinished is None
    opened = open_heatmap(sunk(plan, values, stop=20))
    assert opened.unfinished is not None
    assert "is not finished: 20 of 48 windows are there" in opened.unfinished
    there = ~np.isnan(opened.levels[0].read(slice(0, 1), slice(0, 6), slice(0, 8)))
    assert there.sum() == 20


def test_a_heatmap_without_values_is_refused(sunk: MakeHeatmap) -> None:
    plan = grid_plan(Grid(Size(40, 30), Size(5, 5), Size(5, 5)))
    path = sunk(plan, np.ones((plan.count, 1), np.float32), stop=0)
    with pytest.raises(CannotOpen, match="holds no values yet"):
        open_heatmap(path)


@pytest.mark.parametrize(
    ("which", "number"), [(None, 0), (1, 1), ("1", 1), ("b", 1), ("0", 2), (2, 2)]
)
def test_a_channel_has_a_name_or_a_number(
    group: MakeHeatmap, which: int | str | None, number: int
) -> None:
    count = 1 if which is None else 3
    names = ["a", "b", "0"][:count]
    opened = open_heatmap(group([np.zeros((count, 2, 2), np.float32)], channels=names))
    assert opened.channel(which) == number


@pytest.mark.parametrize("which", [None, "c", 2, -1, "-1", "²", "a"])
def test_a_channel_that_is_none_is_refused_with_those_that_are(
    group: MakeHeatmap, which: int | str | None
) -> None:
    opened = open_heatmap(group([np.zeros((2, 2, 2), np.float32)], channels=["a", "a"]))
    with pytest.raises(ConfigError, match="choose one by its name or its number, from 0: a, a"):
        opened.channel(which)


def test_label_images_are_found_by_name(group: MakeHeatmap) -> None:
    path = group([np.zeros((1, 4, 4), np.float32)])
    labels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    inner = {
        "properties": [{"label-value": 1, "name": "tumour"}],
        "colors": [{"label-value": 1, "rgba": [1, 2, 3, 255]}, {"label-value": 2, "rgba": [9] * 4}],
    }
    other = group([labels], name="other", fill=0, **{"image-label": inner})
    zarr.open_group(str(path / "labels"), mode="w", attributes={"ome": {"labels": ["classes"]}})
    shutil.copytree(other, path / "labels" / "classes")
    opened = open_heatmap(path, "classes")
    assert opened.levels[0].missing == 0
    assert opened.levels[0].labelled
    assert opened.labels == {1: Named("tumour", (1, 2, 3)), 2: Named("2", (9, 9, 9))}
    assert not open_heatmap(path).levels[0].labelled
    for name in ("nothing", "../map", ""):
        with pytest.raises(CannotOpen, match=r"no label image .* it has classes"):
            open_heatmap(path, name)


def wrong(path: Path, change: Change, kind: str) -> None:
    def image(attributes: dict[str, Any]) -> Any:
        return attributes["ome"]["multiscales"][0]

    dataset = {"path": "0"}
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "no record": lambda a: a.pop("streamwsi"),
        "record of another kind": lambda a: a.update(streamwsi=[1]),
        "no state": lambda a: a["streamwsi"].pop("state"),
        "no slide": lambda a: a["streamwsi"].pop("slide"),
        "no size": lambda a: a["streamwsi"]["slide"].update(width=-1),
        "huge size": lambda a: a["streamwsi"]["slide"].update(width=10**12),
        "no image": lambda a: a.pop("ome"),
        "no levels": lambda a: image(a).update(datasets=[]),
        "too many levels": lambda a: image(a).update(datasets=image(a)["datasets"] * 100),
        "other axes": lambda a: image(a)["axes"].reverse(),
        "other unit": lambda a: image(a)["axes"][1].update(unit="parsec"),
        "no mpp": lambda a: [axis.update(unit="micrometer") for axis in image(a)["axes"]],
        "no scale": lambda a: image(a).update(datasets=[dataset]),
        "scale 0": lambda a: image(a).update(
            datasets=[dataset | {"coordinateTransformations": _transform("scale", [0, 0, 0])}]
        ),
        "infinite translation": lambda a: image(a).update(
            datasets=[
                dataset | {"coordinateTransformations": _transform("translation", [0, 0, 1e999])}
            ]
        ),
        "affine": lambda a: image(a).update(
            datasets=[dataset | {"coordinateTransformations": _transform("affine", [])}]
        ),
        "path outside": lambda a: image(a)["datasets"][0].update(path="../other/0"),
        "array missing": lambda a: image(a)["datasets"][0].update(path="7"),
    }
    if kind in edits:
        change(path, edits[kind])
    elif kind == "no JSON":
        (path / "zarr.json").write_text("{")
    elif kind == "array no JSON":
        (path / "0" / "zarr.json").write_text("{")
    elif kind == "complex numbers":
        shutil.rmtree(path / "0")
        zarr.create_array(str(path / "0"), shape=(1, 4, 4), dtype="complex64")
    elif kind == "one dimension":
        shutil.rmtree(path / "0")
        zarr.create_array(str(path / "0"), shape=(4,), dtype="float32")
    elif kind == "huge chunks":
        shutil.rmtree(path / "0")
        big = (1, 10**5, 10**5)
        zarr.create_array(str(path / "0"), shape=big, chunks=big, dtype="float32")
    elif kind == "too many cells":
        shutil.rmtree(path / "0")
        zarr.create_array(str(path / "0"), shape=(1, 1, 2**25), chunks=(1, 1, 64), dtype="uint8")
    elif kind == "too many channels":
        shutil.rmtree(path / "0")
        zarr.create_array(str(path / "0"), shape=(2**20, 1, 1), chunks=(1, 1, 1), dtype="uint8")
    elif kind == "codes of another type":
        shutil.rmtree(path / "valid")
        zarr.create_array(str(path / "valid"), shape=(4, 4), dtype="float32")
    else:
        raise AssertionError(kind)


def _transform(kind: str, values: list[float]) -> list[dict[str, Any]]:
    return [{"type": kind, kind: values}]


@pytest.mark.parametrize(
    "kind",
    """no record, record of another kind, no state, no slide, no size, huge size, no image,
    no levels, too many levels, other axes, other unit, no mpp, no scale, scale 0,
    infinite translation, affine, path outside, array missing, no JSON, array no JSON,
    complex numbers, one dimension, huge chunks, too many cells, too many channels,
    codes of another type""".replace("\n", "").split(","),
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    group: MakeHeatmap, attributes: Change, kind: str
) -> None:
    path = group([np.zeros((1, 4, 4), np.float32)])
    wrong(path, attributes, " ".join(kind.split()))
    with pytest.raises(CannotOpen) as caught:
        open_heatmap(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_what_is_no_heatmap_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "folder").mkdir()
    for name, words in [
        ("file.zarr", "is a file"),
        ("none.zarr", "does not exist"),
        ("folder", "is not a heatmap of streamwsi"),
    ]:
        with pytest.raises(CannotOpen, match=words):
            open_heatmap(tmp_path / name)


def test_a_damaged_chunk_is_an_error_of_its_own(group: MakeHeatmap) -> None:
    path = group([np.ones((1, 4, 4), np.float32)])

    chunk = next(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    chunk.write_bytes(b"rubbish")
    opened = open_heatmap(path)
    with pytest.raises(CannotRead, match="holds a chunk that cannot be read"):
        opened.levels[0].read(slice(0, 1), slice(0, 4), slice(0, 4))
