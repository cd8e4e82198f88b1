"""Samplers: they decide which windows a slide gives, and cut them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use
from .random_patches import RandomPatches
from .sliding_window import SlidingWindow

if TYPE_CHECKING:
    from .mask_files import FileMask
    from .masked import Masked
    from .masks import ArrayMask
    from .per_slide import PerSlide
    from .tissue_mask import TissueMask

__all__ = [
    "ArrayMask",
    "FileMask",
    "Masked",
    "PerSlide",
    "RandomPatches",
    "SlidingWindow",
    "TissueMask",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "ArrayMask": "masks",
        "FileMask": "mask_files",
        "Masked": "masked",
        "PerSlide": "per_slide",
        "TissueMask": "tissue_mask",
    },
)
