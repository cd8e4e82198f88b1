"""Outlines of regions of cells, exact and in one pass from top to bottom.

A region is what is connected over the edges of cells; its outline runs along these edges. The
libraries that find such outlines want the whole raster. Here it comes in bands of rows, and what
is kept is the last row, outlines that are not closed yet, and holes that wait for the outline
around them: as an outline's lowest edge lies below all that is in it, its holes are closed
before it is.

The outlines are valid as OGC simple features: a ring touches itself nowhere, and others in single
points only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .outline_corners import CornerBand

__all__ = ["CellOutlines", "Outline"]

Ring = npt.NDArray[np.int64]


class Outline(NamedTuple):
    """A region: corners ``(n, 2)`` as ``(column, row)`` of the grid, the first one not repeated.

    Attributes:
        exterior: counterclockwise where y points up, as GeoJSON has it.
        holes: clockwise.
    """

    exterior: Ring
    holes: list[Ring]


class _Chain:
    """Places of corners, as `CornerBand` numbers them, of an outline that is not closed yet."""

    def __init__(self, places: Iterable[int]) -> None:
        self.places = deque(places)
        self.ends = [_End(self, 0), _End(self, 1)]

    def extend(self, side: int, places: Iterable[int]) -> None:
        (self.places.extend if side else self.places.extendleft)(places)


class _End:
    """Where a chain hangs into the next band: its left (0) or right (1) end."""

    def __init__(self, chain: _Chain, side: int) -> None:
        self.chain, self.side = chain, side

    def join(self, other: _End) -> None:
        """Make one chain of two; the longer one stays."""
        kept, gone = (self, other) if self._length >= other._length else (other, self)
        places = gone.chain.places
        kept.chain.extend(kept.side, reversed(places) if gone.side else places)
        far = gone.chain.ends[1 - gone.side]
        kept.chain.ends[kept.side] = far
        far.chain, far.side = kept.chain, kept.side

    @property
    def _length(self) -> int:
        return len(self.chain.places)


class CellOutlines:
    """Takes a raster of cells, band by band, and gives the outlines of its regions.

    Args:
        columns: cells in a row.
        top: number of the first row that comes; those above belong to no region.
    """

    def __init__(self, columns: int, top: int = 0) -> None:
        self._above = np.zeros(columns, np.bool_)
        self._row = top
        self._ends: dict[int, _End] = {}
        self._holes: list[Ring] = []

    def add(self, cells: npt.NDArray[np.bool_]) -> list[Outline]:
        """Take the next rows.

        Args:
            cells: ``(rows, columns)``, whether cells belong to a region.

        Returns:
            The regions that end there.
        """
        band = CornerBand(np.vstack([self._above[None], cells]), self._row, [*self._ends])
        self._above = cells[-1].copy()
        self._row += len(cells)
        exteriors: list[Ring] = []
        for ring in self._closed(band):
            for simple in _simple(ring):
                corners, is_hole = self._oriented(simple)
                (self._holes if is_hole else exteriors).append(corners)
        return self._filled(exteriors)

    def finish(self) -> list[Outline]:
        """The regions that reach the last row."""
        return self.add(np.zeros((1, len(self._above)), np.bool_))

    def _closed(self, band: CornerBand) -> Iterator[Iterable[int]]:
        """Follow all edges of a band; the rings that close there."""
        ends, self._ends = [*self._ends.values()], {}
        joined: set[int] = set()
        for number, end in enumerate(ends):
            first = band.below[band.count + number]
            if first < 0:
                self._ends[band.columns[band.count + number]] = end
            elif number not in joined:
                places, last, beyond = band.walk(first)
                end.chain.extend(end.side, places)
                if beyond < 0:
                    self._ends[band.columns[last]] = end
                    continue
                joined.add(beyond - band.count)
                other = ends[beyond - band.count]
                if other.chain is end.chain:
                    yield end.chain.places
                else:
                    end.join(other)
        for first in range(band.count):
            if band.below[first] < 0 and not band.seen[first]:
                places, last, _ = band.walk(first)
                ends_of = _Chain(places).ends
                self._ends[band.columns[first]], self._ends[band.columns[last]] = ends_of
        for first in range(0, band.count, 2):
            if not band.seen[first]:
                yield band.walk(first)[0]

    def _oriented(self, places: list[int]) -> tuple[Ring, bool]:
        """A simple ring's corners in order, the uppermost first, and whether it is a hole."""
        numbers = np.array(places, np.int64)
        first = int(numbers.argmin())
        numbers = np.concatenate([numbers[first:], numbers[: first + 1]])
        y, x = np.divmod(numbers >> 1, len(self._above) + 1)
        ring = np.stack([x, y], axis=1)
        # Right of and below its first corner lies what a ring goes around.
        is_hole = bool(numbers[0] & 1 == 0)
        return (ring[:-1] if (_area(ring) < 0) == is_hole else ring[:0:-1]), is_hole

    def _filled(self, exteriors: list[Ring]) -> list[Outline]:
        """Regions, with those of the waiting holes that are theirs."""
        outlines = [Outline(ring, []) for ring in exteriors]
        if not outlines or not self._holes:
            return outlines
        import shapely

        # Rings touch in corners only: the middle of a hole's edge is strictly inside.
        tree = shapely.STRtree(shapely.points([ring[:2].mean(axis=0) for ring in self._holes]))
        around, within = tree.query([*map(shapely.Polygon, exteriors)], predicate="contains")
        areas = np.array([_area(ring) for ring in exteriors])
        # Islands lie in holes: the smallest region around a hole is its own.
        order = np.argsort(-areas[around], kind="stable")
        owners = dict(zip(within[order].tolist(), around[order].tolist(), strict=True))
        for hole, owner in sorted(owners.items()):
            outlines[owner].holes.append(self._holes[hole])
        self._holes = [ring for i, ring in enumerate(self._holes) if i not in owners]
        return outlines


def _area(ring: Ring) -> int:
    """Twice the signed area."""
    x, y = ring.T
    return int(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])


def _simple(places: Iterable[int]) -> Iterator[list[int]]:
    """Cut a ring where it touches itself: where its own cells touch diagonally."""
    passed: list[int] = []
    index: dict[int, int] = {}
    for place in places:
        again = index.get(place)
        if again is None:
            index[place] = len(passed)
            passed.append(place)
            continue
        yield passed[again:]
        for left in passed[again + 1 :]:
            del index[left]
        del passed[again + 1 :]
    yield passed
