"""What a processor makes of each window, told before the first one is read.

Links, sinks and merges are sized by it; the memory limit would be a hope without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chunks import Batch, Places, Plan
from .geometry import Size

__all__ = ["ValueType", "blank_batch"]


@dataclass(frozen=True, slots=True)
class ValueType:
    """The value of one window.

    Attributes:
        shape: ``()`` or ``(C,)`` for a vector, ``(C, h, w)`` for a map; ``()`` for a record.
        dtype: numpy dtype; of a record, with a field for each of several outputs.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, values: Any) -> ValueType | None:
        """That of the values of some windows; None where they are no array ``(n, …)``."""
        if not isinstance(values, np.ndarray) or not values.ndim:
            return None
        return cls(values.shape[1:], values.dtype)

    def field(self, name: str) -> ValueType | None:
        """One of several outputs; None where there is no such one."""
        if self.dtype.fields is None or name not in self.dtype.fields:
            return None
        dtype = self.dtype.fields[name][0]
        return ValueType(dtype.shape, dtype.base)

    @property
    def numbers(self) -> int:
        """How many numbers a value has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return self.numbers * self.dtype.itemsize

    @property
    def cells(self) -> Size:
        """Cells that a window's value has: 1×1 for a vector, w×h for a map."""
        return Size(self.shape[2], self.shape[1]) if len(self.shape) == 3 else Size(1, 1)


def blank_batch(plan: Plan, most: int) -> Batch:
    """White windows in the size and dtype of a plan's, to see what a processor makes of them.

    Args:
        plan: of at least one window.
        most: windows, at most; two do, for with a single one some models drop an axis.
    """
    n = max(1, min(2, most, plan.count))
    box, slide = plan.place(0).box, plan.slide
    dtype = np.dtype(slide.dtype)
    white = np.iinfo(dtype).max if dtype.kind in "iu" else 1
    pixels = np.full((n, box.height, box.width, slide.channels), white, dtype)
    pixels.flags.writeable = False
    return Batch(Places(plan, 0, n), (pixels,), np.ones(n, np.bool_))
