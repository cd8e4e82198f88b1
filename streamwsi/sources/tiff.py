"""TIFF slides: Aperio SVS, OME-TIFF, Hamamatsu NDPI, and plain pyramids of tiles or strips.

The parent process looks at a file's first bytes only. Parsing and decoding happen in the
workers, in modules that are imported there, in this order of use:

``tiff_calls``        what the parent calls
``tiff_slides``       opens a slide once per process and keeps it open
``tiff_files``        the file as positional reads
``tiff_directories``  refuses hostile headers before a parser sees them
``tiff_levels``       which images are levels, and where their tiles lie
``tiff_metadata``     pixel size, objective, vendor (``tiff_ome`` for OME-XML)
``tiff_tiles``        reads a box: every tile is decoded once, into its place
``tiff_decoders``     bytes to pixels (``tiff_codestreams`` looks at them before)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..slides import SlideRef
from .base import Inspect, PooledSource, ReadBox
from .tiff_calls import inspect_tiff, read_tiff
from .tiff_files import has_tiff_magic

__all__ = ["TiffSource", "inspect_tiff", "read_tiff"]


@dataclass(frozen=True, slots=True)
class TiffSource(PooledSource):
    """Reads TIFF slides from local files.

    Pixels are what tifffile's ``asarray`` gives, bit by bit; channels that are stored as planes
    become the last axis. Tiles that were never stored are background: white where the pixels
    are RGB, 0 elsewhere (``Slide.properties["background"]``).
    """

    inspect: ClassVar[Inspect] = staticmethod(inspect_tiff)
    read_box: ClassVar[ReadBox] = staticmethod(read_tiff)
    worker_modules: ClassVar[tuple[str, ...]] = ("streamwsi.sources.tiff_slides",)

    def accepts(self, ref: SlideRef) -> bool:
        """Whether it is a regular file that begins like a classic TIFF or a BigTIFF."""
        try:
            if not Path(ref.uri).is_file():
                return False
            with open(ref.uri, "rb", buffering=0) as file:
                return has_tiff_magic(file.read(8))
        except (OSError, ValueError):
            return False
