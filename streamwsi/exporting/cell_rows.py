"""Tables: a row per cell of a heatmap, as columns of numbers, block by block.

A row has the cell's ``row`` and ``column``; ``x``, ``y``, ``width`` and ``height`` in level-0
pixels of what its values were computed from: the window, or for maps the cell's share of it;
``valid`` (1 computed, 2 damaged, 0 not computed, 3 left out by a mask), and a column per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sinks.cell_types import COMPUTED, DAMAGED
from .heatmap import Heatmap
from .lattices import Lattice

__all__ = ["FACTS", "cell_rows", "value_names"]

FACTS = ("row", "column", "x", "y", "width", "height", "valid")

Column = npt.NDArray[Any]


def value_names(heatmap: Heatmap) -> list[str]:
    """A column's name for each channel; one that is taken gets the channel's number added."""
    names: list[str] = []
    for number, channel in enumerate(heatmap.channels):
        name, taken = channel.name, {*FACTS, *names}
        while name in taken or not name:
            name = f"{name}_{number}"
        names.append(name)
    return names


def cell_rows(heatmap: Heatmap, every: bool) -> Iterator[list[Column]]:
    """The columns of `FACTS`, then of the channels, for a block of cells at a time.

    Blocks are whole rows of cells, unless these are very wide.

    Args:
        heatmap: an opened one; its finest level is used.
        every: also the cells that were not computed, or left out by a mask.
    """
    level = heatmap.levels[0]
    boxes = _boxes(heatmap)
    for rows, columns in level.blocks(level.shape[0]):
        values = level.read(slice(0, level.shape[0]), rows, columns)
        shape = values.shape[1:]
        corners = [
            boxes.starts(axis, part.start, part.stop - part.start)
            for axis, part in ((0, columns), (1, rows))
        ]
        centres = [corners[axis] + boxes.extent[axis] / 2 for axis in (0, 1)]
        codes = heatmap.codes_at(centres[0], centres[1])
        kept = np.ones(shape, np.bool_) if every else (codes == COMPUTED) | (codes == DAMAGED)
        i, j = np.nonzero(kept)
        yield [
            i + rows.start,
            j + columns.start,
            corners[0][j],
            corners[1][i],
            np.full(len(i), boxes.extent[0]),
            np.full(len(i), boxes.extent[1]),
            codes[kept],
            *(channel[kept] for channel in values),
        ]


def _boxes(heatmap: Heatmap) -> Lattice:
    """What cells were computed from: windows where there is one per cell."""
    if heatmap.windows is not None and heatmap.record.cells == (1, 1):
        return heatmap.windows
    return heatmap.levels[0].cells
