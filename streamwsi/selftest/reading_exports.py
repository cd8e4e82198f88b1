"""What the exporters made of a heatmap, read as other programs would: by what the files say."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..slides import Mpp, snapped_downsample
from .measuring import Marks, lattice_marks
from .reading import label_weights

__all__ = ["csv_table", "geojson", "ome_tiff", "parquet", "png"]

_THRESHOLDS = 64
_ABOUT = re.compile(r"covers (\S+) × (\S+) level-0 pixels of the slide from x (\S+), y (\S+) on")
_MOST_PIXELS = 4096
_LINE = 100


def ome_tiff(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """All levels of the first page: by the physical sizes and the plane's position where the slide
    has an mpp, and by the description."""
    import tifffile

    from ..exporting import export_ome_tiff

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "map.ome.tiff")
        export_ome_tiff(path, made)
        with tifffile.TiffFile(made) as file:
            facts: Any = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]
            planes = [level.asarray() for level in file.series[0].levels]
    found = _ABOUT.search(facts["Description"])
    if found is None:
        raise ValueError("the OME-TIFF's description does not say where it lies")
    width, height, x, y = map(float, found.groups())
    places = [("ome-tiff by its description", (width, height), (x, y))]
    if mpp is not None:
        pixels = facts["Pixels"]
        plane = pixels["Plane"]
        plane = plane[0] if isinstance(plane, list | tuple) else plane
        size = pixels["PhysicalSizeX"] / mpp.x, pixels["PhysicalSizeY"] / mpp.y
        corner = plane["PositionX"] / mpp.x, plane["PositionY"] / mpp.y
        places.append(("ome-tiff by its OME-XML", size, corner))
    for output, size, corner in places:
        for number, values in enumerate(planes):
            factor = [snapped_downsample(planes[0].shape[a], values.shape[a]) for a in (1, 0)]
            pitch = [size[a] * factor[a] for a in (0, 1)]
            xs, ys = (
                corner[a] + np.arange(0.5, values.shape[1 - a], dtype=np.float64) * pitch[a]
                for a in (0, 1)
            )
            shown = f"{output}, smaller level {number}" if number else output
            yield lattice_marks(shown, label_weights(values), xs, ys, max(pitch))


def csv_table(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Rows of boxes."""
    from ..exporting import export_csv

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "map.csv")
        export_csv(path, made)
        with made.open(newline="") as file:
            head, *rows = csv.reader(file)
    columns = np.array([[float(text or "nan") for text in row] for row in rows]).T
    if (path / "labels").is_dir():
        columns[-1] = label_weights(columns[-1].astype(np.uint8))
    yield _boxes("csv", dict(zip(head, columns, strict=True)), head[-1])


def parquet(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Rows of boxes."""
    import pyarrow.parquet

    from ..exporting import export_parquet

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "map.parquet")
        export_parquet(path, made)
        table = pyarrow.parquet.read_table(made)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    yield _boxes("parquet", columns, table.column_names[-1])


def _boxes(output: str, columns: dict[str, npt.NDArray[Any]], value: str) -> Marks:
    x = columns["x"] + columns["width"] / 2
    y = columns["y"] + columns["height"] / 2
    return Marks(output, x, y, np.nan_to_num(columns[value]).astype(np.float64))


def geojson(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Polygons: of many thresholds, each with its area's weight, or of labels, also with the
    label's."""
    from ..exporting import export_geojson

    labelled = (path / "labels").is_dir()
    thresholds = None if labelled else [(i + 0.5) / _THRESHOLDS for i in range(_THRESHOLDS)]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "map.geojson")
        export_geojson(path, made, thresholds=thresholds)
        features = json.loads(made.read_text())["features"]
    moments = []
    for feature in features:
        # Labels bear their numbers as names; label 1 is white.
        name = feature["properties"]["classification"]["name"]
        rings = feature["geometry"]["coordinates"]
        moments.append((int(name) - 1 if labelled else 1) * sum(map(_moments, rings)))
    area, x, y = np.array(moments).reshape(-1, 3).T
    there = area > 0
    area, x, y = area[there], x[there], y[there]
    yield Marks("geojson", x / area, y / area, area)


def _moments(ring: Any) -> npt.NDArray[np.float64]:
    """Area, and area times centroid; those of holes are negative."""
    # From its first corner: far from the slide's, digits would be lost.
    x0, y0 = ring[0]
    x, y = (np.array(ring, np.float64) - (x0, y0)).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    area = cross.sum() / 2
    first = ((x[:-1] + x[1:]) * cross).sum() / 6, ((y[:-1] + y[1:]) * cross).sum() / 6
    return np.array([area, first[0] + area * x0, first[1] + area * y0])


def png(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """The picture within its frame, on white; it is the whole slide, pixel by pixel.

    Only where its pixels are no larger than the slide's: what they show is the cell at their
    middle, to half a pixel.
    """
    import imagecodecs

    from ..exporting import export_png

    slide = json.loads((path / "zarr.json").read_text())["attributes"]["streamwsi"]["slide"]
    size = slide["width"], slide["height"]
    if max(size) > _MOST_PIXELS:
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "map.png")
        export_png(
            path, made, plain=True, colormap="gray_r", value_range=(0, 1), max_size=max(64, *size)
        )
        figure = imagecodecs.png_decode(made.read_bytes())[:, :, 0]
    line = figure == _LINE
    rows = np.flatnonzero(line.sum(1) > 0.9 * line.sum(1).max())
    columns = np.flatnonzero(line.sum(0) > 0.9 * line.sum(0).max())
    inside = figure[rows[0] + 1 : rows[-1], columns[0] + 1 : columns[-1]]
    xs, ys = (
        (np.arange(inside.shape[1 - a]) + 0.5) * size[a] / inside.shape[1 - a] for a in (0, 1)
    )
    yield lattice_marks("png", 255 - inside.astype(np.float64), xs, ys)
