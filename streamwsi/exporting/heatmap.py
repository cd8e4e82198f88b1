"""A heatmap that is read block by block: the one place that knows how it is stored.

Exporters ask for levels, cells, channels and windows, and take nothing for granted: cells may be
windows or parts of them, of any number type, with any chunks, on one level or many.

The arrays are zarr's, read by its synchronous interface: it runs an event loop of its own, so
that in asynchronous code all of this belongs in a thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CannotOpen, CannotRead, ConfigError
from ..sinks.cell_types import COMPUTED
from .documents import Image, Named, Record, read_documents
from .lattices import Lattice, window_lattice

__all__ = ["Heatmap", "MapLevel", "open_heatmap"]

#: What is read at once, where chunks allow.
_BLOCK_BYTES = 16 << 20
#: zarr decodes several chunks at a time, each whole.
_MOST_CHUNK_BYTES = 256 << 20

_PLANNED = "planned"
_MOST_CHANNELS = 1 << 16
#: A row of cells is held at once, a byte per cell.
_MOST_CELLS = 1 << 24
_DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "int8", "int16", "int32")


@dataclass(frozen=True, slots=True, eq=False)
class MapLevel:
    """One level of the map.

    Attributes:
        cells: where its cells lie.
        shape: ``(channels, rows, columns)``.
        dtype: of the values.
        missing: of integers, the value of cells that nothing was computed for; floats are NaN.
    """

    cells: Lattice
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    missing: int | None
    _array: Any
    _path: Path

    @property
    def labelled(self) -> bool:
        """Whether the values are numbers of classes."""
        return self.missing is not None

    def read(self, channels: slice, rows: slice, columns: slice) -> npt.NDArray[Any]:
        """Values ``(channels, rows, columns)``.

        Raises:
            CannotRead: a chunk cannot be read.
        """
        at = (channels, rows, columns)[3 - self._array.ndim :]
        return _read(self._array, at, self._path).reshape(
            -1, rows.stop - rows.start, columns.stop - columns.start
        )

    def blocks(self, channels: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of blocks that cover the level, in rows of blocks.

        Blocks are made of whole chunks, or are parts of one where it is too large.

        Args:
            channels: how many are to be read at once.
        """
        _, rows, columns = self.shape
        high, wide = self._array.chunks[-2:]
        cell = channels * self.dtype.itemsize
        if cell * high * wide > _BLOCK_BYTES:
            wide = max(1, min(wide, _BLOCK_BYTES // cell))
            high = max(1, min(high, _BLOCK_BYTES // (cell * wide)))
        across = wide * max(1, _BLOCK_BYTES // (cell * high * wide))
        down = high * max(1, _BLOCK_BYTES // (cell * high * min(across, columns)))
        for y in range(0, rows, down):
            for x in range(0, columns, across):
                yield slice(y, min(y + down, rows)), slice(x, min(x + across, columns))


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """An opened heatmap.

    Attributes:
        path: its folder.
        name: of the image.
        levels: finest first.
        channels: one per channel of the levels.
        labels: the classes of a label image, as far as they are named.
        record: what it was made from, and how far it is.
        windows: where the windows lie that have a code each; None where the cells have one.
        codes: what became of windows, or of cells, around their centres: 0 not computed, 1
            computed, 2 damaged, 3 left out by a mask; None where nobody tells.
    """

    path: Path
    name: str
    levels: tuple[MapLevel, ...]
    channels: tuple[Named, ...]
    labels: dict[int, Named]
    record: Record
    windows: Lattice | None
    codes: MapLevel | None

    @property
    def unfinished(self) -> str | None:
        """How far it is, in a sentence; None where it is complete."""
        state = self.record.state
        if state.complete:
            return None
        return (
            f"{self.path} is not finished: {state.pieces:,} of {state.total:,} windows are there; "
            "the rest is exported as not computed"
        )

    def codes_at(
        self, xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.uint8]:
        """The codes of what has the nearest centres, ``(len(ys), len(xs))``.

        Where nobody tells, all is computed.

        Args:
            xs: ascending, level-0 pixels.
            ys: likewise.
        """
        if self.codes is None:
            return np.full((len(ys), len(xs)), COMPUTED, np.uint8)
        _, rows, columns = self.codes.shape
        i, _ = self.codes.cells.holding(1, ys, rows)
        j, _ = self.codes.cells.holding(0, xs, columns)
        down, across = slice(int(i[0]), int(i[-1]) + 1), slice(int(j[0]), int(j[-1]) + 1)
        near: npt.NDArray[np.uint8] = self.codes.read(slice(0, 1), down, across)[0]
        return near[np.ix_(i - i[0], j - j[0])]

    def channel(self, which: int | str | None) -> int:
        """The number of a channel, from its name or its number; None is the only one.

        Raises:
            ConfigError: there is no such channel, or it is to be chosen.
        """
        names = [channel.name for channel in self.channels]
        if which is None and len(names) == 1:
            return 0
        if isinstance(which, str):
            if names.count(which) == 1:
                return names.index(which)
            # A number, as it comes from a command line.
            which = int(which) if which.isascii() and which.isdigit() else -1
        if which is None or not 0 <= which < len(names):
            shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
            what = "several channels" if which is None else "no such channel"
            raise ConfigError(
                f"{self.path} has {what}; choose one by its name or its number, from 0: {shown}"
            )
        return which


def open_heatmap(path: str | Path, label: str | None = None) -> Heatmap:
    """Open a heatmap that `streamwsi.sinks.HeatmapZarr` wrote, finished or not.

    Args:
        path: its folder.
        label: a label image of the group, instead of the heatmap itself.

    Raises:
        CannotOpen: it is none, holds no values yet, or cannot be used.
    """
    path = Path(path)
    image, record = read_documents(path, label)
    if [dataset.path for dataset in image.datasets] == [_PLANNED]:
        raise CannotOpen(
            f"{path} holds no values yet; the command that began it goes on where it stopped"
        )
    try:
        levels = tuple(
            _level(_open(image.folder / dataset.path), dataset.cells, image.folder)
            for dataset in image.datasets
        )
        written = _codes(path / "valid")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CannotOpen(f"{path} holds an array that cannot be used: {error}") from error
    if len({(level.shape[0], level.dtype) for level in levels}) > 1:
        raise CannotOpen(f"{path} has levels of several types, or numbers of channels")
    windows, codes = _windows(levels[0], written, record, path)
    return Heatmap(
        path,
        image.name,
        levels,
        _channels(image, record, levels[0]),
        _classes(image, record),
        record,
        windows,
        codes,
    )


def _open(folder: Path) -> Any:
    import zarr

    if not (folder / "zarr.json").is_file():
        raise ValueError(f"{folder.name} is missing; copy the whole folder")
    array = zarr.open_array(str(folder), mode="r", zarr_format=3)
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if chunk > _MOST_CHUNK_BYTES:
        raise ValueError(
            f"{folder.name} has chunks of {chunk:,} bytes, and at most {_MOST_CHUNK_BYTES:,} "
            "are read at once"
        )
    return array


def _windows(
    level: MapLevel, written: Any, record: Record, path: Path
) -> tuple[Lattice | None, MapLevel | None]:
    """Where windows lie that have a code each, and what the codes are of.

    Maps that are blended have codes for their cells instead.

    Raises:
        CannotOpen: there are codes for something else.
    """
    if written is None:
        return None, None
    shape, per_window = level.shape[1:], record.cells
    each = (written.shape[0] * per_window[0], written.shape[1] * per_window[1])
    if each == shape and record.kernel and record.stride:
        windows = window_lattice(level.cells, per_window, record.kernel, record.stride)
        cells = windows.around_centres()
    elif written.shape == shape:
        windows, cells = None, level.cells
    else:
        raise CannotOpen(f"{path} has {written.shape} codes for {shape} cells; compute it again")
    return windows, MapLevel(cells, (1, *written.shape), np.dtype(np.uint8), 0, written, path)


def _codes(folder: Path) -> Any:
    """The array of codes; None where there is none."""
    if not (folder / "zarr.json").is_file():
        return None
    array = _open(folder)
    if array.ndim != 2 or 0 in array.shape or array.dtype != np.uint8:
        raise ValueError(f"valid has the shape {array.shape} and holds {array.dtype}")
    return array


def _level(array: Any, cells: Lattice, folder: Path) -> MapLevel:
    dtype = np.dtype(array.dtype)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{array.store_path} has the shape {array.shape}")
    if math.prod(array.shape[:-2]) > _MOST_CHANNELS or max(array.shape[-2:]) > _MOST_CELLS:
        raise ValueError(
            f"its shape {array.shape} is beyond {_MOST_CHANNELS:,} channels, or {_MOST_CELLS:,} "
            "cells a side"
        )
    if dtype.name not in _DTYPES:
        raise ValueError(f"its values are {dtype.name}, not {', '.join(_DTYPES)}")
    missing = None if dtype.kind == "f" else int(array.fill_value)
    shape = array.shape if array.ndim == 3 else (1, *array.shape)
    return MapLevel(cells, shape, dtype, missing, array, folder)


def _channels(image: Image, record: Record, level: MapLevel) -> tuple[Named, ...]:
    """By the omero metadata, else by the record, else numbered."""
    count = level.shape[0]
    if len(image.channels) == count and all(channel.name for channel in image.channels):
        return image.channels
    names = ("label",) if level.labelled and count == 1 else tuple(map(str, range(count)))
    if len(record.channels) == count and not level.labelled:
        names = record.channels
    colours = [c.colour for c in image.channels] if len(image.channels) == count else [None] * count
    return tuple(Named(name, colour) for name, colour in zip(names, colours, strict=True))


def _classes(image: Image, record: Record) -> dict[int, Named]:
    """The labels' names by the image's metadata, or those of the channels that they stand for."""
    if image.labels or not record.labelled:
        return dict(image.labels)
    return {number: Named(name) for number, name in enumerate(record.channels, 1)}


def _read(array: Any, at: tuple[slice, ...], path: Path) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = np.asarray(array[at])
    except MemoryError:
        raise
    except Exception as error:  # whatever a codec raises
        raise CannotRead(f"{path} holds a chunk that cannot be read: {error}") from error
    return values
