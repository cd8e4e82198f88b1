"""Arrays as tensors over the same memory, read-only ones too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..chunks import Pixels

__all__ = ["tensor_over"]


class _Writable:
    """The memory of a read-only array, told as if it could be written to.

    torch warns about every tensor over read-only memory; these are only read from.
    """

    def __init__(self, array: Pixels) -> None:
        interface = array.__array_interface__
        self.array = array
        self.__array_interface__: dict[str, Any] = {
            **interface,
            "data": (interface["data"][0], False),
        }


def tensor_over(array: Pixels) -> Tensor:
    """A tensor over the array's memory, read-only or not; to be read only.

    Of an array that runs backwards in memory, which torch does not know, a copy.
    """
    if min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(np.asarray(_Writable(array)))
