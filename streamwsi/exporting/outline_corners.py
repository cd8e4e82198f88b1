"""The corners of outlines in a band of rows of cells, and the edges between them.

A corner is a point of the grid with an odd number of the region's cells around it; where two
cells touch diagonally there are two corners, one of either cell. Along a row of the grid every
other corner is the left end of a horizontal edge, whose right end is the next one; along a column
likewise from top to bottom. So sorting gives each corner its two neighbours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["CornerBand"]

Numbers = npt.NDArray[np.int64]


class CornerBand:
    """The corners of some rows, numbered from left to right, row by row.

    After the `count` corners come the edges that hang into the band from above, in the order in
    which they were given.

    Args:
        cells: ``(1 + rows, columns)``, whether cells belong to a region; the first row is the
            last one of the band above.
        top: number of the second row.
        hanging: columns of the grid in which edges come from above.

    Attributes:
        count: how many corners there are.
        columns: of the grid, in which corners and hanging edges are.
        places: of corners: ``2 · (row · (columns + 1) + column)`` in the grid, and 1 more where the
            cell right of and below it belongs to a region.
        below: the other end of the vertical edge; -1 where it is in a later band.
        seen: whether a walk has passed a corner.
    """

    def __init__(self, cells: npt.NDArray[np.bool_], top: int, hanging: list[int]) -> None:
        around = np.pad(cells, ((0, 0), (1, 1)))
        nw, ne, sw, se = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
        diagonal = (nw == se) & (ne == sw) & (nw != ne)
        y, x = np.nonzero((nw ^ ne ^ sw ^ se) | diagonal)
        point = np.repeat(np.arange(len(y)), 1 + diagonal[y, x])
        second = np.zeros(len(point), np.bool_)
        second[1:] = point[1:] == point[:-1]
        # The first of two has the edge to the left. If the cells are at the upper left and lower
        # right, it has the edge upwards as well, and otherwise the one downwards.
        lower = second ^ (diagonal & ne)[y, x][point]
        rows, columns = y[point], x[point]
        place = (rows + top) * around.shape[1] - (rows + top) + columns
        self.places: list[int] = (2 * place + se[y, x][point]).tolist()
        self.count = len(point)
        columns = np.concatenate([columns, np.array(hanging, np.int64)])
        rows = np.concatenate([rows, np.full(len(hanging), -1)])
        lower = np.concatenate([lower, np.zeros(len(hanging), np.bool_)])
        self.columns: list[int] = columns.tolist()
        self.below: list[int] = _paired(columns, np.lexsort((lower, rows, columns))).tolist()
        self.seen = bytearray(self.count)

    def walk(self, first: int) -> tuple[list[int], int, int]:
        """Follow edges from a corner, the horizontal one first.

        Returns:
            The places of the corners that are passed, the last corner, and what lies at the other
            end of its vertical edge: `first` where they are a ring.
        """
        places, below, seen = self.places, self.below, self.seen
        passed: list[int] = []
        corner = first
        while True:
            neighbour = corner ^ 1
            passed += (places[corner], places[neighbour])
            seen[corner] = seen[neighbour] = 1
            corner = below[neighbour]
            if corner == first or not 0 <= corner < self.count:
                return passed, neighbour, corner


def _paired(columns: Numbers, order: Numbers) -> Numbers:
    """The first with the second of each column, the third with the fourth, …; -1 for the rest."""
    there = columns[order]
    index = np.arange(len(order))
    begins = np.ones(len(order), np.bool_)
    begins[1:] = there[1:] != there[:-1]
    within = index - np.maximum.accumulate(np.where(begins, index, 0))
    upper = np.flatnonzero(within[1:] % 2 == 1)  # those with a partner behind them
    partner = np.full(len(order), -1)
    partner[order[upper]] = order[upper + 1]
    partner[order[upper + 1]] = order[upper]
    return partner
