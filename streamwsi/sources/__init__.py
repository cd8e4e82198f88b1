"""Sources: they open slides and read pixels."""

from .first_of import FirstOf
from .invalid import Filled, Strict
from .memory import MemorySource
from .tiff import TiffSource
from .zarr import ZarrSource

__all__ = ["Filled", "FirstOf", "MemorySource", "Strict", "TiffSource", "ZarrSource"]
