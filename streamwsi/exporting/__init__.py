"""Exports: finished or unfinished heatmaps as files for other programs.

Each is a function that takes a heatmap's folder and a file to be written. They read block by
block, so that memory does not grow with the heatmap, and a file appears when it is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use

if TYPE_CHECKING:
    from .csv_table import export_csv
    from .geojson import export_geojson
    from .ome_tiff import export_ome_tiff
    from .parquet_table import export_parquet
    from .png import export_png

__all__ = ["export_csv", "export_geojson", "export_ome_tiff", "export_parquet", "export_png"]

__getattr__ = loaded_on_use(
    __name__,
    {
        "export_csv": "csv_table",
        "export_geojson": "geojson",
        "export_ome_tiff": "ome_tiff",
        "export_parquet": "parquet_table",
        "export_png": "png",
    },
)
