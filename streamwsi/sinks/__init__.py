"""Sinks: they write what became of the windows."""

from .heatmap_zarr import HeatmapZarr
from .memory import FoldSink, MemorySink
from .pdmcsv import Pdmcsv
from .tee import Tee

__all__ = ["FoldSink", "HeatmapZarr", "MemorySink", "Pdmcsv", "Tee"]
