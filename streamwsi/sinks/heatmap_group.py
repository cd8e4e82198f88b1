"""A heatmap's folder: the image that it announces, and the documents beside its arrays."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from ..heatmaps import Raster
from .durable import sync_folders, write_json
from .heatmap_image import HeatmapImage
from .heatmap_metadata import ome_attributes
from .seams import remove_seams
from .zarr_groups import ZarrGroup, empty_array

__all__ = ["HeatmapGroup"]

_PLANNED = "planned"


class HeatmapGroup(ZarrGroup):
    """A heatmap's folder."""

    kind = "HeatmapZarr"
    mark = "channels"
    _labels: Mapping[str, Mapping[str, Any]] = {}

    def announce(self) -> None:
        assert self.plan.grid is not None
        raster, slide = Raster(self.plan.grid), self.plan.slide
        document = empty_array(raster.shape, raster.chunks, "float32", "NaN", ("c", "y", "x"))
        self.write_array(_PLANNED, document)
        self.attributes = {
            "ome": ome_attributes(
                slide.ref.id, raster, self.plan.level, slide.pyramid.mpp, _PLANNED
            )
        }
        self.save()

    def show(self, image: HeatmapImage, *paths: str) -> None:
        """Set the image's metadata.

        Args:
            image: what is there.
            paths: of its levels; level 0 alone where none is given.
        """
        self.attributes = {"ome": image.ome(paths)}
        window = image.cells.window
        self.told = {
            "channels": image.channels,
            # Who reads the heatmap cannot tell a map's cells from windows otherwise.
            "cells_per_window": [window.height, window.width],
        }
        self._labels = image.labels(paths)

    def save_image(self) -> None:
        """Make the metadata durable."""
        self.save_labels()
        self.save()

    def save_labels(self) -> None:
        """Write the documents below the group: those of a label image."""
        for folder, document in self._labels.items():
            write_json(self.path / folder / "zarr.json", document)

    def begin(self) -> None:
        remove_seams(self.path)
        super().begin()

    def completed(self) -> None:
        remove_seams(self.path)

    def forget_planned(self) -> None:
        """Remove the empty image, once the other one is there."""
        if (self.path / _PLANNED).exists():
            shutil.rmtree(self.path / _PLANNED)
            sync_folders([self.path])
