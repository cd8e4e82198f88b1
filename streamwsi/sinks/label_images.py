"""Label images: the JSON documents of the group ``labels`` of an OME-Zarr 0.5 image.

::

    IMAGE.zarr/labels/zarr.json          the names of the label images
    IMAGE.zarr/labels/NAME/zarr.json     one: its levels, and names and colours of its labels
    IMAGE.zarr/labels/NAME/0, 1, …       uint8 (y, x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..heatmaps import Transform
from .channel_display import PALETTE, Channel, hex_colour
from .heatmap_metadata import multiscale

__all__ = ["label_image", "labels_group"]


def labels_group(names: Sequence[str]) -> dict[str, Any]:
    """The document of the group ``labels``.

    Args:
        names: of its label images; at least one.
    """
    return _group({"version": "0.5", "labels": [*names]})


def label_image(
    name: str,
    transform: Transform,
    classes: Sequence[Channel],
    paths: Sequence[str],
    first: int = 0,
) -> dict[str, Any]:
    """The document of one label image, in a group below ``labels``.

    Args:
        name: the label image's.
        transform: where the cells of the first array lie.
        classes: names and colours of the labels; a class that is not active is transparent.
        paths: its arrays, ``(y, x)``, each with half the rows and columns of the one before.
        first: the first class's label; the others follow.
    """
    colours, properties = [], []
    for value, shown in enumerate(classes, first):
        colour = shown.colour or PALETTE[(value - first) % len(PALETTE)]
        opacity = 255 if shown.active else 0
        colours.append({"label-value": value, "rgba": [*hex_colour(colour), opacity]})
        properties.append({"label-value": value, "name": shown.label})
    return _group(
        {
            "version": "0.5",
            "multiscales": [multiscale(name, transform, paths, axes="yx")],
            "image-label": {
                "version": "0.5",
                "colors": colours,
                "properties": properties,
                "source": {"image": "../../"},
            },
        }
    )


def _group(ome: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
