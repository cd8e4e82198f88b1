"""A dark square on a white slide lies, in every export, where it lies on the slide."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import shapely
import tifffile

from streamwsi import Batch, Limits, Pipeline, run_sync
from streamwsi.exporting import export_csv, export_geojson, export_ome_tiff, export_png
from streamwsi.geometry import Box, Size
from streamwsi.processors import BatchProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr
from streamwsi.sources import TiffSource
from streamwsi.testing.svs_writer import write_svs

#: Odd sizes, so that no level ends at a tile; the square is far from the middle of both axes.
SIZE = Size(1501, 1087)
SQUARE = Box(1088, 192, 128, 128)


@dataclass(frozen=True, slots=True)
class Darkness(BatchProcessor[npt.NDArray[np.float32]]):
    """How dark windows are, 0 … 1, as a vector or as a map of 4 × 4 cells."""

    maps: bool = False

    def compute(self, batch: Batch) -> npt.NDArray[np.float32]:
        dark = 1 - batch.pixels[:, :, :, 0].astype(np.float32) / 255
        n, height, width = dark.shape
        side = 4 if self.maps else 1
        parts: npt.NDArray[np.float32] = dark.reshape(
            n, side, height // side, side, width // side
        ).mean(axis=(2, 4))
        return parts[:, None] if self.maps else parts.reshape(n, 1)


def paint(box: Box) -> npt.NDArray[np.uint8]:
    pixels = np.full((box.height, box.width, 3), 255, np.uint8)
    there = box.intersection(SQUARE).shifted(-box.x, -box.y)
    if not there.empty:
        pixels[there.y : there.bottom, there.x : there.right] = 0
    return pixels


def centre(weights: npt.NDArray[Any], xs: Any, ys: Any) -> tuple[float, float]:
    total = weights.sum()
    return float((weights * xs).sum() / total), float((weights * ys).sum() / total)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "square.svs"
    write_svs(path, SIZE, paint, levels=2, quality=100)
    return path


@pytest.mark.parametrize(
    ("level", "kernel", "stride", "maps"),
    [(0, 32, 32, False), (0, 64, 32, False), (1, 16, 8, False), (0, 64, 64, True), (1, 8, 8, True)],
)
def test_the_square_is_where_it_is(
    slide: Path, tmp_path: Path, level: int, kernel: int, stride: int, maps: bool
) -> None:
    run_sync(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel_size=kernel, stride=stride, level=level),
            processor=Darkness(maps=maps),
            sink=HeatmapZarr(tmp_path),
        ),
        [slide],
        limits=Limits(workers=1),
    ).raise_for_failures()
    path = tmp_path / "square.zarr"
    wanted = (SQUARE.x + SQUARE.width / 2, SQUARE.y + SQUARE.height / 2)

    export_csv(path, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        table = np.array([[float(value) for value in row] for row in [*csv.reader(file)][1:]])
    _, _, x, y, width, height, _, value = table.T
    assert centre(value, x + width / 2, y + height / 2) == pytest.approx(wanted, abs=0.5)

    export_geojson(path, tmp_path / "a.geojson", thresholds=[0.4])
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    shape = shapely.from_geojson(json.dumps(feature["geometry"]))
    assert (shape.centroid.x, shape.centroid.y) == pytest.approx(wanted, abs=0.5)

    export_ome_tiff(path, tmp_path / "a.ome.tiff")
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as tiff:
        image, meta = tiff.asarray(), tiff.ome_metadata
        facts: Any = tifffile.xml2dict(meta)["OME"]["Image"]["Pixels"]  # type: ignore[arg-type]
    i, j = np.mgrid[: image.shape[0], : image.shape[1]]
    corner, far = (
        [facts["Plane"][f"Position{a}"] for a in "XY"],
        [facts[f"PhysicalSize{a}"] for a in "XY"],
    )
    places = [(corner[a] + far[a] * (n + 0.5)) / 0.25 for a, n in ((0, j), (1, i))]
    assert centre(image, *places) == pytest.approx(wanted, abs=0.5)

    # A picture smaller than any level: the slide is shrunk as exactly, and the map's cells go to
    # the pixels with their centres, so that edges are half a pixel off at most.
    export_png(path, tmp_path / "b.png", slide=slide, alpha=0, colormap="gray_r", max_size=290)
    export_png(path, tmp_path / "c.png", slide=slide, alpha=1, colormap="gray_r", max_size=290)
    for name, error in (("b", 0.5), ("c", 2.5)):
        figure = imagecodecs.png_decode((tmp_path / f"{name}.png").read_bytes()).astype(np.float64)
        picture = 255 - figure[30 : 30 + 210, 12 : 12 + 290, 0]
        rows, columns = np.mgrid[:210, :290]
        found = centre(picture, 1500 / 290 * (columns + 0.5), 1084 / 210 * (rows + 0.5))
        assert found == pytest.approx(wanted, abs=error)
    # The colour map is grey: a pixel of the map is as dark as the thumbnail's under it.
    export_png(path, tmp_path / "a.png", slide=slide, alpha=1, colormap="gray_r", max_size=400)
    width_shown, height_shown = SIZE.width // 4, SIZE.height // 4
    figure = imagecodecs.png_decode((tmp_path / "a.png").read_bytes()).astype(np.float64)
    picture = 255 - figure[30 : 30 + height_shown, 12 : 12 + width_shown, 0]
    rows, columns = np.mgrid[:height_shown, :width_shown]
    found = centre(picture, 4 * (columns + 0.5), 4 * (rows + 0.5))
    assert found == pytest.approx(wanted, abs=1)
    dark = [SQUARE.x // 4, SQUARE.right // 4, SQUARE.y // 4, SQUARE.bottom // 4]
    if stride == kernel or maps:  # then the square is a square of cells
        seen = np.zeros_like(picture)
        seen[dark[2] : dark[3], dark[0] : dark[1]] = 255
        assert np.abs(picture - seen).max() <= 3
