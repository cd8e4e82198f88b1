"""What the sinks wrote, read by its own metadata: OME transformations, coordinates of windows.

Nothing of the package's own geometry is used: an output that is off by half a cell must be so here.
OME-NGFF counts from the centre of the slide's first pixel, hence the halves that are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..slides import Mpp
from .measuring import Marks, lattice_marks

__all__ = [
    "features_hdf5",
    "features_zarr",
    "label_weights",
    "pdmcsv",
    "pdmcsv_raster",
    "zarr_image",
]


def label_weights(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What values say of darkness: label 1 is white, and 0 nothing."""
    return np.maximum(values.astype(np.float64) - 1, 0) if values.dtype.kind == "u" else values


def zarr_image(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """All levels of an OME-Zarr image, and of its label images.

    Args:
        path: the group.
        mpp: micrometres per level-0 pixel, where the slide has them.
    """
    yield from _multiscale(path, "zarr", mpp)
    labels = path / "labels"
    if labels.is_dir():
        for name in _ome(labels)["labels"]:
            yield from _multiscale(labels / name, f"zarr label image {name}", mpp)


def _ome(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]


def _multiscale(path: Path, output: str, mpp: Mpp | None) -> Iterator[Marks]:
    import zarr

    (image,) = _ome(path)["multiscales"]
    axes = {axis["name"]: number for number, axis in enumerate(image["axes"])}
    for number, dataset in enumerate(image["datasets"]):
        values = np.asarray(zarr.open_array(str(path / dataset["path"]), mode="r"))
        at: Any = {}
        for name in ("x", "y"):
            axis = axes[name]
            microns = image["axes"][axis].get("unit") == "micrometer"
            unit = getattr(mpp, name) if microns else 1.0
            places = np.arange(values.shape[axis], dtype=np.float64)
            for step in dataset["coordinateTransformations"]:
                if step["type"] == "scale":
                    places *= step["scale"][axis]
                else:
                    places += step["translation"][axis]
            at[name] = places / unit + 0.5
        shown = f"{output}, smaller level {number}" if number else output
        plane = label_weights(values.reshape(-1, *values.shape[-2:])[0])
        yield lattice_marks(shown, plane, at["x"], at["y"], _pitch(at["x"], at["y"]))


def _pitch(xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]) -> float:
    return max(float(at[1] - at[0]) if len(at) > 1 else 0.0 for at in (xs, ys))


def features_zarr(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Windows from their corners and their size on level 0."""
    import zarr

    windows = json.loads((path / "zarr.json").read_text())["attributes"]["windows"]
    values, coords = (
        np.asarray(zarr.open_array(str(path / name), mode="r")) for name in ("features", "coords")
    )
    middles = coords + np.array(windows["kernel_size_level0"]) / 2
    yield Marks("features-zarr", middles[:, 0], middles[:, 1], values[:, 0].astype(np.float64))


def features_hdf5(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Windows as CLAM and TRIDENT understand them: square, ``patch_size_level0`` wide."""
    import h5py

    with h5py.File(path) as file:
        values, coords = file["features"][:, 0], file["coords"][:]
        size = int(file["coords"].attrs["patch_size_level0"])
    middles = coords + size / 2
    yield Marks("features-hdf5", middles[:, 0], middles[:, 1], values.astype(np.float64))


def pdmcsv(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """Each value of each line in the middle of its share of the window; where windows overlap, the
    mean of those in one place."""
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    y, x, kernel, downsample, rows, columns = table[:, [0, 1, 5, 6, 8, 9]].T
    height, width = int(rows[0]), int(columns[0])
    values = table[:, 10 : 10 + height * width].reshape(-1, height, width)
    i, j = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    down, across, kernel, downsample = (a[:, None, None] for a in (y, x, kernel, downsample))
    ys = np.broadcast_to((down + i * kernel / height) * downsample, values.shape)
    xs = np.broadcast_to((across + j * kernel / width) * downsample, values.shape)
    places = np.round(np.stack([xs.ravel(), ys.ravel()], 1), 3)
    unique, where, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    means = np.bincount(where.ravel(), values.ravel()) / counts
    yield Marks("pdmcsv", unique[:, 0], unique[:, 1], means)


def pdmcsv_raster(path: Path, mpp: Mpp | None) -> Iterator[Marks]:
    """The raster of a pdmcsv file: from the level's corner on, cells of the kernel's share."""
    from ..pdmcsv import to_raster

    line = np.loadtxt(path, delimiter=",", max_rows=1, ndmin=1)
    raster = to_raster(path)
    pitch = [line[5] / line[axis] * line[6] for axis in (9, 8)]
    xs, ys = ((np.arange(raster.shape[1 - a]) + 0.5) * pitch[a] for a in (0, 1))
    yield lattice_marks("pdmcsv raster", raster[:, :, 0], xs, ys, max(pitch))
