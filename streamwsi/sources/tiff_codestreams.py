"""JPEG and JPEG 2000 data, looked at before a decoder may see them.

Decoders believe the size that the data state, whatever the TIFF says: a tile of a few bytes
could make them allocate gigabytes. And libjpeg paints what is missing of a short tile grey,
without an error that imagecodecs would report. So the markers are walked here: sizes are known
before anything is decoded, and data without their end marker are known to be cut.

Sources: ITU-T T.81 annex B (JPEG markers), ITU-T T.800 annexes A and I (JPEG 2000).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = [
    "Frame",
    "JpegFrames",
    "TileError",
    "holds_only_tables",
    "jpeg2000_frame",
    "table_segments",
]

_MAX_SCANS = 256
_MAX_PARTS = 4096

# A marker in entropy-coded data: 0xFF that is neither stuffed, a restart, nor fill.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_DHT, _DQT = 0xC4, 0xDB
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_END = b"\xff\xd9"
_RST = range(0xD0, 0xD8)
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_SIZ, _COD, _SOT = 0xFF51, 0xFF52, 0xFF90
_EOC = b"\xff\xd9"


class TileError(Exception):
    """A tile that cannot be had; the message is the reason, as a clause."""


class Frame(NamedTuple):
    """What image data state about themselves.

    Attributes:
        height, width: in pixels.
        components: samples per pixel.
        mixed: JPEG 2000 only: whether decoding itself turns the components into RGB.
        subsampled: JPEG 2000 only: whether the components differ in size.
    """

    height: int
    width: int
    components: int
    mixed: bool = False
    subsampled: bool = False


class JpegFrames:
    """The frames of JPEG streams that are complete: their markers lead to their end markers.

    Tiles of a level begin alike: such a beginning is walked once, and then compared.
    """

    def __init__(self) -> None:
        self._head = b""
        self._frame: Frame | None = None

    def of(self, data: bytes) -> Frame:
        """The frame of a stream.

        Raises:
            TileError: it is no JPEG, or cut short, or damaged where the markers show it.
        """
        if self._frame is not None and data.startswith(self._head):
            found = _MARKER.search(data, len(self._head))
            if found is not None and found.group() == _END:
                return self._frame
        frame, scan = _walked(data)
        self._head, self._frame = data[:scan], frame
        return frame


def _walked(data: bytes) -> tuple[Frame, int]:
    """The frame, and where the first scan's data begin."""
    if data[:2] != b"\xff\xd8":
        raise TileError("its data are not JPEG")
    frame, scans, first, at = None, 0, 0, 2
    try:
        while True:
            marker, at = _next_marker(data, at)
            if marker == _EOI:
                break
            if marker == _TEM or marker in _RST:
                continue
            start, at = at + 2, at + _segment(data, at)
            if marker in _SOF:
                if frame is not None:
                    raise TileError("its JPEG data hold two images")
                frame = Frame(
                    int.from_bytes(data[start + 1 : start + 3], "big"),
                    int.from_bytes(data[start + 3 : start + 5], "big"),
                    data[start + 5],
                )
            elif marker == _SOS:
                scans += 1
                first = first or at
                found = _MARKER.search(data, at)
                if found is None or scans > _MAX_SCANS:
                    raise TileError("its JPEG data end early")
                at = found.start()
    except IndexError:
        raise TileError("its JPEG data end early") from None
    if frame is None or not scans:
        raise TileError("its JPEG data hold no image")
    return frame, first


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at that place, and the place behind it."""
    if data[at] != 0xFF:
        raise TileError("its JPEG data are damaged")
    while data[at] == 0xFF:
        at += 1
    return data[at], at + 1


def _segment(data: bytes, at: int) -> int:
    """Bytes of the segment whose length field is at that place, the field included."""
    length = data[at] << 8 | data[at + 1]
    if length < 2:
        raise TileError("its JPEG data are damaged")
    return length


def holds_only_tables(data: bytes) -> bool:
    """Whether abbreviated JPEG data (a JPEGTables tag) hold tables and no image."""
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    try:
        while at < len(data):
            marker, at = _next_marker(data, at)
            if marker == _EOI:
                return True
            if marker in _SOF or marker in (_SOI, _SOS):
                return False
            at += _segment(data, at)
    except (IndexError, TileError):
        return False
    return True


def table_segments(data: bytes) -> Iterator[bytes]:
    """The quantisation and Huffman tables of a JPEGTables tag, each a whole segment.

    Nothing else in abbreviated data outlives the SOI of a tile. Empty data give none.
    """
    at = 2
    while at < len(data):
        marker, begin = _next_marker(data, at)
        if marker == _EOI:
            return
        at = begin + _segment(data, begin)
        if marker in (_DQT, _DHT):
            yield b"".join((bytes((0xFF, marker)), data[begin:at]))


def jpeg2000_frame(data: bytes) -> Frame:
    """The frame of a complete JPEG 2000 codestream, bare or in a JP2 file.

    Raises:
        TileError: it is no JPEG 2000, or cut short, or its header is damaged.
    """
    stream = data[_codestream(data) :]
    if not stream.startswith(_CODESTREAM):
        raise TileError("its data are not JPEG 2000")
    frame, at = None, 2
    while len(stream) >= at + 4:
        marker = int.from_bytes(stream[at : at + 2], "big")
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        body = stream[at + 4 : at + 2 + length]
        if marker == _SIZ:
            frame = _size(body)
        elif marker == _COD and frame is not None and len(body) > 4:
            frame = frame._replace(mixed=body[4] != 0)
        elif marker == _SOT and frame is not None:
            # Packets cannot hold the end marker: behind 0xFF they have at most 0x8F.
            if stream.rfind(_EOC) < at:
                raise TileError("its JPEG 2000 data end early")
            return frame
        if length < 2:
            break
        at += 2 + length
    raise TileError("its JPEG 2000 header is damaged")


def _codestream(data: bytes) -> int:
    """Where the codestream begins: at once, or in the jp2c box."""
    if not data.startswith(_JP2):
        return 0
    at = 0
    while at + 16 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if data[at + 4 : at + 8] == b"jp2c":
            return at + head
        if length < head:
            break
        at += length
    raise TileError("its JPEG 2000 data hold no image")


def _size(body: bytes) -> Frame:
    """The SIZ segment: extent, tiles of the codestream, components."""
    if len(body) < 36:
        raise TileError("its JPEG 2000 header is damaged")
    right, bottom, x, y, tile_w, tile_h = (
        int.from_bytes(body[i : i + 4], "big") for i in range(2, 26, 4)
    )
    components = int.from_bytes(body[34:36], "big")
    parts = body[36 : 36 + 3 * components]
    if not (right > x and bottom > y and tile_w and tile_h and len(parts) == 3 * components):
        raise TileError("its JPEG 2000 header is damaged")
    if -(-(right - x) // tile_w) * -(-(bottom - y) // tile_h) > _MAX_PARTS:
        raise TileError("its JPEG 2000 data are cut into too many parts")
    steps = {parts[i + 1 : i + 3] for i in range(0, len(parts), 3)}
    return Frame(bottom - y, right - x, components, subsampled=len(steps) > 1)
