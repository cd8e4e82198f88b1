"""OME-TIFF: the heatmap's own pixels at every level, read back by tifffile."""

from __future__ import annotations

import tracemalloc
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from streamwsi import json_files
from streamwsi.errors import CannotRead
from streamwsi.exporting import export_ome_tiff, ome_tiff, pyramids
from streamwsi.geometry import Grid, Size
from streamwsi.slides import Mpp
from streamwsi.testing.outputs import grid_plan

MakeHeatmap = Callable[..., Path]
Array = npt.NDArray[Any]
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def levels_of(path: Path) -> list[Array]:
    """The levels of the only series, ``(C, rows, columns)``."""
    with tifffile.TiffFile(path) as file:
        (series,) = file.series
        assert file.is_ome
        channels = len(file.pages)
        assert all(level.keyframe.is_tiled for level in series.levels)
        arrays = [np.asarray(level.asarray()) for level in series.levels]
    return [array.reshape(channels, *array.shape[-2:]) for array in arrays]


def pixels_of(path: Path) -> tuple[ET.Element, ET.Element]:
    """The elements Image and Pixels of the OME-XML."""
    with tifffile.TiffFile(path) as file:
        assert file.ome_metadata is not None
        image = ET.fromstring(file.ome_metadata).find(f"{OME}Image")
    assert image is not None
    pixels = image.find(f"{OME}Pixels")
    assert pixels is not None
    return image, pixels


def halved(level: Array, labels: bool) -> Array:
    """Each cell from 2 × 2, in loops."""
    channels, rows, columns = level.shape
    coarse = np.zeros((channels, (rows + 1) // 2, (columns + 1) // 2), level.dtype)
    for c, i, j in np.ndindex(coarse.shape):
        cells = level[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        finite = [float(value) for value in cells.flat if not np.isnan(value)]
        mean = sum(finite) / len(finite) if finite else np.nan
        counts = Counter(value for value in cells.ravel().tolist() if value != 0)
        label = max(counts, key=lambda label: (counts[label], label), default=0)
        coarse[c, i, j] = label if labels else mean
    return coarse


@pytest.mark.parametrize("shape", [(1, 83, 47), (3, 64, 65), (4, 33, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int16"])
def test_levels_are_made_by_halves(
    group: MakeHeatmap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int, int],
    dtype: str,
) -> None:
    monkeypatch.setattr(pyramids, "TILE", 16)
    monkeypatch.setattr(ome_tiff, "TILE", 16)
    monkeypatch.setattr(pyramids, "_STRIP_BYTES", 1)
    values = (np.random.default_rng(1).normal(size=shape) * 50).astype(dtype)
    labels = values.dtype.kind != "f"
    if not labels:
        values[:, 3:9] = np.nan
        values[0, 20, 0] = np.inf
    path = group([values], fill=0 if labels else np.nan, chunks=(shape[0], 10, 13))
    count = export_ome_tiff(path, tmp_path / "a.ome.tiff")
    found = levels_of(tmp_path / "a.ome.tiff")
    assert len(found) == count
    assert max(found[-1].shape[1:]) <= 16 < max(found[-2].shape[1:])
    wanted = values.astype(np.float32) if dtype == "float16" else values
    for level in found:
        assert level.dtype == wanted.dtype
        # In float64 the order of additions shows.
        rtol = 1e-12 if dtype == "float64" and level is not found[0] else 0
        np.testing.assert_allclose(level, wanted, rtol)
        wanted = halved(wanted, labels)


def test_the_heatmaps_own_levels_are_taken(
    group: MakeHeatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramids, "TILE", 16)
    monkeypatch.setattr(ome_tiff, "TILE", 16)
    rng = np.random.default_rng(1)
    own = [rng.normal(size=(2, 80 // n, 60 // n)).astype(np.float32) for n in (1, 2, 4)]
    path = group(own, chunks=(1, 5, 5), shards=None)
    assert export_ome_tiff(path, tmp_path / "a.ome.tiff") == 4
    found = levels_of(tmp_path / "a.ome.tiff")
    for level, wanted in zip(found, [*own, halved(own[-1], False)], strict=True):
        np.testing.assert_array_equal(level, wanted)


def test_a_heatmap_of_the_sink_keeps_its_pixels(sunk: MakeHeatmap, tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(300, 200), Size(8, 8), Size(8, 8)))
    values = np.random.default_rng(1).normal(size=(plan.count, 2, 4, 4)).astype(np.float32)
    path = sunk(plan, values, chunk=50)
    assert export_ome_tiff(path, tmp_path / "a.ome.tiff") == 1
    (found,) = levels_of(tmp_path / "a.ome.tiff")
    np.testing.assert_array_equal(found, np.asarray(zarr.open_array(str(path / "0"), mode="r")[:]))


def test_the_metadata_say_where_the_image_lies(sunk: MakeHeatmap, tmp_path: Path) -> None:
    plan = grid_plan(
        Grid(Size(60, 50), Size(8, 8), Size(5, 4), 0, (2, 1)), downsample=4.0, mpp=Mpp(0.5, 0.25)
    )
    names = ['tumour <&> "x"', "stroma"]
    path = sunk(plan, np.zeros((plan.count, 2), np.float32), channels=names)
    export_ome_tiff(path, tmp_path / "a.ome.tiff")
    image, pixels = pixels_of(tmp_path / "a.ome.tiff")
    assert image.get("Name") == "slide"
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY")) == ("10.0", "4.0")
    assert {pixels.get("PhysicalSizeXUnit"), pixels.get("PhysicalSizeYUnit")} == {"µm"}
    assert [channel.get("Name") for channel in pixels.iter(f"{OME}Channel")] == names
    # The first cell is the middle of a window of 32 pixels from (8, 4) on, 20 × 16 pixels large.
    planes = list(pixels.iter(f"{OME}Plane"))
    assert [(p.get("PositionX"), p.get("PositionXUnit")) for p in planes] == [("7.0", "µm")] * 2
    assert [p.get("PositionY") for p in planes] == ["3.0"] * 2
    description = image.findtext(f"{OME}Description")
    assert description is not None
    assert "covers 20 × 16 level-0 pixels of the slide from x 14, y 12 on" in description


def test_without_mpp_positions_are_in_pixels(group: MakeHeatmap, tmp_path: Path) -> None:
    omero = {"channels": [{"label": "a", "color": "FF8000"}]}
    path = group([np.ones((1, 3, 3), np.float32)], origin=(4.0, 8.0), omero=omero)
    export_ome_tiff(path, tmp_path / "a.ome.tiff")
    _, pixels = pixels_of(tmp_path / "a.ome.tiff")
    assert pixels.get("PhysicalSizeX") is None
    (plane,) = pixels.iter(f"{OME}Plane")
    assert (plane.get("PositionX"), plane.get("PositionXUnit")) == ("4.0", "pixel")
    (channel,) = pixels.iter(f"{OME}Channel")
    assert int(channel.get("Color") or 0) & 0xFFFFFFFF == 0xFF8000FF


@pytest.mark.parametrize(("most", "big"), [(2**32, False), (256 * 256 * 4, False), (1000, True)])
def test_bigtiff_is_used_where_4_gib_might_not_do(
    group: MakeHeatmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, big: bool
) -> None:
    monkeypatch.setattr(ome_tiff, "_CLASSIC_BYTES", most)
    export_ome_tiff(group([np.ones((1, 3, 3), np.float32)]), tmp_path / "a.ome.tiff")
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert file.is_bigtiff == big


def test_the_same_heatmap_gives_the_same_bytes(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.random.default_rng(1).normal(size=(2, 300, 300)).astype(np.float32)])
    export_ome_tiff(path, tmp_path / "a.ome.tiff")
    first = (tmp_path / "a.ome.tiff").read_bytes()
    export_ome_tiff(path, tmp_path / "a.ome.tiff", overwrite=True)
    assert (tmp_path / "a.ome.tiff").read_bytes() == first


def test_a_damaged_chunk_leaves_nothing_behind(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 300, 300), np.float32)], chunks=(1, 150, 150))
    chunk = sorted(file for file in (path / "0" / "c").rglob("*") if file.is_file())[-1]
    chunk.write_bytes(b"rubbish")
    with pytest.raises(CannotRead, match="holds a chunk that cannot be read"):
        export_ome_tiff(path, tmp_path / "out" / "a.ome.tiff")
    assert [*(tmp_path / "out").iterdir()] == []


def test_memory_does_not_grow_with_the_map(
    sparse: Callable[..., tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramids, "_STRIP_BYTES", 256 << 10)
    monkeypatch.setattr(ome_tiff, "_BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(json_files, "_MAX_JSON_BYTES", 1 << 20)
    path, wide = sparse(3000, 2500, (1, 256, 256))
    wide[0, 2990:, 2490:] = 1
    tracemalloc.start()
    try:
        export_ome_tiff(path, tmp_path / "a.ome.tiff")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3000 * 2500 * 4 / 4
    assert levels_of(tmp_path / "a.ome.tiff")[0][0, -1, -1] == 1
