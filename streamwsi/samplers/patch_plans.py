"""The plan of windows at arbitrary places: their order, and the reads that take least.

Windows lie anywhere, so that some share tiles and most do not. They are sorted into *panels*
(ranges of tile columns) and each panel is walked from the top down. Windows of a panel whose
tile rows touch make a *stretch*; the regions of a stretch all have its width, so that the
scroll reader decodes a tile once for all of them, and leaps over what lies between stretches.

Regions name the boxes of their windows, so that other tiles are left out; but memory is held
for them, and tiles at the panels' seams are decoded once per panel. One panel as wide as the
level suits many windows, and panels of a single tile column few. So every power of two is
tried, and the one whose stretches cover the fewest tiles is taken. Windows are numbered in this
order: by panel, top to bottom, left to right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import Placement, Region
from ..errors import ContractBroken
from ..geometry import Box, Run, Size, tiled_extent
from ..slides import PyramidLevel, Slide

__all__ = ["Corners", "PatchPlan", "panel_widths", "stretches"]

Corners = npt.NDArray[np.int64]
"""Top-left pixels of windows, ``(n, 2)``: x, then y."""

_REGION_PIXELS = 2**20
"""Pixels of a region of several windows: small, for training streams begin with the first."""

_PANEL_BYTES = 256 * 2**20
"""Bytes of a region's tiles at most (but for a panel of one tile column); part of the plan."""


@dataclass(frozen=True, slots=True, eq=False)
class _Arrangement:
    """Corners in their order, and for each region its first window and its columns."""

    corners: Corners
    firsts: npt.NDArray[np.int64]
    lefts: npt.NDArray[np.int64]
    rights: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """Windows of one size anywhere on a level; see `streamwsi.chunks.Plan`.

    Attributes:
        kernel: a window's size.
        drawn: the windows' corners in any order; two may be the same.
    """

    slide: Slide
    level: PyramidLevel
    kernel: Size
    drawn: Corners
    config: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return len(self.drawn)

    @property
    def grid(self) -> None:
        """There is none."""
        return None

    @property
    def corners(self) -> Corners:
        """The corners in the windows' order."""
        return self._arranged.corners

    def place(self, index: int) -> Placement:
        """Where a window lies."""
        x, y = self._arranged.corners[index].tolist()
        return Placement(self.slide.ref, self.level.index, Box(x, y, *self.kernel), index)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """There are none without a grid."""
        raise ContractBroken("windows that lie on no grid have no runs of cells")

    def regions(self, start: int = 0) -> Iterator[Region]:
        """The reads, from the first that holds window `start` or a later one."""
        if start >= self.count:
            return
        firsts, ys = self._arranged.firsts, self.corners[:, 1]
        for i in range(int(np.searchsorted(firsts, start, "right")) - 1, len(firsts)):
            first = int(firsts[i])
            stop = int(firsts[i + 1]) if i + 1 < len(firsts) else self.count
            box = Box.between(
                int(self._arranged.lefts[i]),
                int(ys[first]),
                int(self._arranged.rights[i]),
                int(ys[stop - 1]) + self.kernel.height,
            )
            wanted = tuple(self.place(index).box for index in range(first, stop))
            yield Region(i, self.level.index, box, first, stop - first, wanted)

    @cached_property
    def _arranged(self) -> _Arrangement:
        """Made once, when it is first asked for."""
        # What regions cost is read from the source.
        read = self.level.factor[0] * self.level.factor[1]
        pixel = math.ceil(self.slide.channels * np.dtype(self.slide.dtype).itemsize * read)
        best: tuple[Corners, npt.NDArray[np.int64]] | None = None
        least = 0
        for width in panel_widths(self.level, self.kernel, pixel):
            corners, begins = stretches(self.drawn, self.level.tile, self.kernel, width)
            tiles = _tiles(corners, begins, self.level.tile, self.kernel)
            if best is None or tiles < least:
                best, least = (corners, begins), tiles
        assert best is not None  # there is always one width
        return _cut(*best, self.kernel)


def panel_widths(level: PyramidLevel, kernel: Size, pixel: int) -> Iterator[int]:
    """Tile columns that a panel may have, widest first; 1 is always among them.

    Args:
        level: what is read.
        kernel: a window's size.
        pixel: bytes.
    """
    columns = -(-level.size.width // level.tile.width)
    rows = tiled_extent(kernel.height, level.tile.height, level.size.height)
    extent = tiled_extent(kernel.width, level.tile.width, level.size.width)
    most = (_PANEL_BYTES // (rows * pixel) - extent) // level.tile.width
    if most >= columns:
        yield columns
    for power in range(columns.bit_length() - 1, -1, -1):
        if (1 << power) < columns and ((1 << power) <= most or power == 0):
            yield 1 << power
    if columns == 1 and most < 1:
        yield 1


def stretches(
    drawn: Corners, tile: Size, kernel: Size, width: int
) -> tuple[Corners, npt.NDArray[np.int64]]:
    """The corners sorted by panels of `width` tile columns, and where stretches begin in them."""
    panels = drawn[:, 0] // (tile.width * width)
    order = np.lexsort((drawn[:, 0], drawn[:, 1], panels))
    corners, panels = drawn[order], panels[order]
    top = corners[:, 1] // tile.height
    bottom = (corners[:, 1] + kernel.height - 1) // tile.height
    new = (panels[1:] != panels[:-1]) | (top[1:] > bottom[:-1])
    return corners, np.concatenate([[0], np.flatnonzero(new) + 1]).astype(np.int64)


def _tiles(corners: Corners, begins: npt.NDArray[np.int64], tile: Size, kernel: Size) -> int:
    """Tiles that these stretches cover."""
    ends = np.append(begins[1:], len(corners)) - 1
    left = np.minimum.reduceat(corners[:, 0], begins) // tile.width
    right = (np.maximum.reduceat(corners[:, 0], begins) + kernel.width - 1) // tile.width
    top = corners[begins, 1] // tile.height
    bottom = (corners[ends, 1] + kernel.height - 1) // tile.height
    return int(((right - left + 1) * (bottom - top + 1)).sum())


def _cut(corners: Corners, begins: npt.NDArray[np.int64], kernel: Size) -> _Arrangement:
    """Stretches cut into regions of about `_REGION_PIXELS`."""
    lefts = np.minimum.reduceat(corners[:, 0], begins)
    rights = np.maximum.reduceat(corners[:, 0], begins) + kernel.width
    ends = [*begins[1:].tolist(), len(corners)]
    firsts: list[int] = []
    counts: list[int] = []
    for begin, end, left, right in zip(
        begins.tolist(), ends, lefts.tolist(), rights.tolist(), strict=True
    ):
        known = len(firsts)
        beyond = max(0, _REGION_PIXELS // (right - left) - kernel.height)
        ys, at = corners[begin:end, 1], 0
        while at < end - begin:
            firsts.append(begin + at)
            at = int(np.searchsorted(ys, ys[at] + beyond, "right"))
        counts.append(len(firsts) - known)
    return _Arrangement(
        corners,
        np.array(firsts, np.int64),
        np.repeat(lefts, counts),
        np.repeat(rights, counts),
    )
