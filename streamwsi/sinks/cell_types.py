"""What the cells of a heatmap are stored as: floats, or labels.

``float32``, ``float16``: the values; numbers beyond float16's become infinite there.
``labels``: uint8 ``1 + argmax`` over the channels, and 0 where nothing was computed: the image is
a map of classes, and an NGFF label image.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import StageMismatch

__all__ = [
    "CELL_TYPES",
    "COMPUTED",
    "DAMAGED",
    "LEFT_OUT",
    "CellType",
    "as_cells",
    "channels_of",
    "dtype_of",
    "fill_of",
]

#: What the array ``valid`` says of a cell; 0 stands for nothing computed.
COMPUTED, DAMAGED, LEFT_OUT = 1, 2, 3

CellType = Literal["float32", "float16", "labels"]
CELL_TYPES: tuple[str, ...] = get_args(CellType)

_MOST_LABELS = 255


def dtype_of(cells: CellType) -> str:
    """The numpy dtype that is stored."""
    return "uint8" if cells == "labels" else cells


def fill_of(cells: CellType) -> float:
    """What stands where nothing was computed."""
    return 0 if cells == "labels" else np.nan


def channels_of(cells: CellType, channels: int) -> int:
    """How many numbers a cell has, where a window gives so many.

    Raises:
        StageMismatch: there are more classes than labels.
    """
    if cells != "labels":
        return channels
    if channels > _MOST_LABELS:
        raise StageMismatch(
            f"the processor returns {channels} channels, and uint8 labels name {_MOST_LABELS} at "
            "most; store float32 or float16"
        )
    return 1


def as_cells(values: npt.NDArray[Any], cells: CellType, axis: int) -> npt.NDArray[Any]:
    """The numbers to be stored.

    Args:
        values: floats; `axis` is the channels'.
        cells: what they become.
        axis: it has length 1 afterwards, for labels.
    """
    if cells != "labels":
        with np.errstate(over="ignore"):
            return values.astype(cells, copy=False)
    # NaN in one channel is NaN in all but for models that give some themselves: no class then.
    known = ~np.isnan(values).any(axis, keepdims=True)
    best = np.argmax(values, axis, keepdims=True).astype(np.uint8)
    labels: npt.NDArray[np.uint8] = np.where(known, best + np.uint8(1), np.uint8(0))
    return labels
