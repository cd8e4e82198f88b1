"""A heatmap's regions as GeoJSON polygons in level-0 pixels, as QuPath imports them.

The outlines run along the edges of cells (`streamwsi.exporting.cell_outlines`): nothing is
smoothed, so that a region's area is that of its cells. The document is a FeatureCollection whose
features are annotations with a classification,
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead, ConfigError
from .cell_outlines import CellOutlines, Outline
from .heatmap import Heatmap, MapLevel, open_heatmap
from .label_colours import label_colour, steps
from .lattices import Lattice
from .replacing import replacing

__all__ = ["export_geojson"]

_MOST_CLASSES = 255
#: Cells whose edges are looked at at once.
_BAND_CELLS = 4 << 20
#: Coordinates that are no integers are written to a millionth of a pixel.
_DECIMALS = 6


def export_geojson(
    heatmap: str | Path,
    out: str | Path,
    *,
    thresholds: Sequence[float] | None = None,
    channel: int | str | None = None,
    label: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the regions where a channel reaches thresholds; of label images, those of each class.

    Memory: a band of cells, and the outlines of regions that are not finished yet. It blocks: in
    asynchronous code, call it in a thread.

    Args:
        heatmap: the folder of a heatmap.
        out: the file.
        thresholds: a region holds the cells at or above one; 0.5 by default. With several, the
            regions of the higher ones lie on those of the lower ones.
        channel: a channel's name or number; the only one where None.
        label: a label image of the group, instead of the heatmap itself.
        overwrite: replace a file that is there.

    Returns:
        How many polygons there are.

    Raises:
        ConfigError: shapely is missing, there is no such channel, thresholds cannot be used, or
            the file is there already.
        CannotOpen: there is no heatmap, or it holds no values yet.
        CannotRead: a chunk of it cannot be read, or it has too many classes.
        CannotWrite: the file cannot be written.
    """
    _require_shapely()
    source = open_heatmap(heatmap, label)
    level, number = source.levels[0], source.channel(channel)
    classes: _Thresholds | _Labels
    if level.labelled:
        if thresholds is not None:
            raise ConfigError(f"{source.path} holds labels, which have no thresholds")
        classes = _Labels(source)
    else:
        classes = _Thresholds(source, number, [0.5] if thresholds is None else thresholds)
    count = 0
    with (
        replacing(Path(out), overwrite, source.record) as made,
        made.open("w", encoding="ascii") as file,
    ):
        file.write('{"type": "FeatureCollection", "features": [')
        for which, outline in _outlines(level, number, classes):
            file.write(",\n" if count else "\n")
            file.write(json.dumps(_feature(outline, level.cells, *classes.shown(which))))
            count += 1
        file.write("\n]}\n")
    return count


def _require_shapely() -> None:
    try:
        import shapely  # noqa: F401
    except ImportError as error:
        raise ConfigError('GeoJSON needs shapely: pip install "streamwsi[export]"') from error


class _Thresholds:
    """Classes that each hold the next one: the cells at or above a threshold."""

    def __init__(self, heatmap: Heatmap, channel: int, thresholds: Sequence[float]) -> None:
        self._thresholds = sorted({float(t) for t in thresholds})
        if not 1 <= len(self._thresholds) <= _MOST_CLASSES:
            raise ConfigError(f"there must be 1 to {_MOST_CLASSES} thresholds")
        if not all(map(math.isfinite, self._thresholds)):
            raise ConfigError(f"the thresholds {thresholds} must be finite numbers")
        self._channel = heatmap.channels[channel]

    def numbered(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """How many thresholds values reach."""
        reached = np.zeros(values.shape, np.uint8)
        # numpy would round a Python number to float16, and more values would reach it.
        number = np.promote_types(values.dtype, np.float32).type
        with np.errstate(over="ignore"):
            for threshold in self._thresholds:
                reached += values >= number(threshold)
        return reached

    def found(self, numbers: npt.NDArray[Any]) -> range:
        """The classes that numbers may hold."""
        return range(len(self._thresholds))

    def cells(self, numbers: npt.NDArray[Any], which: int) -> npt.NDArray[np.bool_]:
        """Where a class is."""
        return np.asarray(numbers > which)

    def shown(self, which: int) -> tuple[str, tuple[int, int, int]]:
        """Name and colour of a class."""
        colours = steps(len(self._thresholds))
        own = self._channel.colour if len(colours) == 1 else None
        return f"{self._channel.name} ≥ {self._thresholds[which]:g}", own or colours[which]


class _Labels:
    """The classes of a label image; a class is its label."""

    def __init__(self, heatmap: Heatmap) -> None:
        self._heatmap = heatmap
        self._found: set[int] = set()

    def numbered(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The labels."""
        return values

    def found(self, numbers: npt.NDArray[Any]) -> list[int]:
        """The labels that came so far, ascending."""
        self._found |= {*np.unique(numbers).tolist()} - {self._heatmap.levels[0].missing}
        if len(self._found) > _MOST_CLASSES:
            raise CannotRead(
                f"{self._heatmap.path} has more than {_MOST_CLASSES} labels; are they the numbers "
                "of objects rather than of classes?"
            )
        return sorted(self._found)

    def cells(self, numbers: npt.NDArray[Any], which: int) -> npt.NDArray[np.bool_]:
        """Where a class is."""
        return np.asarray(numbers == which)

    def shown(self, which: int) -> tuple[str, tuple[int, int, int]]:
        """Name and colour of a class."""
        named = self._heatmap.labels.get(which)
        return (named.name if named else str(which)), label_colour(named, which)


def _outlines(
    level: MapLevel, channel: int, classes: _Thresholds | _Labels
) -> Iterator[tuple[int, Outline]]:
    """All regions, each with the number of its class, as soon as they end."""
    columns = level.shape[2]
    tracers: dict[int, CellOutlines] = {}
    for top, numbers in _bands(level, channel, classes):
        for which in classes.found(numbers):
            if which not in tracers:
                tracers[which] = CellOutlines(columns, top)
            for outline in tracers[which].add(classes.cells(numbers, which)):
                yield which, outline
    for which, tracer in tracers.items():
        for outline in tracer.finish():
            yield which, outline


def _bands(
    level: MapLevel, channel: int, classes: _Thresholds | _Labels
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Whole rows of classes' numbers, with the number of the first row."""
    columns = level.shape[2]
    step = max(1, _BAND_CELLS // columns)
    band: npt.NDArray[Any] = np.empty(0)
    for rows, part in level.blocks(1):
        values = classes.numbered(level.read(slice(channel, channel + 1), rows, part)[0])
        if part.start == 0:
            band = np.empty((len(values), columns), values.dtype)
        band[:, part] = values
        if part.stop == columns:
            for first in range(0, len(band), step):
                yield rows.start + first, band[first : first + step]


def _feature(
    outline: Outline, cells: Lattice, name: str, colour: tuple[int, int, int]
) -> dict[str, Any]:
    rings = [_coordinates(ring, cells) for ring in (outline.exterior, *outline.holes)]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": [*colour]},
        },
    }


def _coordinates(ring: npt.NDArray[np.int64], cells: Lattice) -> list[list[float]]:
    """The ring, closed, in level-0 pixels."""
    places = np.round(np.array(cells.origin) + ring * np.array(cells.pitch), _DECIMALS)
    whole = places.astype(np.int64)
    closed: list[list[float]] = (whole if (places == whole).all() else places).tolist()
    return [*closed, closed[0]]
