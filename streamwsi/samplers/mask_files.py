"""FileMask: a mask that somebody drew or computed, from a file.

A PNG or TIFF picture of any size covers the slide from edge to edge, and what is not black
(nor transparent) counts; GeoJSON holds outlines (`streamwsi.samplers.outlines`).

The file comes from a stranger: its header is looked at before anything is allocated for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..stages import SlideReader
from .masks import ArrayMask, Mask
from .outlines import read_outlines

__all__ = ["FileMask"]

_MOST_BYTES = 256 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class FileMask:
    """A mask from a PNG, TIFF or GeoJSON file; GeoJSON needs ``streamwsi[tissue]``.

    Attributes:
        path: the file; its extension tells what it is.
    """

    path: str | Path

    async def prepare(self, reader: SlideReader, memory: int) -> Mask:
        """See `MaskSource`."""
        return await anyio.to_thread.run_sync(self.read)

    def read(self) -> Mask:
        """The mask.

        Raises:
            ConfigError: the file cannot be used as a mask.
        """
        path = Path(self.path)
        kind = path.suffix.lower()
        try:
            if kind in (".geojson", ".json"):
                return read_outlines(path)
            if kind == ".png":
                return ArrayMask(_png(path), f"mask {path.name}", {"kind": "picture"})
            if kind in (".tif", ".tiff"):
                return ArrayMask(_tiff(path), f"mask {path.name}", {"kind": "picture"})
        except ConfigError:
            raise
        except OSError as error:
            raise ConfigError(f"the mask {path} cannot be read: {error.strerror}") from error
        except Exception as error:
            raise ConfigError(f"the mask {path} cannot be read: {error}") from error
        raise ConfigError(f"the mask {path} is none of .png, .tif, .tiff and .geojson")


def _png(path: Path) -> npt.NDArray[np.bool_]:
    import imagecodecs

    data = path.read_bytes()
    if len(data) < 33 or not data.startswith(_PNG) or data[12:16] != b"IHDR":
        raise ConfigError(f"the mask {path} is not a PNG file")
    width, height, depth = struct.unpack(">IIB", data[16:25])
    # Palettes become four channels.
    _check(path, width, height, 4 * max(1, depth // 8))
    return _filled(imagecodecs.png_decode(data))


def _tiff(path: Path) -> npt.NDArray[np.bool_]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        height, width = page.imagelength, page.imagewidth
        _check(path, width, height, page.samplesperpixel * max(1, page.bitspersample // 8))
        pixels = page.asarray(maxworkers=1)
        return _filled(np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels)


def _check(path: Path, width: int, height: int, pixel: int) -> None:
    if width * height * pixel > _MOST_BYTES:
        raise ConfigError(
            f"the mask {path} is {width}×{height} pixels large, and at most "
            f"{_MOST_BYTES // pixel // 10**6} million are read; save it at a smaller size"
        )


def _filled(pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    alpha = pixels.shape[2] in (2, 4)
    filled: npt.NDArray[np.bool_] = (pixels[:, :, : pixels.shape[2] - alpha] != 0).any(axis=2)
    return filled & np.not_equal(pixels[:, :, -1], 0) if alpha else filled
