"""Sinks: they write what became of the windows."""

from .heatmap_zarr import HeatmapZarr
from .pdmcsv import Pdmcsv

__all__ = ["HeatmapZarr", "Pdmcsv"]
