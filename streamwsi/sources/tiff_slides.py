"""Opened TIFF slides of this process: parsed once, kept while they are in use.

A worker is asked for one box after another of a few slides; so the most recently used ones stay
open. Each call looks whether the file is still the one that was opened, so that a slide that
was exported again under the same name is never mixed with the old one.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy.typing as npt
from tifffile import TiffFile

from ..chunks import Damage
from ..errors import CannotOpen, CannotRead, NoSlide, SlideError
from ..geometry import Box
from ..slides import Pyramid, Slide, SlideRef
from . import tiff_ome as ome
from .tiff_directories import check_directories
from .tiff_files import SlideFile, has_tiff_magic, signature
from .tiff_levels import StoredLevel, Unlike, Unreadable, main_series, stored_levels
from .tiff_metadata import slide_facts
from .tiff_tiles import read_tiles

__all__ = ["inspect", "read"]

_KEPT_OPEN = 32

# What the parser finds odd is said in our own words or does not matter; without a handler,
# logging would print it to the standard error of the worker.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# Formats that follow references into other files, or are known by a guess and never slides.
_PLAIN: dict[str, Any] = dict.fromkeys(
    (
        "is_mmstack",
        "is_ndtiff",
        "is_lsm",
        "is_stk",
        "is_scanimage",
        "is_fluoview",
        "is_nih",
        "is_mdgel",
        "is_sis",
        "is_eer",
        "is_vista",
    ),
    False,
)


@dataclass(slots=True, eq=False)
class _Opened:
    file: SlideFile
    slide: Slide
    levels: tuple[StoredLevel, ...]

    def reopened(self) -> SlideFile:
        """A fresh handle, which later reads use too; readers of the old one keep it alive."""
        try:
            fresh = SlideFile(self.file.uri)
        except CannotOpen as error:
            raise CannotRead(f"{error} (it was readable before)") from error
        if fresh.signature != self.file.signature:
            raise CannotRead(f"{fresh.uri}: was changed while it was read; run again")
        self.file = fresh
        return fresh


_opened: OrderedDict[str, _Opened] = OrderedDict()
_lock = threading.Lock()


def inspect(ref: SlideRef) -> Slide:
    """What the slide is; see `streamwsi.sources.tiff.inspect_tiff`."""
    opened = _open(ref)
    # Where the tiles lie counts too: a copy whose tables are damaged is another slide.
    tables = (t.tobytes() for stored in opened.levels for t in (stored.offsets, stored.nbytes))
    return replace(opened.slide, ref=ref, identity=opened.file.identity(*tables))


def read(ref: SlideRef, level: int, box: Box, out: npt.NDArray[Any]) -> tuple[Damage, ...]:
    """The pixels of a box; see `streamwsi.sources.tiff.read_tiff`."""
    try:
        opened = _open(ref)
    except CannotOpen as error:
        raise CannotRead(f"{error} (it was readable before)") from error
    stored = opened.levels[opened.slide.level(level).index]
    return read_tiles(opened.file, stored, box, out, opened.reopened)


def _open(ref: SlideRef) -> _Opened:
    """The opened slide, from those kept or anew. Two threads may open a slide at the same time:
    better than one waiting for the other's slow disk."""
    with _lock:
        kept = _opened.get(ref.uri)
    try:
        if kept is None or kept.file.signature != signature(ref.uri):
            kept = _parsed(ref)
    except OSError:
        kept = _parsed(ref)
    with _lock:
        _opened[ref.uri] = kept
        _opened.move_to_end(ref.uri)
        while len(_opened) > _KEPT_OPEN:
            _opened.popitem(last=False)
    return kept


def _parsed(ref: SlideRef) -> _Opened:
    """The one boundary between what can go wrong in a parser and `CannotOpen`."""
    file = SlideFile(ref.uri)
    try:
        if not has_tiff_magic(file.read(0, 8)):
            raise CannotOpen(f"{ref.uri}: is not a TIFF file; convert it, or name another source")
        check_directories(file)
        # The name decides how the parser reads an NDPI, and is needed for nothing else.
        with TiffFile(ref.uri, **_PLAIN) as tif:
            return _slide(ref, file, tif)
    except SlideError:
        raise
    except Unlike as error:
        raise NoSlide(f"{ref.uri}: {error}") from error
    except Unreadable as error:
        raise CannotOpen(f"{ref.uri}: {error}") from error
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise CannotOpen(
            f"{ref.uri}: its header cannot be read ({type(error).__name__}: {text}); "
            "the file is damaged or of an unknown kind: export or copy it again"
        ) from error


def _slide(ref: SlideRef, file: SlideFile, tif: TiffFile) -> _Opened:
    document = ome.parse(tif.ome_metadata) if tif.is_ome and tif.ome_metadata else None
    if document is not None:
        other = ome.other_file(document, PurePath(ref.uri).name)
        if other is not None:
            raise Unreadable(f"is a part of an image that lies in {other!r} too; join the files")
    series = main_series(tif)
    if series.kind == "bif":
        raise Unreadable("has overlapping tiles (BIF), which need stitching; convert it first")
    levels = stored_levels(series)
    facts = slide_facts(tif, series, levels[0].level.size, document)
    slide = Slide(
        ref=ref,
        pyramid=Pyramid(tuple(stored.level for stored in levels), facts.mpp),
        dtype=levels[0].dtype.name,
        channels=levels[0].channels,
        vendor=facts.vendor,
        power=facts.power,
        nbytes=file.size,
        compression=levels[0].compression,
        properties={**facts.properties, "background": levels[0].background},
    )
    return _Opened(file, slide, levels)
