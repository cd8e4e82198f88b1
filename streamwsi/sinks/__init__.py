"""Sinks: they write what became of the windows."""

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
