"""Sinks: they write what became of the windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use

if TYPE_CHECKING:
    from .features_hdf5 import FeaturesHdf5
    from .features_zarr import FeaturesZarr
    from .heatmap_zarr import HeatmapZarr
    from .memory import FoldSink, MemorySink
    from .pdmcsv import Pdmcsv
    from .select import Select
    from .tee import Tee

__all__ = [
    "FeaturesHdf5",
    "FeaturesZarr",
    "FoldSink",
    "HeatmapZarr",
    "MemorySink",
    "Pdmcsv",
    "Select",
    "Tee",
]

__getattr__ = loaded_on_use(
    __name__,
    {
        "FeaturesHdf5": "features_hdf5",
        "FeaturesZarr": "features_zarr",
        "FoldSink": "memory",
        "HeatmapZarr": "heatmap_zarr",
        "MemorySink": "memory",
        "Pdmcsv": "pdmcsv",
        "Select": "select",
        "Tee": "tee",
    },
)
