"""From a parsed TIFF to its pyramid: which images are levels, and where their tiles lie.

tifffile groups the pages of a file into series and pyramids, by the rules of each vendor. Here
one series is chosen (never a label, macro or thumbnail), what cannot be read exactly is refused
with the reason, and the tables of tile positions become numpy arrays: nothing is done tile by
tile, so that a slide of a million tiles opens as fast as one of ten.

A level is stored as `planes`, in the order of the channels: one for all channels (the usual
case), or one each, in one page (planar samples) or in a page each (fluorescence channels).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tifffile import COMPRESSION, TiffFile, TiffFrame, TiffPage, TiffPageSeries

from ..geometry import Size
from ..slides import PyramidLevel, snapped_downsample
from .tiff_codestreams import holds_only_tables
from .tiff_decoders import COMPRESSIONS, Decoder, decoder_for

__all__ = ["MAX_TILE_BYTES", "StoredLevel", "Unreadable", "main_series", "stored_levels"]

MAX_TILE_BYTES = 256 * 2**20
"""A tile or strip that is larger when decoded is refused."""

_MAX_SIDE = 2**24
_MAX_CHANNELS = 1024
_MAX_OFFSET = 2**62
_DTYPES = ("uint8", "uint16")
_NOT_SLIDES = re.compile(r"(label|macro|thumbnail|overview|map)( image)?", re.IGNORECASE)
_GREY, _RGB, _CMYK, _YCBCR = (0, 1), 2, 5, 6
_IMAGE_CODECS = ("JPEG", "JPEG 2000")


class Unreadable(Exception):
    """Why the file cannot be read: a clause, to follow the file's name and a colon."""


class Unlike(Unreadable):
    """The file can be read, and what it holds is no slide."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredLevel:
    """Where and how a level's tiles are stored.

    Attributes:
        level: its size and tile size.
        columns, rows: of the grid of tiles.
        offsets, nbytes: per plane and tile, int64: where the compressed bytes lie; tiles
            are numbered in row-major order.
        decoders: per plane, with the number to add to a tile's to get its index in its page.
        samples: channels per plane.
        dtype: of the pixels, in native byte order.
        background: the value of pixels that were never stored (sparse tiles).
    """

    level: PyramidLevel
    columns: int
    rows: int
    offsets: npt.NDArray[np.int64]
    nbytes: npt.NDArray[np.int64]
    decoders: tuple[tuple[Decoder, int], ...]
    samples: int
    dtype: np.dtype[Any]
    compression: str
    background: int

    @property
    def channels(self) -> int:
        """Samples per pixel."""
        return self.samples * len(self.decoders)

    @property
    def tile_nbytes(self) -> int:
        """Bytes of a decoded tile of one plane."""
        return self.level.tile.width * self.level.tile.height * self.samples * self.dtype.itemsize


def main_series(tif: TiffFile) -> TiffPageSeries:
    """The slide's image: the largest series that is not named as something else."""
    candidates = [s for s in tif.series if not _NOT_SLIDES.fullmatch(s.name.strip())]
    candidates = candidates or list(tif.series)
    if not candidates:
        raise Unreadable("holds no image; the file is cut short or damaged: copy it again")
    return max(candidates, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)


def stored_levels(series: TiffPageSeries) -> tuple[StoredLevel, ...]:
    """The levels of a series, finest first.

    Raises:
        Unreadable: one of them cannot be read exactly.
    """
    stored = [_stored_level(series, 0, None)]
    for candidate in series.levels[1:]:
        if _is_level(candidate, stored[-1].level.size, stored[0]):
            stored.append(_stored_level(candidate, len(stored), stored[0].level.size))
            if (stored[-1].channels, stored[-1].dtype) != (stored[0].channels, stored[0].dtype):
                raise Unreadable("has levels of different kinds of pixels; export it again")
    return tuple(stored)


def _is_level(series: TiffPageSeries, above: Size, base: StoredLevel) -> bool:
    """Smaller than the level above, and of the slide's shape (a label or macro is not)."""
    page, size = series.keyframe, base.level.size
    if not (0 < page.imagewidth <= above.width and 0 < page.imagelength <= above.height):
        return False
    if (page.imagewidth, page.imagelength) == above:
        return False
    expected = size.height * page.imagewidth / size.width
    return abs(page.imagelength - expected) <= max(2.0, 0.05 * expected)


def _stored_level(series: TiffPageSeries, index: int, base: Size | None) -> StoredLevel:
    page = series.keyframe
    channels = _channels(series)
    dtype, compression = _sample_format(page)
    size, tile, samples = _layout(page, dtype)
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    pages = _pages(series)
    planes = channels // len(pages) // samples
    if planes * samples * len(pages) != channels:
        raise Unreadable("stores its channels in a way that cannot be read; export it again")
    table = (len(pages) * planes, columns * rows)
    white = page.photometric in (_RGB, _YCBCR)
    return StoredLevel(
        PyramidLevel(index, size, _downsample(base or size, size), tile),
        columns,
        rows,
        _table([p.dataoffsets for p in pages], table),
        _table([p.databytecounts for p in pages], table),
        tuple(
            (decoder, k * columns * rows)
            for decoder in _decoders(page, pages, tile)
            for k in range(planes)
        ),
        samples,
        dtype,
        compression,
        int(np.iinfo(dtype).max) if white else 0,
    )


def _downsample(base: Size, size: Size) -> tuple[float, float]:
    return (
        snapped_downsample(base.width, size.width),
        snapped_downsample(base.height, size.height),
    )


def _channels(series: TiffPageSeries) -> int:
    """Samples per pixel; an image with any other axis is a stack."""
    page = series.keyframe
    axes = dict(zip(series.axes, series.shape, strict=True))
    size = (axes.pop("X", 0), axes.pop("Y", 0))
    if size != (page.imagewidth, page.imagelength) or page.imagedepth != 1:
        raise Unreadable(f"has the shape {series.shape} ({series.axes}), which is no plane image")
    extra = {axis: int(n) for axis, n in axes.items() if n > 1}
    if len(extra) > 1 or not extra.keys() <= {"C", "S"}:
        stack = ", ".join(f"{n} along {axis}" for axis, n in extra.items())
        raise Unlike(f"is a stack of images ({stack}); export the plane that is to be read")
    channels = next(iter(extra.values()), 1)
    if channels > _MAX_CHANNELS:
        raise Unlike(f"states {channels} channels, which no slide has; the file is damaged")
    return channels


def _sample_format(page: TiffPage) -> tuple[np.dtype[Any], str]:
    """The pixels' dtype and the compression in words."""
    compression = COMPRESSIONS.get(page.compression)
    if compression is None:
        name = next((c.name for c in COMPRESSION if c == page.compression), "an unknown scheme")
        raise Unreadable(
            f"is compressed with {name} ({int(page.compression)}), which is not supported; "
            "convert it to JPEG, Deflate or ZSTD"
        )
    formats = page.tags.valueof(339)
    mixed = isinstance(formats, tuple) and len({*formats[: page.samplesperpixel]}) > 1
    if page.dtype is None or mixed or page.dtype.name not in _DTYPES:
        found = "mixed or unknown" if mixed or page.dtype is None else page.dtype.name
        raise Unlike(f"has {found} samples; only uint8 and uint16 can be read: convert it")
    if page.bitspersample != 8 * page.dtype.itemsize:
        raise Unlike(f"has samples of {page.bitspersample} bits; convert it to 8 or 16 bits")
    codec = compression in _IMAGE_CODECS
    if page.photometric not in (*_GREY, _RGB, _CMYK, *([_YCBCR] if codec else [])):
        name = getattr(page.photometric, "name", str(page.photometric))
        raise Unreadable(f"has {compression}-compressed {name} pixels; convert it to RGB")
    if not codec and (page.predictor not in (1, 2) or page.is_subsampled):
        raise Unreadable("uses a predictor or subsampling that is not supported; export it again")
    return page.dtype.newbyteorder("="), compression


def _layout(page: TiffPage, dtype: np.dtype[Any]) -> tuple[Size, Size, int]:
    """The level's size, the size of its tiles, and samples per pixel in a tile."""
    size = Size(int(page.imagewidth), int(page.imagelength))
    tile = Size(size.width, int(page.rowsperstrip))
    if page.is_tiled:
        tile = Size(int(page.tilewidth), int(page.tilelength))
    samples = int(page.samplesperpixel) if page.planarconfig == 1 else 1
    if (page.is_tiled and page.tiledepth != 1) or min(*size, *tile, samples) < 1:
        raise Unreadable(f"states the size {size} in tiles of {tile}, which cannot be")
    if page.planarconfig not in (1, 2):
        raise Unreadable("does not say how its samples are laid out; the file is damaged")
    if max(size) > _MAX_SIDE:
        raise Unreadable(f"states the size {size}, which no slide has; the file is damaged")
    nbytes = tile.width * tile.height * samples * dtype.itemsize
    if nbytes > MAX_TILE_BYTES:
        what = "tiles" if page.is_tiled else "strips"
        raise Unreadable(
            f"has {what} of {tile} pixels, {nbytes} bytes each, above the limit of "
            f"{MAX_TILE_BYTES}; convert it to a tiled TIFF"
        )
    return size, tile, samples


def _pages(series: TiffPageSeries) -> list[TiffPage | TiffFrame]:
    pages = [page for page in series if page is not None]
    if len(pages) != len(series) or any(p.parent is not series.keyframe.parent for p in pages):
        raise Unlike("lacks some of its channels, or has them in other files")
    return pages


def _table(columns: list[Sequence[int]], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """One row per plane, from one sequence of numbers per page."""
    needed = shape[0] // len(columns) * shape[1]
    rows = []
    for values in columns:
        numbers = np.asarray(values)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) < needed:
            raise Unreadable(
                f"lists {numbers.size} tiles where it needs {needed}; "
                "its header is damaged: copy the slide again"
            )
        rows.append(numbers[:needed].clip(max=_MAX_OFFSET).astype(np.int64))
    return np.concatenate(rows).reshape(shape)


def _decoders(page: TiffPage, pages: list[TiffPage | TiffFrame], tile: Size) -> list[Decoder]:
    """One per page: JPEG tables belong to the page, all else to the first of them."""
    made: dict[bytes | None, Decoder] = {}
    for p in pages:
        tables = p.jpegtables
        if tables is not None and not holds_only_tables(tables):
            raise Unreadable("has damaged JPEG tables; copy the slide again")
        if tables not in made:
            made[tables] = decoder_for(page, tables, tile)
    return [made[p.jpegtables] for p in pages]
