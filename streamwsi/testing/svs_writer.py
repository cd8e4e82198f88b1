"""Pyramidal files in the manner of Aperio's SVS, written as a stream.

Level 0 is asked for tile by tile from a function, encoded, and handed to tifffile; nothing is
held but the rows of tiles in the making. While level 0 is written, each of its tiles is
averaged into the level below, whose rows of tiles are encoded as soon as they are full, and so
on down. A TIFF holds its pages one behind the other, so the lower levels wait, encoded, in
temporary files.

The order of the pages is Aperio's: level 0, a thumbnail in strips, the lower levels. What
readers look for in the headers are the words "Aperio Image Library" and the fields AppMag and
MPP (OpenSlide: "Aperio format", https://openslide.org/formats/aperio/).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from ..errors import ConfigError
from ..geometry import Box, Size

__all__ = ["area_averaged", "write_svs"]

_Picture = npt.NDArray[np.uint8]
_PADDING = 243  # beyond the slide: as bright as glass
_THUMBNAIL = 1024  # longest edge, in pixels


def write_svs(
    path: str | Path,
    size: Size,
    paint: Callable[[Box], _Picture],
    *,
    tile: int = 256,
    levels: int = 3,
    factor: int = 4,
    mpp: float = 0.25,
    power: float = 40,
    quality: int = 80,
) -> None:
    """Write a slide whose pixels a function gives.

    A file that exists is replaced once the new one is whole.

    Args:
        path: the file, customarily ``*.svs``.
        size: of level 0, in pixels.
        paint: gives the pixels of a box of level 0, ``(height, width, 3)`` uint8 RGB. It is
            asked for whole tiles from left to right and from top to bottom, also where they
            reach beyond the slide.
        tile: edge of the square tiles, in pixels; a multiple of 16 and of `factor`.
        levels: how many; each is the one before divided by `factor`, rounded down.
        factor: between one level and the next.
        mpp: µm per pixel of level 0.
        power: the objective's magnification, for the header.
        quality: of the JPEG tiles, 1 … 100.

    Raises:
        ConfigError: the arguments do not fit each other; nothing was written.
    """
    path = Path(path)
    sizes = _level_sizes(size, tile, levels, factor)
    partial = path.with_name(path.name + ".partial")
    try:
        with ExitStack() as stack:
            lower: list[_Level] = []
            for above, level_size in reversed(list(pairwise(sizes))):
                spool = stack.enter_context(TemporaryFile(dir=path.parent))
                below = lower[0] if lower else None
                cells = _cells(above, tile)
                lower.insert(0, _Level(level_size, tile, quality, factor, cells, spool, below))
            base = _Base(size, tile, quality, paint, lower[0] if lower else None)
            # Offsets of 32 bits reach 4 GiB: at most 1 byte a pixel, with room to spare.
            bigtiff = size.width * size.height > 2**31
            with tifffile.TiffWriter(partial, bigtiff=bigtiff) as tiff:
                fields = f"|AppMag = {power:g}|MPP = {mpp:.4f}|ScanScope ID = SYNTHETIC"
                _write_pages(tiff, base, lower, fields)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def area_averaged(picture: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """The means of squares of pixels: ``(h, w, c)`` to ``(h // factor, w // factor, c)``.

    What is left at the right and below is dropped, the dtype stays, and means of integers are
    rounded half up.
    """
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    whole = picture[: height * factor, : width * factor]
    integers = picture.dtype.kind in "iu"
    wide = np.uint32 if picture.dtype == np.uint8 else np.int64 if integers else np.float64
    # Sums of strided slices: three times as fast as a sum over an axis of a reshaped array.
    rows: npt.NDArray[Any] = whole[::factor].astype(wide)
    for k in range(1, factor):
        np.add(rows, whole[k::factor], out=rows)
    total = rows[:, ::factor].copy()
    for k in range(1, factor):
        np.add(total, rows[:, k::factor], out=total)
    mean = (total + factor**2 // 2) // factor**2 if integers else np.divide(total, factor**2)
    return mean.astype(picture.dtype)


def _level_sizes(size: Size, tile: int, levels: int, factor: int) -> list[Size]:
    if tile < 16 or tile % 16 or factor < 2 or tile % factor:
        raise ConfigError(
            f"tiles of {tile} pixels and levels {factor} times apart do not fit: the tile must "
            "be a multiple of 16 and of the factor, and the factor at least 2"
        )
    sizes = [Size(size.width // factor**k, size.height // factor**k) for k in range(levels)]
    if not sizes or min(sizes[-1]) < 1:
        raise ConfigError(
            f"a slide of {size} pixels cannot have {levels} levels {factor} times apart"
        )
    return sizes


def _write_pages(tiff: tifffile.TiffWriter, base: _Base, lower: list[_Level], fields: str) -> None:
    size, tile, quality = base.size, base.tile, base.quality
    options: dict[str, Any] = {
        "dtype": np.uint8,
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "subsampling": (2, 2),
        "metadata": None,
        "software": False,
    }
    origin = f"Aperio Image Library v12.0.15 \r\n{size.width}x{size.height}"
    whole = f"{origin} [0,0 {size.width}x{size.height}] ({tile}x{tile})"
    coding = f"JPEG/YCC Q={quality}"

    def write_tiles(level: _Base | _Level, description: str) -> None:
        shape = (level.size.height, level.size.width, 3)
        tiles = level.tiles()
        tiff.write(tiles, shape=shape, tile=(tile, tile), description=description, **options)

    write_tiles(base, f"{whole} {coding}{fields}")
    height, width = base.thumbnail.shape[:2]
    note = f"{origin} -> {width}x{height} - {fields}"
    tiff.write(base.thumbnail, rowsperstrip=16, description=note, **options)
    for level in lower:
        write_tiles(level, f"{whole} -> {level.size.width}x{level.size.height} {coding}{fields}")


def _encoded(pixels: _Picture, quality: int) -> bytes:
    """One tile as a JPEG stream of its own."""
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(pixels),
            level=quality,
            colorspace="RGB",
            outcolorspace="YCBCR",
            subsampling="420",
        )
    )


@dataclass(slots=True, eq=False)
class _Base:
    """Level 0: painted when asked for, and averaged into the rest."""

    size: Size
    tile: int
    quality: int
    paint: Callable[[Box], _Picture]
    below: _Level | None
    thumbnail: _Picture = field(init=False)

    def tiles(self) -> Iterator[bytes]:
        """The encoded tiles in the file's order; the thumbnail and `below` grow as they go."""
        tile, cells = self.tile, _cells(self.size, self.tile)
        shrink = _thumbnail_factor(self.size, tile)
        small = tile // shrink
        canvas = np.empty((cells.height * small, cells.width * small, 3), np.uint8)
        self.thumbnail = canvas[
            : max(1, self.size.height // shrink), : max(1, self.size.width // shrink)
        ]
        for row in range(cells.height):
            for column in range(cells.width):
                pixels = self.paint(Box(column * tile, row * tile, tile, tile))
                y, x = row * small, column * small
                canvas[y : y + small, x : x + small] = area_averaged(pixels, shrink)
                if self.below:
                    self.below.put(column, row, pixels)
                yield _encoded(pixels, self.quality)


@dataclass(slots=True, eq=False)
class _Level:
    """A lower level: one row of its tiles as pixels, those before it encoded, in a file.

    Attributes:
        above: how many tiles the level above has, across and down.
    """

    size: Size
    tile: int
    quality: int
    factor: int
    above: Size
    spool: IO[bytes]
    below: _Level | None
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    pixels: _Picture = field(init=False)

    def __post_init__(self) -> None:
        columns = -(-self.above.width // self.factor)
        self.pixels = np.full((self.tile, columns * self.tile, 3), _PADDING, np.uint8)

    def put(self, column: int, row: int, pixels: _Picture) -> None:
        """Take a tile of the level above; they come in that level's order."""
        edge = self.tile // self.factor
        y, x = row % self.factor * edge, column * edge
        self.pixels[y : y + edge, x : x + edge] = area_averaged(pixels, self.factor)
        full = row % self.factor == self.factor - 1 or row == self.above.height - 1
        if full and column == self.above.width - 1:
            self._finish_row(row // self.factor)

    def _finish_row(self, row: int) -> None:
        cells = _cells(self.size, self.tile)
        for column in range(cells.width if row < cells.height else 0):
            tile = self.pixels[:, column * self.tile : (column + 1) * self.tile]
            if self.below:
                self.below.put(column, row, tile)
            data = _encoded(tile, self.quality)
            self.spool.write(data)
            self.lengths.append(len(data))
        self.pixels[:] = _PADDING

    def tiles(self) -> Iterator[bytes]:
        """The encoded tiles in the file's order, once all of them are there."""
        self.spool.seek(0)
        for length in self.lengths:
            yield self.spool.read(length)


def _cells(size: Size, tile: int) -> Size:
    """How many tiles a level has across and down."""
    return Size(-(-size.width // tile), -(-size.height // tile))


def _thumbnail_factor(size: Size, tile: int) -> int:
    """The smallest reduction of a tile to whole pixels that makes the thumbnail fit."""
    fits = (k for k in range(1, tile) if tile % k == 0 and max(size) <= _THUMBNAIL * k)
    return next(fits, tile)
