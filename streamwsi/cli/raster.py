"""``streamwsi raster``: a pdmcsv file as an array or a picture.

The raster is made by `streamwsi.pdmcsv.to_raster` into a file, so that memory does not grow with
it. A ``.npy`` file is that file; a picture and a zarr array are made from it, a band or a chunk
at a time, in a folder beside the output that is gone afterwards. Whatever the format, the output
gets its name when it is whole.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamwsi.errors import ConfigError, StreamwsiError
from streamwsi.exporting.replacing import working_folder

from .terminal import Debug, errors_as_sentences, interruptible, run_interruptible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["chunk_side", "raster", "write_array", "write_picture"]

_LARGEST_PICTURE = 100_000_000
_LONGEST_SIDE = 65_000
_SMALL_PICTURE = 512  # of smaller rasters, each cell becomes a square of pixels
_BAND = 1 << 20  # cells coloured at once
_CHUNK = 1 << 19  # numbers in a chunk of a zarr array
_WIDEST_CHUNK = 512


class Mode(StrEnum):
    """Whose rules the raster follows."""

    MEAN = "mean"
    PYDMED = "pydmed"


def raster(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="A .npy, .png or .zarr to be written.", show_default=False)
    ],
    mode: Annotated[
        Mode, typer.Option(help="mean: places are kept, overlaps averaged; pydmed: its own rules.")
    ] = Mode.MEAN,
    scale: Annotated[int, typer.Option(help="Cells of the output per value, each way.")] = 1,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out lines that are wrong, and count them.")
    ] = False,
    channel: Annotated[
        int | None,
        typer.Option(help="Channel of a picture, from 0.", show_default="the only one"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make an array or a picture of a pdmcsv file.

    Rows go down and columns right, as on the slide. A .npy file holds float64 (rows, columns,
    channels), a .zarr one array (channels, rows, columns). A cell without a value is NaN in
    them, and white in a picture.
    """
    with errors_as_sentences(debug), interruptible():
        _check(out, channel, overwrite)
        with working_folder(out) as folder:
            made = folder / out.name
            numbers = made.with_suffix(".npy")
            values = _raster(file, numbers, mode, scale, skip_errors)
            if out.suffix == ".png":
                write_picture(made, values, channel)
            elif out.suffix == ".zarr":
                about = {"pdmcsv": file.name, "mode": mode.value, "scale": scale}
                run_interruptible(lambda: write_array(made, values, about))
            if out.is_dir():
                out.rename(folder / "replaced")
            made.replace(out)
        rows, columns, channels = values.shape
        print(f"{file} -> {out} ({rows:,} × {columns:,} cells, channels: {channels})")


def _check(out: Path, channel: int | None, overwrite: bool) -> None:
    """Refuse what can be refused before any work.

    Raises:
        ConfigError: the output's name or `channel` does not fit, or the output is there already.
    """
    if out.suffix not in (".npy", ".png", ".zarr"):
        raise ConfigError(f"--out {out} must end in .npy, .png or .zarr, which names the format")
    if channel is not None and out.suffix != ".png":
        raise ConfigError(f"--channel is for pictures; {out} gets all channels")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise ConfigError(f"{out} is there already; --overwrite replaces it")
    array = out.is_dir() and not out.is_symlink() and (out / "zarr.json").is_file()
    if not (array if out.suffix == ".zarr" else out.is_file()):
        raise ConfigError(f"{out} is there already and is no {out.suffix}; choose another name")


def _raster(
    file: Path, path: Path, mode: Mode, scale: int, skip_errors: bool
) -> npt.NDArray[np.float64]:
    """The raster ``(rows, columns, C)`` of a pdmcsv file, mapped from `path`."""
    from streamwsi.pdmcsv import to_raster

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            values = to_raster(
                file, mode.value, scale=scale, errors="skip" if skip_errors else "raise", out=path
            )
        except StreamwsiError as error:
            # It speaks to programs; here the setting has another name.
            message = str(error).replace('errors="skip"', "--skip-errors")
            raise type(error)(message) from error
    for note in notes:
        print(f"warning: {note.message}", file=sys.stderr)
    return values


def write_picture(path: Path, values: npt.NDArray[np.float64], channel: int | None) -> None:
    """Write a channel of ``(rows, columns, C)`` as a PNG with a legend, NaN white.

    Raises:
        ConfigError: there is no such channel, it is to be chosen, or the picture is too large.
        OSError: the file cannot be written.
    """
    import numpy as np

    from streamwsi.pictures import coloured, value_range, with_legend, write_png

    rows, columns, channels = values.shape
    if channel is None and channels > 1:
        raise ConfigError(f"a picture shows one of {channels} channels; choose it with --channel")
    if not 0 <= (channel or 0) < channels:
        raise ConfigError(f"--channel {channel} must be from 0 to {channels - 1}")
    if rows * columns > _LARGEST_PICTURE or max(rows, columns) > _LONGEST_SIDE:
        raise ConfigError(
            f"{rows:,} × {columns:,} cells are too many for a picture; choose .npy or .zarr"
        )
    shown = values[:, :, channel or 0]
    step = max(1, _BAND // columns)
    bands = [slice(y, y + step) for y in range(0, rows, step)]
    ranges = [value_range(shown[band]) for band in bands if np.isfinite(shown[band]).any()]
    low = min((low for low, _ in ranges), default=0.0)
    high = max((high for _, high in ranges), default=1.0)
    picture = np.empty((rows, columns, 3), np.uint8)
    for band in bands:
        with np.errstate(over="ignore", invalid="ignore"):
            picture[band] = coloured(shown[band], low, high)
        picture[band][np.isnan(shown[band])] = 255
    side = max(1, _SMALL_PICTURE // max(rows, columns))
    picture = picture.repeat(side, axis=0).repeat(side, axis=1)
    write_png(path, with_legend(picture, low, high))


def chunk_side(channels: int) -> int:
    """Cells along each side of a chunk with all channels: a power of two, at most 4 MiB a chunk.

    Of more than half a million channels, one cell is a chunk.
    """
    return min(_WIDEST_CHUNK, 1 << (max(1, _CHUNK // channels).bit_length() - 1) // 2)


async def write_array(
    path: Path, values: npt.NDArray[np.float64], about: dict[str, str | int]
) -> None:
    """Write ``(rows, columns, C)`` as a new zarr v3 array ``(c, y, x)``, chunk by chunk.

    Args:
        path: its folder.
        values: the raster.
        about: where it comes from: the attribute ``streamwsi``.
    """
    import numpy as np
    from zarr.api import asynchronous

    rows, columns, channels = values.shape
    side = chunk_side(channels)
    array = await asynchronous.create_array(
        str(path),
        shape=(channels, rows, columns),
        chunks=(channels, side, side),
        dtype="float64",
        fill_value=math.nan,
        dimension_names=("c", "y", "x"),
        attributes={"streamwsi": about},
    )
    for y in range(0, rows, side):
        for x in range(0, columns, side):
            chunk = values[y : y + side, x : x + side].transpose(2, 0, 1)
            at = (slice(None), slice(y, y + side), slice(x, x + side))
            await array.setitem(at, np.ascontiguousarray(chunk))
