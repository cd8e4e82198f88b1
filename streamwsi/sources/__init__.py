"""Sources: they open slides and read pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use

if TYPE_CHECKING:
    from .first_of import FirstOf
    from .invalid import Filled, Strict
    from .memory import MemorySource
    from .tiff import TiffSource
    from .zarr import ZarrSource

__all__ = ["Filled", "FirstOf", "MemorySource", "Strict", "TiffSource", "ZarrSource"]

__getattr__ = loaded_on_use(
    __name__,
    {
        "Filled": "invalid",
        "FirstOf": "first_of",
        "MemorySource": "memory",
        "Strict": "invalid",
        "TiffSource": "tiff",
        "ZarrSource": "zarr",
    },
)
