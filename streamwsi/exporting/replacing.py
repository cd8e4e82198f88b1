"""Outputs that appear when they are whole: written beside their place, then moved there.

Everything here blocks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CannotWrite, ConfigError
from ..sinks.durable import make_folders, sync_folders
from .documents import Record

__all__ = ["check_replaceable", "replacing", "working_folder"]


def check_replaceable(out: Path, overwrite: bool, record: Record | None = None) -> None:
    """Refuse to write over what is there.

    Args:
        out: what is to be written.
        overwrite: whether an export is replaced.
        record: of the heatmap: its slide is not.

    Raises:
        ConfigError: there is a file and `overwrite` is false, or something that is no export.
    """
    if not os.path.lexists(out):
        return
    if not out.is_file():
        raise ConfigError(f"{out} is there already and is not a file; choose another name")
    if out.with_name(f"{out.name}.json").is_file():
        # A pdmcsv file has its record beside it, and the same ending as a table.
        raise ConfigError(f"{out} was written by streamwsi heatmap; choose another name or folder")
    if record is not None and (out.name, out.stat().st_size) == (record.slide, record.nbytes):
        raise ConfigError(f"{out} is the heatmap's slide; choose another name or folder")
    if not overwrite:
        raise ConfigError(f"{out} is there already; --overwrite replaces it")


@contextmanager
def replacing(out: Path, overwrite: bool, record: Record | None = None) -> Iterator[Path]:
    """The path of a file to be written, in a folder of its own; at the end it is moved to `out`.

    Where the block fails, `out` stays as it was.

    Raises:
        ConfigError: see `check_replaceable`.
        CannotWrite: the file or its folder cannot be written.
    """
    check_replaceable(out, overwrite, record)
    with working_folder(out) as folder:
        made = folder / out.name
        yield made
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(out)
        sync_folders([out.parent])


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """A folder on the output's disk, gone at the end.

    Raises:
        CannotWrite: for every OSError within.
    """
    try:
        sync_folders(make_folders(out.parent))
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise CannotWrite(f"{out} cannot be written: {error.strerror or error}") from error
