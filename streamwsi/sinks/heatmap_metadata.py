"""What the JSON documents of a heatmap say: the image's axes and transformations, channel names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..heatmaps import Raster, Transform
from ..mosaics import Mosaic
from ..slides import Mpp, PyramidLevel
from .channel_display import Channel, omero

__all__ = ["channel_names", "multiscale", "ome_attributes"]


def channel_names(processor: Mapping[str, Any], count: int) -> list[str]:
    """The names that the processor's configuration gives to its outputs, or their numbers."""
    names = processor.get("channels")
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return names
    return [str(i) for i in range(count)]


def ome_attributes(
    name: str,
    raster: Raster | Mosaic,
    level: PyramidLevel,
    mpp: Mpp | None,
    *paths: str,
    channels: Sequence[Channel] = (),
    axes: str = "cyx",
) -> dict[str, Any]:
    """The image's metadata, as OME-NGFF 0.5 has it.

    Args:
        name: the image's.
        raster: its cells.
        level: the slide's level that the raster's windows lie on.
        mpp: the slide's.
        paths: the image's arrays, each with half the rows and columns of the one before; ``0``
            where none is given.
        channels: how they are shown; none to leave that to the viewer.
        axes: ``"cyx"`` or ``"yx"``.
    """
    transform = raster.transform(level, mpp)
    return {
        "version": "0.5",
        "multiscales": [multiscale(name, transform, paths or ("0",), axes=axes)],
        **({"omero": omero(channels)} if channels else {}),
    }


def multiscale(
    name: str, transform: Transform, paths: Sequence[str], *, axes: str
) -> dict[str, Any]:
    """An entry of ``multiscales``.

    Cell (i, j) of array k covers ``2ᵏ × 2ᵏ`` cells of array 0, those from (2ᵏi, 2ᵏj) on; so the
    distance between cells is 2ᵏ times theirs, and the centre of cell (0, 0) is the centre of its
    ``2ᵏ × 2ᵏ``. That is so for odd sizes too, whose last cells reach beyond the image.

    Args:
        name: the image's.
        transform: where the cells of array 0 lie.
        paths: arrays 0, 1, 2, …
        axes: ``"cyx"`` or ``"yx"``.
    """
    unit = {"unit": transform.unit} if transform.unit else {}
    kinds = {
        "c": {"type": "channel"},
        "y": {"type": "space", **unit},
        "x": {"type": "space", **unit},
    }
    channel_axes = len(axes) - 2
    datasets = []
    for k, path in enumerate(paths):
        scale, translation = _level(transform, 2**k)
        transformations = [
            {"type": "scale", "scale": [1.0] * channel_axes + scale},
            {"type": "translation", "translation": [0.0] * channel_axes + translation},
        ]
        datasets.append({"path": path, "coordinateTransformations": transformations})
    return {
        "name": name,
        "axes": [{"name": axis, **kinds[axis]} for axis in axes],
        "datasets": datasets,
    }


def _level(transform: Transform, factor: int) -> tuple[list[float], list[float]]:
    """Scale and translation of cells that cover `factor` cells per side."""
    pairs = zip(transform.scale, transform.translation, strict=True)
    return (
        [scale * factor for scale in transform.scale],
        [first + scale * (factor - 1) / 2 for scale, first in pairs],
    )
