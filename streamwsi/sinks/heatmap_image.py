"""The image in a heatmap's group: where its array lies, how it is cut, what its metadata say.

Floats lie in the arrays ``0``, ``1``, …; labels in ``labels/classes/0``, …: a label image of the
group, which itself shows the same arrays as an image, so that they are there once and every
viewer finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np

from ..chunks import Plan
from ..heatmaps import Raster
from ..mosaics import Mosaic
from .cell_types import CellType, dtype_of, fill_of
from .channel_display import Channel
from .chunking import Chunking, choose_chunks
from .heatmap_metadata import ome_attributes
from .label_images import label_image, labels_group
from .pyramids import level_shapes, pyramid_bytes

__all__ = ["HeatmapImage"]

_LABELS = "labels"
_CLASSES = "classes"
#: 0 stands for nothing computed.
_FIRST_CLASS = 1
#: Cells per side of a chunk of codes: they are a byte each, and zarr takes its time per chunk.
_CODES_SIDE = 2048


@dataclass(frozen=True, slots=True)
class HeatmapImage:
    """An image, and the array that says why its cells have values or none.

    Attributes:
        plan: whose windows it shows.
        cells: where they lie; a `Raster`'s channels are those that are stored.
        cell_type: what they are stored as.
        side: cells per side of a chunk, about.
        channels: names of the processor's outputs.
        colours: theirs, or none.
        ranges: from which to which value each is shown, as far as that is known.
    """

    plan: Plan
    cells: Raster | Mosaic
    cell_type: CellType
    side: int
    channels: Sequence[str] = ()
    colours: Sequence[str] = ()
    ranges: Sequence[tuple[float, float]] = ()

    @property
    def path(self) -> str:
        """Level 0's, in the group."""
        return f"{_LABELS}/{_CLASSES}/0" if self.cell_type == "labels" else "0"

    @property
    def axes(self) -> str:
        """A letter per dimension."""
        return "yx" if self.cell_type == "labels" else "cyx"

    @property
    def dtype(self) -> str:
        """numpy dtype."""
        return dtype_of(self.cell_type)

    @property
    def fill(self) -> float:
        """What stands where nothing was computed."""
        return fill_of(self.cell_type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of level 0."""
        return self.cells.shape[-len(self.axes) :]

    @property
    def cut(self) -> Chunking:
        """Chunks and shards of all levels."""
        return self._cut(self.cells, self.shape, np.dtype(self.dtype).itemsize, self.side)

    @property
    def codes(self) -> tuple[tuple[int, ...], Chunking]:
        """Shape and cut of the array ``valid``."""
        cells = self.cells.of_codes if isinstance(self.cells, Raster) else self.cells
        return cells.shape[-2:], self._cut(cells, cells.shape[-2:], 1, max(self.side, _CODES_SIDE))

    @staticmethod
    def _cut(cells: Raster | Mosaic, shape: tuple[int, ...], itemsize: int, side: int) -> Chunking:
        if isinstance(cells, Raster):
            return Chunking(cells.chunks[-len(shape) :], None)
        panels = cells.grid.panel < cells.grid.columns
        across = cells.across if panels else None
        return choose_chunks(shape, itemsize, cells.band, across, side=side)

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], Chunking, str, float, str]]:
        """Path, shape, cut, dtype, fill value and axes of what is written while windows come."""
        what = self.dtype, self.fill, self.axes
        yield self.path, self.shape, self.cut, *what
        yield "valid", *self.codes, "uint8", 0, "yx"
        if self.half is not None:
            yield *self.half, *what

    @property
    def half(self) -> tuple[str, tuple[int, ...], Chunking] | None:
        """Path, shape and cut of level 1, where it is made band by band (`half_level`)."""
        _, *smaller = level_shapes(self.shape)
        if isinstance(self.cells, Raster) or not smaller:
            return None
        cells = replace(self.cells, band=self.cells.band // 2, across=self.cells.across // 2)
        cut = self._cut(cells, smaller[0], np.dtype(self.dtype).itemsize, self.side)
        return f"{self.path.removesuffix('0')}1", smaller[0], cut

    @property
    def pyramid_bytes(self) -> int:
        """Bytes that making the smaller levels takes."""
        return pyramid_bytes(self.cut, self.shape, np.dtype(self.dtype).itemsize)

    def ome(self, paths: Sequence[str] = ()) -> dict[str, Any]:
        """The group's OME metadata.

        Args:
            paths: of the levels; level 0 alone where there are none.
        """
        slide = self.plan.slide
        return ome_attributes(
            slide.ref.id,
            self.cells,
            self.plan.level,
            slide.pyramid.mpp,
            *(paths or (self.path,)),
            channels=() if self.cell_type == "labels" else self._shown,
            axes=self.axes,
        )

    @property
    def _shown(self) -> list[Channel]:
        return [
            Channel(name, colour, shown or (0.0, 1.0))
            for name, colour, shown in zip_longest(self.channels, self.colours, self.ranges)
        ]

    def labels(self, paths: Sequence[str] = ()) -> dict[str, Mapping[str, Any]]:
        """The documents of the groups below, by their folders; none where there are no labels."""
        if self.cell_type != "labels":
            return {}
        names = [(path or self.path).rpartition("/")[2] for path in paths or (self.path,)]
        transform = self.cells.transform(self.plan.level, self.plan.slide.pyramid.mpp)
        classes = label_image(_CLASSES, transform, self._shown, names, _FIRST_CLASS)
        return {_LABELS: labels_group([_CLASSES]), f"{_LABELS}/{_CLASSES}": classes}
