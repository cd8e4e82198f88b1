"""A heatmap as a CSV file: see `streamwsi.exporting.cell_rows` for its columns."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cell_rows import FACTS, cell_rows, value_names
from .heatmap import open_heatmap
from .replacing import replacing

__all__ = ["export_csv"]

_ROWS = 65_536


def export_csv(
    heatmap: str | Path,
    out: str | Path,
    *,
    label: str | None = None,
    every: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a row per cell, with a heading; blocks: in asynchronous code, call it in a thread.

    Numbers are the shortest that read back as the same value; NaN is an empty field.

    Args:
        heatmap: the folder of a heatmap.
        out: the file.
        label: a label image of the group, instead of the heatmap itself.
        every: also the cells that were not computed, or left out by a mask.
        overwrite: replace a file that is there.

    Returns:
        How many rows there are.

    Raises:
        ConfigError: the file is there already.
        CannotOpen: there is no heatmap, or it holds no values yet.
        CannotRead: a chunk of it cannot be read.
        CannotWrite: the file cannot be written.
    """
    source = open_heatmap(heatmap, label)
    count = 0
    with (
        replacing(Path(out), overwrite, source.record) as made,
        made.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*FACTS, *value_names(source)])
        for columns in cell_rows(source, every):
            # Texts take far more memory than numbers.
            for first in range(0, len(columns[0]), _ROWS):
                some = [_texts(column[first : first + _ROWS]) for column in columns]
                table.writerows(zip(*some, strict=True))
            count += len(columns[0])
    return count


def _texts(column: npt.NDArray[Any]) -> list[str]:
    texts: list[str] = column.astype(np.str_).tolist()
    if column.dtype.kind != "f":
        return texts
    return ["" if text == "nan" else text.removesuffix(".0") for text in texts]
