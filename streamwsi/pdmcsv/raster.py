"""pdmcsv files to arrays, in memory that does not grow with the file.

Mode ``"mean"``. A line's values are h × w cells of ``kernel / h`` × ``kernel / w`` level pixels.
The raster has cells of that size; cell (0, 0) begins at the level's corner and the last ones
reach to its far edges or beyond. A window whose corner is a whole number of cells from the
level's corner fills h × w cells. Of any other window, each value lies across two or four cells
and counts in each by the share of its area that is there (a fraction of integers, so that
rounding misplaces nothing). A cell is the mean, weighted so, of all values in it, and NaN where
there is none; a NaN among them makes it NaN. What lies outside the cells is left out.

The order of the lines does not matter, not even to the last bit: windows are added from top to
bottom, left to right and, in the same place, in the order of a digest of their text. A file in
that order, as one panel of windows is written, is read once. Otherwise a first pass notes
where each line lies (40 bytes a line) and a second one reads them in order. Besides that, only
the rows of cells that can still change are in memory, and the result where no `out` is given.

Mode ``"pydmed"`` is `streamwsi.pdmcsv.pydmed`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead, CannotWrite, ConfigError
from .mean import Means
from .order import OutOfOrder, in_order, sorted_rows
from .pydmed import pydmed_raster
from .reader import OnError, Reader

__all__ = ["to_raster"]

_Float = npt.NDArray[np.float64]
_LARGEST_IN_MEMORY = 4 << 30
_LARGEST_SCALE = 256


def to_raster(
    source: str | Path,
    mode: Literal["mean", "pydmed"] = "mean",
    *,
    scale: int = 1,
    errors: OnError = "raise",
    out: str | Path | None = None,
) -> _Float:
    """The raster of a pdmcsv file.

    Args:
        source: the file.
        mode: ``"mean"``: absolute places, overlaps averaged (see this module); ``"pydmed"``:
            what PyDmed's ``pdmcsvtoarray`` returns (see `streamwsi.pdmcsv.pydmed`).
        scale: output cells per cell, along each axis. In mode ``"mean"`` the raster is as if
            each value were ``scale × scale`` equal values, which places windows that do not
            lie on the cells more finely; in mode ``"pydmed"`` each cell is repeated.
        errors: in mode ``"mean"``, whether a line that is not right ends it (``"raise"``) or is
            left out with a warning (``"skip"``).
        out: a ``.npy`` file to write; it appears when it is complete and replaces an older one.

    Returns:
        ``(rows, columns, C)`` float64; a read-only memory map where `out` is given.

    Raises:
        CannotRead: the file cannot be read, has no lines, or a line is not right or does not
            fit the others.
        CannotWrite: `out` cannot be written.
        ConfigError: an argument is wrong, or the raster is too large for memory or disk.

    Warns:
        UserWarning: lines were left out, or count as zeros.
    """
    if not 1 <= scale <= _LARGEST_SCALE:
        raise ConfigError(f"scale must be between 1 and {_LARGEST_SCALE}, not {scale}")
    if mode not in ("mean", "pydmed"):
        raise ConfigError(f'mode must be "mean" or "pydmed", not {mode!r}')
    if mode == "pydmed" and errors != "raise":
        raise ConfigError('errors="skip" is for mode "mean"; PyDmed\'s rules leave no line out')
    with _created(None if out is None else Path(out)) as create:
        if mode == "mean":
            raster, notes = _mean_raster(Reader(source, errors), scale, create)
        else:
            raster, notes = pydmed_raster(source, scale, create)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return raster if out is None else np.load(out, mmap_mode="r")


def _mean_raster(
    reader: Reader, scale: int, create: Callable[[tuple[int, int, int]], _Float]
) -> tuple[_Float, list[str]]:
    first = next(iter(reader), None)
    if first is None:
        raise CannotRead(f"{reader.path} has no lines to make a raster of")
    means = Means.of(reader.path, first, scale)
    raster = create(means.shape)
    if not _filled(means, raster, reader):
        means.fill(raster, sorted_rows(reader))
    if not reader.skipped:
        return raster, []
    return raster, [f"lines left out: {reader.skipped}; the first: {reader.problems[0]}"]


def _filled(means: Means, raster: _Float, reader: Reader) -> bool:
    """Whether the file could be read in one go."""
    try:
        means.fill(raster, in_order(reader))
    except OutOfOrder:
        return False
    return True


@contextmanager
def _created(out: Path | None) -> Iterator[Callable[[tuple[int, int, int]], Any]]:
    """Gives a function that makes the array; a file gets its name when all went well."""
    if out is None:
        yield _in_memory
        return
    partial = out.with_name(f".{out.name}.partial")
    try:
        yield lambda shape: _in_file(partial, shape)
        partial.replace(out)
    except OSError as error:
        raise CannotWrite(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _in_memory(shape: tuple[int, int, int]) -> _Float:
    if (nbytes := 8 * shape[0] * shape[1] * shape[2]) > _LARGEST_IN_MEMORY:
        raise ConfigError(
            f"the raster has {shape[0]} × {shape[1]} × {shape[2]} numbers, which take {nbytes} "
            "bytes; give out= to write it to a file"
        )
    return np.zeros(shape)


def _in_file(path: Path, shape: tuple[int, int, int]) -> Any:
    nbytes = 8 * shape[0] * shape[1] * shape[2]
    if nbytes > (free := shutil.disk_usage(path.parent).free):
        raise ConfigError(
            f"the raster has {shape[0]} × {shape[1]} × {shape[2]} numbers, which take {nbytes} "
            f"bytes, but {path.parent} has {free} bytes free"
        )
    raster = np.lib.format.open_memmap(path, "w+", np.float64, shape)
    if hasattr(os, "posix_fallocate"):
        # A disk that fills up is an error here; under the mapping it would kill the process.
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return raster
