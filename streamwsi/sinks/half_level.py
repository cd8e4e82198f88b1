"""Level 1 of a map that is written in bands: made from each band while that is in memory.

To read level 0 again and decompress it would take longer than all else about the smaller levels,
and it would come after the last window, when nothing goes on beside it. A band has an even number
of rows and begins at an even column (`Mosaic.of`), so that its half is made of nothing else, and
the files of that are whole.

Importing this module imports zarr.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .pyramids import mean_of_cells, most_frequent_of_cells
from .zarr_arrays import AnyArray, in_a_loop, store_files

__all__ = ["HalfLevel"]

#: Columns of level 0 that are halved at once: the sums take several times their memory.
_COLUMNS = 2048


class HalfLevel:
    """Level 1 of a map.

    Args:
        array: the level.
        labels: whether its cells are labels, rather than numbers.
    """

    def __init__(self, array: AnyArray, *, labels: bool) -> None:
        self._array = array
        self._labels = labels

    def store(self, rows: slice, columns: slice, cells: npt.NDArray[Any]) -> None:
        """Write the half of a band.

        Args:
            rows, columns: of level 0; both begin at even numbers, and end so or with the map.
            cells: ``(channels, rows, columns)``, as they are stored.
        """
        halve = most_frequent_of_cells if self._labels else mean_of_cells
        at = tuple(slice(s.start // 2, -(-s.stop // 2)) for s in (rows, columns))
        half = np.empty((len(cells), *(s.stop - s.start for s in at)), cells.dtype)
        for first in range(0, cells.shape[-1], _COLUMNS):
            part = cells[..., first : first + _COLUMNS]
            half[..., first // 2 : (first + _COLUMNS) // 2] = halve(part)
        known = half > 0 if self._labels else ~np.isnan(half)
        in_a_loop(store_files, self._array, at, half, known.any(0))
