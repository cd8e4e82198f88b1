"""A heatmap's levels for a pyramid, tile by tile; those that it lacks are made from its last one.

Each further level halves the one before: a cell is the mean of those of 2 × 2 cells that are not
NaN; of labels it is the most frequent one (`streamwsi.sinks.pyramids`). The levels made here lie in
a file meanwhile, so that each is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sinks.pyramids import most_frequent_of_cells
from .heatmap import Heatmap, MapLevel

__all__ = ["TILE", "Layer", "layers"]

#: Pixels per side of a tile, and of the coarsest level at most.
TILE = 256
#: Bytes of a row of tiles that are held at once, and four times that of the level before.
_STRIP_BYTES = 4 << 20

Pixels = npt.NDArray[Any]
Read = Callable[[int, slice, slice], Pixels]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One level as it is to be written.

    Attributes:
        shape: ``(channels, rows, columns)``.
        dtype: of the pixels.
        read: gives the pixels of a channel, from rows and columns.
        kept: the file in which the pixels are kept for the next layer; None where they need not be.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Read
    kept: Path | None = None

    @property
    def nbytes(self) -> int:
        """Of all tiles, whole."""
        channels, rows, columns = self.shape
        tiles = channels * -(-rows // TILE) * -(-columns // TILE)
        return tiles * TILE * TILE * self.dtype.itemsize

    def tiles(self) -> Iterator[Pixels]:
        """The tiles, row by row, channel by channel; those at the edges are smaller."""
        channels, rows, columns = self.shape
        wide = TILE * max(1, _STRIP_BYTES // (TILE * TILE * self.dtype.itemsize))
        for channel in range(channels):
            for y in range(0, rows, TILE):
                for left in range(0, columns, wide):
                    down = slice(y, min(y + TILE, rows))
                    across = slice(left, min(left + wide, columns))
                    strip = self.read(channel, down, across)
                    if self.kept is not None:
                        _mapped(self.kept, self.dtype, self.shape)[channel, down, across] = strip
                    for x in range(0, strip.shape[1], TILE):
                        yield np.ascontiguousarray(strip[:, x : x + TILE])


def layers(heatmap: Heatmap, folder: Path) -> list[Layer]:
    """The levels of a pyramid whose coarsest one fits a tile, finest first.

    They are to be written in order: a layer that is made here reads what the one before has kept.

    Args:
        heatmap: an opened one.
        folder: for the files in which layers are kept.
    """
    # OME-TIFF has no float16.
    kind = heatmap.levels[0].dtype
    dtype = np.dtype(np.float32) if kind == np.float16 else kind
    found = [Layer(level.shape, dtype, _stored(level, dtype)) for level in heatmap.levels]
    halved = _halving(heatmap.levels[0].missing)
    while max(found[-1].shape[1:]) > TILE:
        finer = found[-1]
        channels, rows, columns = finer.shape
        shape = (channels, -(-rows // 2), -(-columns // 2))
        read = finer.read if finer.kept is None else _kept(finer.kept, dtype, finer.shape)
        kept = None if max(shape[1:]) <= TILE else folder / str(len(found))
        found.append(Layer(shape, dtype, _half(read, finer.shape, halved), kept))
    return found


def _stored(level: MapLevel, dtype: np.dtype[Any]) -> Read:
    def read(channel: int, rows: slice, columns: slice) -> Pixels:
        values: Pixels = level.read(slice(channel, channel + 1), rows, columns)[0]
        return values.astype(dtype, copy=False)

    return read


def _mapped(kept: Path, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> Pixels:
    """The file as an array, for one use: pages of a file that stays mapped count as memory."""
    return np.memmap(kept, dtype, "r+" if kept.exists() else "w+", shape=shape)


def _kept(kept: Path, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> Read:
    def read(channel: int, rows: slice, columns: slice) -> Pixels:
        return np.array(_mapped(kept, dtype, shape)[channel, rows, columns])

    return read


def _half(read: Read, shape: tuple[int, int, int], halved: Callable[[Pixels], Pixels]) -> Read:
    def read_half(channel: int, rows: slice, columns: slice) -> Pixels:
        down = slice(2 * rows.start, min(2 * rows.stop, shape[1]))
        across = slice(2 * columns.start, min(2 * columns.stop, shape[2]))
        return halved(read(channel, down, across))

    return read_half


def _halving(missing: int | None) -> Callable[[Pixels], Pixels]:
    """Makes a level from the one before; labels have a value that is missing."""
    if missing is None:
        return _mean
    return partial(most_frequent_of_cells, missing=missing)


def _mean(pixels: Pixels) -> Pixels:
    rows, columns = pixels.shape
    odd = ((0, rows % 2), (0, columns % 2))
    four = np.pad(pixels.astype(np.float64), odd, constant_values=np.nan)
    four = four.reshape(-(-rows // 2), 2, -(-columns // 2), 2)
    there = ~np.isnan(four)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN where there is none
        mean: Pixels = np.where(there, four, 0).sum(axis=(1, 3)) / there.sum(axis=(1, 3))
    return mean.astype(pixels.dtype)
