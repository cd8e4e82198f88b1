"""What a heatmap's JSON documents say, checked as the words of a stranger.

A heatmap is the zarr group of `streamwsi.sinks.heatmap_zarr`: ``ome`` describes an image (NGFF
0.5: datasets with transformations, ``omero`` channels), ``streamwsi`` is the record of what it
was made from. A label image of the group lies in ``labels/NAME`` with an ``ome`` of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CannotOpen
from ..json_files import zarr_attributes
from ..sinks.records import State
from .lattices import Lattice

__all__ = ["Dataset", "Image", "Named", "Record", "read_documents"]

_MOST_LEVELS = 64
#: What is kept of names, which go into pictures and tables.
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Named:
    """A channel, or the class that a label stands for.

    Attributes:
        colour: red, green, blue; None where the metadata name none.
    """

    name: str
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """One level of the image: its path in the image's group, and where its cells lie."""

    path: str
    cells: Lattice


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the group.

    Attributes:
        folder: its own group.
        name: of the image.
        datasets: finest first.
        channels: as omero metadata name them; empty where they do not.
        labels: the classes of a label image.
    """

    folder: Path
    name: str
    datasets: tuple[Dataset, ...]
    channels: tuple[Named, ...]
    labels: Mapping[int, Named]


@dataclass(frozen=True, slots=True)
class Record:
    """What the heatmap was made from, and how far it is.

    Attributes:
        slide: the slide's file name.
        nbytes: the size of that; None where it is not said.
        size: width and height of its level 0.
        mpp: micrometres of a level-0 pixel, ``(x, y)``.
        kernel: width and height of a window in pixels of the level that was read; None for
            samplers without one.
        stride: distance between windows, likewise.
        channels: their names; empty before the first values came.
        cells: rows and columns of cells that a window has.
        labelled: whether cells are 1 + the number of a channel.
        state: how many windows are done.
    """

    slide: str
    nbytes: int | None
    size: tuple[int, int]
    mpp: tuple[float, float] | None
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    channels: tuple[str, ...]
    cells: tuple[int, int]
    labelled: bool
    state: State


def read_documents(path: Path, label: str | None) -> tuple[Image, Record]:
    """The image and the record of the heatmap at `path`.

    Args:
        path: the heatmap's folder.
        label: the label image to describe instead of the heatmap itself.

    Raises:
        CannotOpen: it is no heatmap of this package, or has no such label image.
    """
    if not path.is_dir():
        what = "is a file, and a heatmap is a folder" if path.exists() else "does not exist"
        raise CannotOpen(f"{path} {what}; name a .zarr that streamwsi heatmap wrote")
    try:
        attributes = zarr_attributes(path)
        written = attributes.get("streamwsi")
        if not isinstance(written, dict):
            raise CannotOpen(
                f"{path} is not a heatmap of streamwsi; name a .zarr that streamwsi heatmap wrote"
            )
        if str((written.get("sink") or {}).get("type")).startswith("features"):
            raise CannotOpen(
                f"{path} holds features, not a heatmap; name a .zarr that streamwsi heatmap "
                "--sink zarr wrote"
            )
        record = _record(written)
        folder = path if label is None else _label_folder(path, label)
        if label is not None:
            attributes = zarr_attributes(folder)
        return _image(folder, attributes.get("ome"), record.mpp), record
    except KeyError as error:
        raise CannotOpen(f"{path} has metadata that cannot be used: {error} is missing") from error
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise CannotOpen(f"{path} has metadata that cannot be used: {error}") from error
    except OSError as error:
        raise CannotOpen(f"{path} cannot be read: {error.strerror or error}") from error


def _label_folder(path: Path, label: str) -> Path:
    ome = zarr_attributes(path / "labels").get("ome")
    names = ome.get("labels") if isinstance(ome, dict) else None
    names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
    if label not in names:
        there = f"it has {', '.join(names)}" if names else "it has none"
        raise CannotOpen(f"{path} has no label image {label!r}; {there}")
    return path / "labels" / _plain(label)


def _plain(name: str) -> str:
    """A path within the group that stays there."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or {"\0", "\\"} & {*name}:
        raise ValueError(f"{name!r} is not a path inside the group")
    return name


def _record(record: dict[str, Any]) -> Record:
    slide, state = record["slide"], State.from_json(record.get("state"))
    if state is None:
        raise ValueError("the record does not say how far the heatmap is")
    size = _integers(slide["width"], slide["height"])
    mpp = slide.get("mpp")
    sampler = record["sampler"]
    while isinstance(sampler.get("sampler"), dict):
        sampler = sampler["sampler"]  # of one that is masked
    kernel, stride = sampler.get("kernel_size"), sampler.get("stride")
    channels = record.get("channels") or []
    return Record(
        Path(str(slide["name"])).name,
        slide.get("bytes"),
        size,
        None if mpp is None else _positive(*mpp),
        None if kernel is None else _integers(*kernel),
        None if stride is None else _integers(*stride),
        tuple(str(name)[:_LONGEST_NAME] for name in channels),
        _integers(*record.get("cells_per_window", (1, 1))),
        (record.get("sink") or {}).get("dtype") == "labels",
        state,
    )


def _integers(x: Any, y: Any) -> tuple[int, int]:
    if type(x) is not int or type(y) is not int or not 1 <= min(x, y) <= max(x, y) < 2**31:
        raise ValueError(f"{x!r} × {y!r} is no size in pixels")
    return x, y


def _positive(x: Any, y: Any) -> tuple[float, float]:
    x, y = float(x), float(y)
    if not (math.isfinite(x) and math.isfinite(y) and min(x, y) > 0):
        raise ValueError(f"{x} × {y} is no distance between cells")
    return x, y


def _image(folder: Path, ome: Any, mpp: tuple[float, float] | None) -> Image:
    image = ome["multiscales"][0]
    axes = [axis["name"] for axis in image["axes"]]
    if axes not in (["c", "y", "x"], ["y", "x"]):
        raise ValueError(f"its axes are {', '.join(map(str, axes))}, not c, y, x")
    units = {axis.get("unit") for axis in image["axes"] if axis["name"] in ("y", "x")}
    if units not in ({None}, {"micrometer"}):
        raise ValueError(f"its unit is {units}, neither micrometres nor level-0 pixels")
    if units == {"micrometer"} and mpp is None:
        raise ValueError("it is in micrometres, and the record does not say the slide's mpp")
    pixel = mpp if mpp is not None and units == {"micrometer"} else (1.0, 1.0)
    outer = image.get("coordinateTransformations") or []
    datasets = image["datasets"]
    if not 1 <= len(datasets) <= _MOST_LEVELS:
        raise ValueError(f"it has {len(datasets)} levels, not 1 to {_MOST_LEVELS}")
    return Image(
        folder,
        str(image.get("name") or folder.stem)[:_LONGEST_NAME],
        tuple(
            Dataset(
                _plain(dataset["path"]),
                _cells([*dataset["coordinateTransformations"], *outer], pixel),
            )
            for dataset in datasets
        ),
        tuple(map(_channel, (ome.get("omero") or {}).get("channels") or [])),
        _labels(ome.get("image-label") or {}),
    )


def _cells(transformations: list[Any], pixel: tuple[float, float]) -> Lattice:
    """Scales and translations, one after the other, as NGFF has them."""
    scale, translation = [1.0, 1.0], [0.0, 0.0]
    for each in transformations:
        kind = each["type"]
        if kind not in ("scale", "translation"):
            raise ValueError(f"a transformation is a {kind!r}, not a scale or a translation")
        y, x = map(float, each[kind][-2:])
        if kind == "scale":
            scale = [scale[0] * x, scale[1] * y]
            translation = [translation[0] * x, translation[1] * y]
        else:
            translation = [translation[0] + x, translation[1] + y]
    if not all(map(math.isfinite, translation)):
        raise ValueError("a translation is not finite")
    return Lattice.of_ngff(_positive(*scale), (translation[0], translation[1]), pixel)


def _channel(channel: Any) -> Named:
    colour = channel.get("color")
    rgb = tuple(bytes.fromhex(colour)) if isinstance(colour, str) else ()
    label = str(channel.get("label", ""))[:_LONGEST_NAME]
    return Named(label, (rgb[0], rgb[1], rgb[2]) if len(rgb) >= 3 else None)


def _labels(image_label: Any) -> dict[int, Named]:
    named: dict[int, Named] = {}
    for each in image_label.get("properties") or []:
        name = each.get("name", each.get("class"))
        if name is not None:
            named[int(each["label-value"])] = Named(str(name)[:_LONGEST_NAME])
    for each in image_label.get("colors") or []:
        value, (r, g, b) = int(each["label-value"]), (int(v) & 255 for v in each["rgba"][:3])
        named[value] = Named(named[value].name if value in named else str(value), (r, g, b))
    return named
