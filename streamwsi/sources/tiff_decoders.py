"""From the bytes of one compressed tile to its pixels, the way tifffile decodes them.

tifffile knows how colour spaces, predictors, byte orders and bit orders go together; its
decoding functions hold no handle and serve as they are. Two cases go past them:

* JPEG of RGB or YCbCr, which is most slides: `tiff_jpeg` decodes it strictly, for libjpeg warns of
  damage and goes on. What that refuses without such a warning goes to imagecodecs, with tifffile's
  arguments. Both decode into memory that is used again; that saves a third of the time, most of
  it page faults.
* JPEG 2000: chroma may be subsampled, which tifffile refuses and the codec can do. Aperio's
  33003 holds YCbCr that the codec takes for RGB (its colour transform is not declared), so that
  it is converted here, as libjpeg would.

A decoder is called with the bytes, the tile's index in its page, and the size of the part that
lies in the level; it returns an array ``(rows, columns, samples)`` that has at least that part,
to be used before the same thread decodes again. Whatever goes wrong is a `TileError`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from tifffile import TiffPage

from ..geometry import Size
from .tiff_codestreams import Frame, JpegFrames, TileError, jpeg2000_frame
from .tiff_jpeg import StrictJpeg

__all__ = ["COMPRESSIONS", "Decoder", "decoder_for"]

Pixels = npt.NDArray[Any]
Decoder = Callable[[bytes, int, Size], Pixels]

_JPEG = 7
_JPEG2000 = frozenset({33003, 33004, 33005, 34712})
_APERIO_YCBCR = 33003
_RGB, _YCBCR = 2, 6

COMPRESSIONS = {
    1: "none",
    5: "LZW",
    _JPEG: "JPEG",
    8: "Deflate",
    32946: "Deflate",
    32773: "PackBits",
    **dict.fromkeys(_JPEG2000, "JPEG 2000"),
    34925: "LZMA",
    34926: "ZSTD",
    50000: "ZSTD",
}
"""TIFF compression numbers that can be read, in words."""

_SCRATCH_BYTES = 4 * 2**20
_scratch = threading.local()


def decoder_for(page: TiffPage, tables: bytes | None, tile: Size) -> Decoder:
    """A decoder for the tiles of a page whose compression is one of `COMPRESSIONS`.

    Args:
        page: where the layout comes from; its file must still be open.
        tables: JPEG tables that the tiles share.
        tile: size of a tile.
    """
    if page.compression == _JPEG:
        return _jpeg_decoder(page, tables, tile)
    if page.compression in _JPEG2000:
        return _jpeg2000_decoder(page, tile)
    decode: Callable[..., Any] = page.decode

    def plain(data: bytes, index: int, visible: Size) -> Pixels:
        return _guarded(lambda: decode(data, index)[0][0])

    return plain


def _guarded(decode: Callable[[], Any]) -> Pixels:
    """The result of a foreign decoder; whatever it raises is the tile's fault."""
    try:
        pixels: Pixels = decode()
        return pixels
    except Exception as error:
        text = " ".join(str(error).split())[:120]
        raise TileError(f"it cannot be decoded ({text or type(error).__name__})") from error


def _expect(frame: Frame, tile: Size, visible: Size, samples: int) -> None:
    """Encoders cut the last tiles of a row or column, or they do not."""
    if frame.components != samples:
        raise TileError(f"its data have {frame.components} components instead of {samples}")
    if frame.width not in (tile.width, visible.width) or frame.height not in (
        tile.height,
        visible.height,
    ):
        raise TileError(f"its data state the size {frame.width}×{frame.height} instead of {tile}")


def _jpeg_decoder(page: TiffPage, tables: bytes | None, tile: Size) -> Decoder:
    decode: Callable[..., Any] = page.decode
    header = page.jpegheader
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    fast = (
        samples == 3
        and page.photometric in (_RGB, _YCBCR)
        and not page.extrasamples
        and page.dtype == np.uint8
    )
    # RGB without a JFIF header is RGB; libjpeg would guess YCbCr.
    stored = _RGB if page.photometric == _RGB and not page.is_jfif else None
    strict = StrictJpeg(tables, rgb=stored == _RGB)
    frames = JpegFrames()

    def jpeg(data: bytes, index: int, visible: Size) -> Pixels:
        if header is not None:
            data = _whole(header, data)
        frame = frames.of(data)
        _expect(frame, tile, visible, samples)
        if fast:
            out = _reused((frame.height, frame.width, samples))
            if strict.decode(data, out):
                return out
            # Where it fails (lossless JPEG, say), tifffile's function knows a second decoder.
            with contextlib.suppress(Exception):
                imagecodecs.jpeg8_decode(
                    data, tables=tables, colorspace=stored, outcolorspace=_RGB, out=out
                )
                return out
        return _guarded(lambda: decode(data, index, jpegtables=tables)[0][0])

    return jpeg


def _whole(header: bytes, data: bytes) -> bytes:
    """A tile of an NDPI: the stretch between two restart markers of one giant JPEG."""
    restart = len(data) > 1 and data[-2] == 0xFF and 0xD0 <= data[-1] <= 0xD7
    return b"".join((header, data, b"\xff\xd9" if restart else b""))


def _reused(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Memory of the thread: fresh pages would cost as much as a third of decoding."""
    size = shape[0] * shape[1] * shape[2]
    if size > _SCRATCH_BYTES:
        return np.empty(shape, np.uint8)
    flat: npt.NDArray[np.uint8] | None = getattr(_scratch, "flat", None)
    if flat is None or len(flat) < size:
        flat = _scratch.flat = np.empty(size, np.uint8)
    return flat[:size].reshape(shape)


def _jpeg2000_decoder(page: TiffPage, tile: Size) -> Decoder:
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    ycbcr = page.compression == _APERIO_YCBCR or page.photometric == _YCBCR
    convert = ycbcr and samples == 3 and page.dtype == np.uint8

    def jpeg2000(data: bytes, index: int, visible: Size) -> Pixels:
        frame = jpeg2000_frame(data)
        _expect(frame, tile, visible, samples)
        pixels = _guarded(lambda: imagecodecs.jpeg2k_decode(data))
        if pixels.shape[:2] != (frame.height, frame.width) or pixels.size % samples:
            raise TileError("its JPEG 2000 data have another size than they state")
        pixels = pixels.reshape(frame.height, frame.width, samples)
        # Subsampled components are upsampled and converted by the codec.
        if convert and not frame.mixed and not frame.subsampled:
            return _rgb(pixels)
        return pixels

    return jpeg2000


def _rgb(ycbcr: Pixels) -> Pixels:
    """JFIF's YCbCr to RGB, in the 16-bit fixed-point arithmetic of libjpeg."""
    y, cb, cr = (ycbcr[..., i].astype(np.int32) for i in range(3))
    cb -= 128
    cr -= 128
    half = 1 << 15
    rgb = np.empty(ycbcr.shape, np.int32)
    rgb[..., 0] = y + ((91881 * cr + half) >> 16)
    rgb[..., 1] = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    rgb[..., 2] = y + ((116130 * cb + half) >> 16)
    return rgb.clip(0, 255).astype(np.uint8)
