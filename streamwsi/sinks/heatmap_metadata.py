"""What the JSON documents of a heatmap say: the image's axes and transformations, channel names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..heatmaps import Raster
from ..mosaics import Mosaic
from ..slides import Mpp, PyramidLevel

__all__ = ["channel_names", "ome_attributes"]


def channel_names(processor: Mapping[str, Any], count: int) -> list[str]:
    """The names that the processor's configuration gives to its outputs, or their numbers."""
    names = processor.get("channels")
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return names
    return [str(i) for i in range(count)]


def ome_attributes(
    name: str, raster: Raster | Mosaic, level: PyramidLevel, mpp: Mpp | None, path: str = "0"
) -> dict[str, Any]:
    """The image's metadata, as OME-NGFF 0.5 has it."""
    transform = raster.transform(level, mpp)
    unit = {"unit": transform.unit} if transform.unit else {}
    scale = {"type": "scale", "scale": [1.0, *transform.scale]}
    translation = {"type": "translation", "translation": [0.0, *transform.translation]}
    axes = [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", **unit},
        {"name": "x", "type": "space", **unit},
    ]
    dataset = {"path": path, "coordinateTransformations": [scale, translation]}
    return {
        "version": "0.5",
        "multiscales": [{"name": name, "axes": axes, "datasets": [dataset]}],
    }
