"""Pyramids of dense maps: the sizes of their levels, and how a level is made from the one before.

Each level has half the rows and columns, rounded up: cell (i, j) comes from the cells
``2i … 2i + 1`` × ``2j … 2j + 1``, of which the last row and column may be missing. A number is
the mean of those of the four that are there and not NaN. Labels cannot be averaged: one is the
most frequent of those of the four that are there and not 0, and of several the largest. (All four
are equally near to the new cell's centre. Always to take the same one of them would move level k
by ``(2ᵏ - 1) / 2`` cells of level 0.)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .chunking import Chunking

__all__ = [
    "AT_ONCE",
    "level_shapes",
    "mean_of_cells",
    "most_frequent_of_cells",
    "piece",
    "pyramid_bytes",
    "widened",
    "written",
]

Cells = npt.NDArray[Any]

#: What is kept to be written at once, where files are small ...
_WRITTEN_BYTES = 16 << 20
#: ... and what is made at once, where chunks are.
_PIECE_BYTES = 2 << 20
#: ... and how many of these at the same time.
AT_ONCE = 2

#: Wide enough that no sum overflows, and that only the last step rounds.
_SUMS = {np.dtype(np.float16): np.float32, np.dtype(np.float32): np.float64}


def level_shapes(shape: tuple[int, ...], smallest: int = 256) -> list[tuple[int, ...]]:
    """The shapes of all levels, level 0 included, until no side is longer than `smallest`.

    Args:
        shape: of level 0, ``(…, rows, columns)``.
        smallest: cells; at least 1.
    """
    shapes = [shape]
    while max(shapes[-1][-2:]) > smallest:
        *channels, rows, columns = shapes[-1]
        shapes.append((*channels, -(-rows // 2), -(-columns // 2)))
    return shapes


def mean_of_cells(cells: Cells) -> Cells:
    """The next level of ``(…, rows, columns)`` float16 or float32 cells, in their dtype.

    The mean is taken in float32 and float64 respectively, and rounded once.
    """
    if not any(n % 2 for n in cells.shape[-2:]):
        mean = _mean_of_four(cells)
        if not np.isnan(mean).any():
            return mean
    shape = (*cells.shape[:-2], -(-cells.shape[-2] // 2), -(-cells.shape[-1] // 2))
    there = ~np.isnan(cells)
    if not there.any():
        return np.full(shape, np.nan, cells.dtype)
    total, count = np.zeros(shape, _SUMS[cells.dtype]), np.zeros(shape, np.uint8)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        for i, j in np.ndindex(2, 2):
            part, known = cells[..., i::2, j::2], there[..., i::2, j::2]
            corner = (..., slice(part.shape[-2]), slice(part.shape[-1]))
            np.add(total[corner], part, out=total[corner], where=known)
            count[corner] += known
        np.divide(total, count, out=total)
    # Which of the NaNs a division gives differs between processors.
    total[np.isnan(total)] = np.nan
    return total.astype(cells.dtype)


def _mean_of_four(cells: Cells) -> Cells:
    """The same where all four are there everywhere, in a third of the time: whole rows first."""
    with np.errstate(invalid="ignore"):  # infinities of both signs
        pairs = np.add(cells[..., 0::2, :], cells[..., 1::2, :], dtype=_SUMS[cells.dtype])
        total = pairs[..., 0::2] + pairs[..., 1::2]
    total *= 0.25
    return total.astype(cells.dtype)


def most_frequent_of_cells(cells: Cells, missing: int = 0) -> Cells:
    """The next level of ``(…, rows, columns)`` labels.

    Args:
        cells: of any integer dtype.
        missing: the label of cells that nothing was computed for.
    """
    odd = [(0, 0)] * (cells.ndim - 2) + [(0, n % 2) for n in cells.shape[-2:]]
    cells = np.pad(cells, odd, constant_values=missing)
    corners = [cells[..., i::2, j::2] for i, j in np.ndindex(2, 2)]
    best = np.full(corners[0].shape, missing, cells.dtype)
    most = np.zeros(best.shape, np.uint8)
    for label in corners:
        count = np.zeros(best.shape, np.uint8)
        for other in corners:
            count += label == other
        count[label == missing] = 0
        better = (count > most) | ((count == most) & (count > 0) & (label > best))
        best[better], most[better] = label[better], count[better]
    return best


def widened(step: Sequence[int], shape: Sequence[int], cells: int) -> tuple[int, ...]:
    """As many steps, side by side within `shape`, as have at most `cells` cells; at least one."""
    wide = [*step]
    for axis in reversed(range(len(wide))):
        fits = max(1, cells // prod(wide))
        wide[axis] *= min(fits, -(-shape[axis] // step[axis]))
    return tuple(wide)


def written(cut: Chunking, shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The cells of a level that are kept to be written at once: whole files."""
    return widened(cut.files, shape, _WRITTEN_BYTES // itemsize)


def piece(cut: Chunking, shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The cells of a level that are made at once: whole chunks."""
    return widened(cut.chunks, shape, _PIECE_BYTES // itemsize)


def pyramid_bytes(cut: Chunking, shape: Sequence[int], itemsize: int) -> int:
    """The memory at most that making a pyramid takes; beyond some size that does not grow with it.

    What is written at once, compressed, and joined to a file; and for each piece that is being
    made the four times as many cells that it is made from, decoded and compressed, and the sums.

    Args:
        cut: of all levels.
        shape: of level 0.
        itemsize: bytes of a cell and channel.
    """
    _, *smaller = level_shapes(tuple(shape))
    if not smaller:
        return 0
    files, pieces = (
        prod(map(min, cells, smaller[0]))
        for cells in (written(cut, smaller[0], itemsize), piece(cut, smaller[0], itemsize))
    )
    # A chunk is stored whole, even where the level ends within it.
    return (
        3 * max(files, prod(cut.files)) + AT_ONCE * 18 * max(pieces, prod(cut.chunks))
    ) * itemsize
