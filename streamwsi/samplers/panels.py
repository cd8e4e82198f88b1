"""How a level is walked: the columns of windows of a panel, the rows of windows of a region.

Both are part of the plan, not of the limits: they decide the windows' order and the reads. A
shifted last window (`streamwsi.geometry`) lies nearer than the stride, so that what is said
here of the others bounds it too.
"""

from __future__ import annotations

import math

from ..geometry import Grid, tiled_extent
from ..slides import PyramidLevel

__all__ = ["panel_columns", "region_rows"]

_REGION_PIXELS = 4 * 2**20
"""New pixels per region: enough that handing a region on costs nothing beside decoding it."""

_PANEL_BYTES = 768 * 2**20
"""Bytes of a region's tiles at most, before the level is walked in panels: what the default
limits leave to each of two slides.

Part of the plan, not of the limits: it decides the windows' order, and the same pipeline must
write the same bytes whatever the limits. Large panels keep the tiles at their seams, which are
decoded once per panel, below 5 % even for a kernel of 4096 on a level 100 000 pixels wide
(tiles up to 512; below 12 % for tiles of 2048).
"""

_PANEL_WIDTH = 16384
_SEAMS = 25
"""A level wider than both this many pixels and this many times what two panels share is walked in
panels, so that the memory for pixels does not grow with the slide: at the seams 4 % of the tiles
are decoded twice, or less.
"""


def panel_columns(grid: Grid, level: PyramidLevel, pixel: int) -> int:
    """Columns of windows per panel, so that the tiles of a row of windows fit `_PANEL_BYTES`.

    Args:
        grid: the windows; its own panels do not matter.
        level: what is read.
        pixel: bytes of a pixel of the slide.
    """
    pixel = _read_bytes(level, pixel)
    tile, stride = level.tile.width, grid.stride.width
    rows = tiled_extent(grid.kernel.height, level.tile.height, level.size.height)
    seam = tiled_extent(max(1, grid.kernel.width - stride), tile, level.size.width)
    width = min(
        _PANEL_BYTES // (rows * pixel), max(int(_PANEL_WIDTH / level.factor[0]), _SEAMS * seam)
    )
    # Strips are read whole: panels would decode them again.
    if level.size.width <= max(width, tile):
        return grid.columns
    # The widest box whose tiles fit, at any place; but a panel moves on by a tile at least.
    box = (width // tile - 1) * tile + 1
    most = max((box - grid.kernel.width) // stride + 1, -(-tile // stride))
    even = -(-grid.columns // -(-grid.columns // most))
    # Panels that begin at a tile's edge share one column of tiles less.
    aligned = -(-(-(-even * stride // tile) * tile) // stride)
    return min(aligned, most, grid.columns)


def region_rows(grid: Grid, level: PyramidLevel, pixel: int) -> int:
    """Rows of windows per region.

    Args:
        grid: the windows, in their panels.
        level: what is read.
        pixel: bytes of a pixel of the slide.
    """
    pixel = _read_bytes(level, pixel)
    new_pixels = math.ceil(_REGION_PIXELS / (level.factor[0] * level.factor[1]))
    tile, size, stride, kernel = level.tile, level.size, grid.stride.height, grid.kernel.height
    if stride >= tiled_extent(kernel, tile.height, size.height):
        return 1  # between the rows of windows lie tiles that nobody needs
    panel = grid.cover(0, 0, 1, grid.panel)
    advance = max(tile.height, new_pixels // panel.snapped(tile, size).width)
    row_bytes = tiled_extent(panel.width, tile.width, size.width) * pixel
    most = (_PANEL_BYTES // row_bytes // tile.height - 1) * tile.height + 1 - kernel + stride
    return max(1, min(grid.rows, advance // stride, most // stride))


def _read_bytes(level: PyramidLevel, pixel: int) -> int:
    """Bytes that are read for a pixel: what regions cost is read from the source."""
    return math.ceil(pixel * level.factor[0] * level.factor[1])
