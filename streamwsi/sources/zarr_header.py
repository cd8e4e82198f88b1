"""What an OME-Zarr image says of itself, from its JSON documents alone.

This module does not import zarr: it reads the few documents of one image (the group's and
one per level), checks them as the words of a stranger, and hands on what the source needs.
Versions 0.4 (zarr v2, ``.zattrs``) and 0.5 (zarr v3, ``zarr.json``) of
https://ngff.openmicroscopy.org differ in where they keep the same metadata. Axes may come in
any order; whatever is not y, x or c must have the length 1.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CannotOpen
from ..slides import Mpp

__all__ = ["GROUP_DOCUMENTS", "ImageHeader", "LevelHeader", "read_header"]

T = TypeVar("T")

GROUP_DOCUMENTS = ("zarr.json", ".zattrs", ".zgroup")

_MOST_DOCUMENT_BYTES = 16 * 2**20
_MOST_LEVELS = 64

_DTYPES = {"u1": "uint8", "u2": "uint16", "f4": "float32"}
_DTYPES |= {name: name for name in _DTYPES.values()}

_MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}


@dataclass(frozen=True, slots=True, eq=False)
class LevelHeader:
    """One level as it is written down.

    Attributes:
        name: the dataset's path in the image's group.
        file: the array's metadata file.
        document: what it holds; ``zarr_format`` is 2 or 3.
        dtype: of the pixels, in native byte order.
        shape: of the array, a number per axis.
    """

    name: str
    file: Path
    document: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ImageHeader:
    """An image as it is written down.

    Attributes:
        axes: one letter each, in the order of the arrays.
        levels: the datasets, as they are listed: finest first.
        mpp: size of a level-0 pixel, where the axes have a unit of length.
        version: of OME-Zarr.
        name: the image's name, or empty.
        documents: the bytes of all documents that were read.
    """

    axes: tuple[str, ...]
    levels: tuple[LevelHeader, ...]
    mpp: Mpp | None
    version: str
    name: str
    documents: tuple[bytes, ...]


def read_header(uri: str) -> ImageHeader:
    """The header of the image in a folder, or of the first image of a bioformats2raw folder.

    Raises:
        CannotOpen: there is no such image, or its metadata is not usable.
    """
    try:
        if not Path(uri).is_dir():
            raise ValueError("there is no such folder; check the path")
        return _Reader().image(Path(uri))
    except FileNotFoundError as error:
        raise CannotOpen(f"{uri}: {error.filename} is missing; copy the whole folder") from error
    except OSError as error:
        raise CannotOpen(f"{uri}: the metadata cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CannotOpen(f"{uri}: {error}") from error


class _Reader:
    """Reads documents and keeps their bytes."""

    def __init__(self) -> None:
        self._documents: list[bytes] = []

    def image(self, folder: Path) -> ImageHeader:
        attributes = self._attributes(folder)
        if "multiscales" not in attributes and "bioformats2raw.layout" in attributes:
            folder /= "0"
            attributes = self._attributes(folder)
        image = _image_of(attributes)
        axes, units = _axes(image)
        datasets = _field(image, "datasets", list, "the image")
        if not 1 <= len(datasets) <= _MOST_LEVELS:
            raise ValueError(f"the image has {len(datasets)} levels, not 1 to {_MOST_LEVELS}")
        return ImageHeader(
            axes,
            tuple(self._level(folder, dataset, axes) for dataset in datasets),
            _mpp(image, datasets[0], axes, units),
            str(image.get("version", attributes.get("version", "")))[:20],
            str(image.get("name") or ""),
            tuple(self._documents),
        )

    def _attributes(self, folder: Path) -> dict[str, Any]:
        """The image's metadata: 0.5 keeps it under "ome", 0.4 at the top of ``.zattrs``."""
        if (folder / "zarr.json").is_file():
            document = self._document(folder / "zarr.json")
            if document.get("node_type") == "array":
                raise ValueError("is a single array, not an image; name the image's group")
            attributes = document.get("attributes", {})
            inner = attributes.get("ome", attributes) if isinstance(attributes, dict) else None
            if not isinstance(inner, dict):
                raise ValueError("zarr.json holds no OME metadata")
            return inner
        if (folder / ".zarray").is_file():
            raise ValueError("is a single array, not an image; name the image's group")
        if not any((folder / name).is_file() for name in GROUP_DOCUMENTS):
            raise ValueError(f"is not OME-Zarr: it holds none of {', '.join(GROUP_DOCUMENTS)}")
        return self._document(folder / ".zattrs")

    def _level(self, folder: Path, dataset: Any, axes: tuple[str, ...]) -> LevelHeader:
        name = _field(dataset, "path", str, "a dataset")
        # Where a path could leave the store, what lies there is not part of this slide.
        if any(part in ("", ".", "..") for part in name.split("/")) or {"\\", "\0"} & set(name):
            raise ValueError(f"the dataset path {name!r} is not a plain path inside the store")
        v2, v3 = folder / name / ".zarray", folder / name / "zarr.json"
        file = v3 if v3.is_file() else v2
        if not file.is_file():
            raise ValueError(f"level {name!r} is listed but not there; copy the whole folder")
        document = self._document(file)
        if document.get("zarr_format") != (3 if file is v3 else 2):
            raise ValueError(f"level {name!r} is of a zarr format that is not 2 or 3")
        return LevelHeader(name, file, document, _dtype(document), _shape(document, axes))

    def _document(self, path: Path) -> dict[str, Any]:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_DOCUMENT_BYTES:
            raise ValueError(f"{path.name} is not a file of at most {_MOST_DOCUMENT_BYTES} bytes")
        data = path.read_bytes()
        self._documents.append(data)
        try:
            document = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{path.name} is not valid JSON ({error})") from error
        if not isinstance(document, dict):
            raise ValueError(f"{path.name} is not a JSON object")
        return document


def _field(mapping: Any, key: str, kind: type[T], whose: str) -> T:
    value = mapping.get(key) if isinstance(mapping, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{whose} has no usable {key!r}; it is not OME-Zarr 0.4 or 0.5")
    return value


def _dtype(document: dict[str, Any]) -> str:
    written = document.get("dtype", document.get("data_type"))
    # zarr v2 has numpy's short names, with the byte order; v3 has it in a codec.
    dtype = _DTYPES.get(written.lstrip("<>|") if isinstance(written, str) else "")
    if dtype is None:
        raise ValueError(
            f"the pixels are of the type {str(written)[:40]!r}; "
            "uint8, uint16 and float32 can be read, so convert the image to one of them"
        )
    return dtype


def _shape(document: dict[str, Any], axes: tuple[str, ...]) -> tuple[int, ...]:
    shape = document.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != len(axes)
        or not all(type(n) is int and 1 <= n < 2**31 for n in shape)
    ):
        raise ValueError(f"the shape {str(shape)[:60]} does not fit the axes {', '.join(axes)}")
    for axis, n in zip(axes, shape, strict=True):
        if axis in "tz" and n != 1:
            raise ValueError(f"has {n} planes along {axis}; extract one of them into an own image")
    return tuple(shape)


def _image_of(attributes: dict[str, Any]) -> dict[str, Any]:
    for kind in ("plate", "well"):
        if kind in attributes:
            raise ValueError(f"is a {kind}, not an image; name one of the images inside it")
    images = _field(attributes, "multiscales", list, "the group")
    if not images or not isinstance(images[0], dict):
        raise ValueError("the list of 'multiscales' holds no image")
    image: dict[str, Any] = images[0]
    return image


def _axes(image: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The axes' names in order, and the units of those that have one."""
    axes = _field(image, "axes", list, "the image")
    names = tuple(_field(axis, "name", str, "an axis") for axis in axes)
    if len(set(names)) < len(names) or not {"y", "x"} <= set(names) <= set("tczyx"):
        raise ValueError(
            f"the axes {', '.join(names)!r} are not those of a slide: y, x, and maybe c, z, t"
        )
    units = {name: str(axis.get("unit")) for name, axis in zip(names, axes, strict=True)}
    return names, units


def _mpp(
    image: dict[str, Any], dataset: Any, axes: tuple[str, ...], units: dict[str, str]
) -> Mpp | None:
    """Size of a pixel: the level's scale times the image's; None where anything is unclear."""
    try:
        size = [_MICROMETRES[units["x"]], _MICROMETRES[units["y"]]]
        for scale in (*_scales(dataset), *_scales(image)):
            size = [n * float(scale[axes.index(axis)]) for n, axis in zip(size, "xy", strict=True)]
        return Mpp(*size) if any(_scales(dataset)) else None
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


def _scales(owner: Any) -> Iterator[list[Any]]:
    for transformation in owner.get("coordinateTransformations") or ():
        if transformation.get("type") == "scale":
            yield transformation["scale"]
