"""pdmcsv: PyDmed's text format for heatmaps, one line per window.

`rows` describes the format and writes it, `reader` reads it, `raster` makes arrays of it;
`fields` turns the text of many lines into numbers.
"""

from .raster import to_raster
from .reader import Reader, Rows, read
from .rows import format_rows

__all__ = ["Reader", "Rows", "format_rows", "read", "to_raster"]
