"""GeoJSON: regions at exactly the right level-0 pixels, as shapely and QuPath read them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from streamwsi import json_files
from streamwsi.errors import CannotRead, ConfigError
from streamwsi.exporting import export_geojson, geojson, heatmap
from streamwsi.geometry import Grid, Size
from streamwsi.testing.outputs import grid_plan

MakeHeatmap = Callable[..., Path]


def features(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    assert {*document} == {"type", "features"}
    assert document["type"] == "FeatureCollection"
    for feature in document["features"]:
        # What QuPath makes an annotation of.
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert feature["properties"]["objectType"] == "annotation"
        classification = feature["properties"]["classification"]
        assert isinstance(classification["name"], str)
        assert all(0 <= value <= 255 for value in classification["color"])
        assert len(classification["color"]) == 3
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    found: list[dict[str, Any]] = document["features"]
    return found


def regions(path: Path) -> dict[str, Any]:
    """The union of each class's polygons."""
    classes: dict[str, list[Any]] = {}
    for feature in features(path):
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert shape.is_valid
        classes.setdefault(feature["properties"]["classification"]["name"], []).append(shape)
    for shapes in classes.values():
        assert sum(s.area for s in shapes) == pytest.approx(shapely.union_all(shapes).area)
    return {name: shapely.union_all(shapes) for name, shapes in classes.items()}


def cells(mask: npt.NDArray[np.bool_], corner: float, pitch: tuple[float, float]) -> Any:
    """The union of the cells, one by one."""
    return shapely.union_all(
        [
            shapely.box(
                corner + j * pitch[0],
                corner + i * pitch[1],
                corner + (j + 1) * pitch[0],
                corner + (i + 1) * pitch[1],
            )
            for i, j in zip(*np.nonzero(mask), strict=True)
        ]
    )


@pytest.mark.parametrize("chunk", [3, 256])
def test_regions_are_the_cells_at_or_above_each_threshold(
    sunk: MakeHeatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(geojson, "_BAND_CELLS", 30)
    # Windows larger than their distance: cells are their middles, from (8 - 5) / 2 · 4 on.
    grid = Grid(Size(117, 83), Size(8, 8), Size(5, 5))
    plan = grid_plan(grid, downsample=4.0)
    values = np.random.default_rng(1).random((plan.count, 2)).astype(np.float32)
    values[::9] = np.nan
    values[5] = 0.25
    path = sunk(plan, values, chunk=chunk, channels=["a", "b"])
    out = tmp_path / "a.geojson"
    count = export_geojson(path, out, thresholds=[0.6, 0.25, 0.6], channel="b")
    found = regions(out)
    assert {*found} == {"b ≥ 0.25", "b ≥ 0.6"}
    assert count == len(features(out))
    image = values[:, 1].reshape(grid.rows, grid.columns)
    for threshold in (0.25, 0.6):
        mask = image >= np.float32(threshold)
        region = found[f"b ≥ {threshold}"]
        assert region.area == 400 * mask.sum()
        assert region.equals(cells(mask, 6.0, (20.0, 20.0)))
    colours = [f["properties"]["classification"]["color"] for f in features(out)]
    assert len({*map(tuple, colours)}) == 2


@pytest.mark.parametrize(("value", "threshold"), [(2000, 2000.4), (0.9, 0.9001), (6e4, 7e4)])
def test_a_threshold_between_two_small_floats(
    group: MakeHeatmap, tmp_path: Path, value: float, threshold: float
) -> None:
    """It is not rounded to one that the values reach."""
    path = group([np.full((1, 4, 4), value, np.float16)])
    for at, count in ((threshold, 0), (float(np.float16(value)), 1)):
        out = tmp_path / "a.geojson"
        assert export_geojson(path, out, thresholds=[at], overwrite=True) == count


def test_a_fraction_of_a_pixel_is_kept(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 3, 3), np.float32)], pitch=(256 / 3, 0.5), origin=(0.0, 2.5))
    export_geojson(path, tmp_path / "a.geojson")
    (feature,) = features(tmp_path / "a.geojson")
    assert feature["geometry"]["coordinates"] == [
        [[0.0, 2.5], [256.0, 2.5], [256.0, 4.0], [0.0, 4.0], [0.0, 2.5]]
    ]


def test_whole_coordinates_are_integers(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 1, 2), np.float32)], channels=["tumour \"x\" '€'"])
    export_geojson(path, tmp_path / "a.geojson")
    assert "[[[0, 0], [16, 0], [16, 8], [0, 8], [0, 0]]]" in (tmp_path / "a.geojson").read_text()
    assert {*regions(tmp_path / "a.geojson")} == {"tumour \"x\" '€' ≥ 0.5"}


def test_the_first_threshold_is_a_half_and_a_channels_colour_counts(
    group: MakeHeatmap, tmp_path: Path
) -> None:
    omero = {"channels": [{"label": "tumour", "color": "0A0B0C"}]}
    values = np.array([[[0.49, 0.5, np.inf, -np.inf]]], np.float32)
    export_geojson(group([values], omero=omero), tmp_path / "a.geojson")
    (feature,) = features(tmp_path / "a.geojson")
    assert feature["properties"]["classification"] == {
        "name": "tumour ≥ 0.5",
        "color": [10, 11, 12],
    }
    assert feature["geometry"]["coordinates"][0][:3] == [[8, 0], [24, 0], [24, 8]]


def test_of_nothing_there_is_an_empty_collection(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.full((1, 4, 4), np.nan, np.float32)])
    assert export_geojson(path, tmp_path / "a.geojson") == 0
    assert features(tmp_path / "a.geojson") == []


@pytest.mark.parametrize(("fill", "classes"), [(0, {1, 2, 3}), (255, {0, 1, 2, 3})])
def test_labels_become_the_regions_of_their_classes(
    group: MakeHeatmap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: int,
    classes: set[int],
) -> None:
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", 1)
    labels = np.random.default_rng(3).integers(0, 4, (1, 30, 17)).astype(np.uint8)
    labels[0, :9][labels[0, :9] == 3] = 1  # a class that comes later
    named = {
        "properties": [{"label-value": 1, "name": "tumour"}],
        "colors": [{"label-value": 1, "rgba": [1, 2, 3, 255]}],
    }
    path = group([labels], fill=fill, chunks=(1, 7, 5), **{"image-label": named})
    export_geojson(path, tmp_path / "a.geojson")
    found = regions(tmp_path / "a.geojson")
    assert {*found} == {"tumour" if value == 1 else str(value) for value in classes}
    for value in classes:
        region = found["tumour" if value == 1 else str(value)]
        assert region.equals(cells(labels[0] == value, 0.0, (8.0, 8.0)))
    colours = {
        f["properties"]["classification"]["name"]: f["properties"]["classification"]["color"]
        for f in features(tmp_path / "a.geojson")
    }
    assert colours["tumour"] == [1, 2, 3]
    assert len({*map(tuple, colours.values())}) == len(classes)


def test_numbers_of_objects_are_refused(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.arange(400, dtype=np.uint16).reshape(1, 20, 20)], fill=0)
    with pytest.raises(CannotRead, match="more than 255 labels"):
        export_geojson(path, tmp_path / "a.geojson")
    assert not (tmp_path / "a.geojson").exists()


@pytest.mark.parametrize("thresholds", [[], [np.nan], [np.inf, 1], [*range(300)]])
def test_thresholds_that_cannot_be_used_are_refused(
    group: MakeHeatmap, tmp_path: Path, thresholds: list[float]
) -> None:
    with pytest.raises(ConfigError, match="thresholds"):
        export_geojson(
            group([np.ones((1, 2, 2), np.float32)]), tmp_path / "a.json", thresholds=thresholds
        )
    labels = group([np.ones((1, 2, 2), np.uint8)], fill=0, name="labels")
    with pytest.raises(ConfigError, match="labels, which have no thresholds"):
        export_geojson(labels, tmp_path / "a.json", thresholds=[0.5])


def test_without_shapely_the_extra_is_named(
    group: MakeHeatmap, tmp_path: Path, uninstalled: Callable[[str], None]
) -> None:
    uninstalled("shapely")
    with pytest.raises(ConfigError, match=r'pip install "streamwsi\[export\]"'):
        export_geojson(group([np.ones((1, 2, 2), np.float32)]), tmp_path / "a.geojson")


def test_memory_does_not_grow_with_the_map(
    sparse: Callable[..., tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.2 million cells with a region in every chunk, in blocks of a tenth of a megabyte."""
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", 100_000)
    monkeypatch.setattr(geojson, "_BAND_CELLS", 50_000)
    monkeypatch.setattr(json_files, "_MAX_JSON_BYTES", 1 << 20)
    path, array = sparse(2600, 2000, (1, 100, 200))
    for row in range(50, 2600, 100):
        array[0, row : row + 9] = np.tile(np.arange(2000) % 200 < 9, (9, 1))
    tracemalloc.start()
    try:
        assert export_geojson(path, tmp_path / "a.geojson") == 26 * 10
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2600 * 2000 * 4 / 6
