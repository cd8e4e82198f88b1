"""JPEG tiles decoded strictly: what libjpeg warns of is damage.

Inside a scan libjpeg meets codes that do not exist, too few or too many data, or a restart marker
out of turn; it warns, invents the pixels and goes on. imagecodecs drops the warnings, TurboJPEG
(by way of simplejpeg) tells them, decodes to the same pixels and takes no longer. It has no
parameter for the tables that tiles share or for the colour space, so that both are written into
the stream, as the abbreviated format (ITU-T T.81 annex B) and Adobe's APP14 marker provide.

Bytes that were changed and are a valid stream again cannot be told from a picture by any decoder;
of eight random bytes in the scan of a 256×240 tile, that is about every second case.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from .tiff_codestreams import TileError, table_segments

__all__ = ["StrictJpeg"]

_SOI = b"\xff\xd8"
_APP14_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"

#: How libjpeg's warnings of damage begin; others (an odd version number) are no damage.
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")


class StrictJpeg:
    """A decoder for tiles of three 8-bit components.

    Args:
        tables: JPEG tables that the tiles share.
        rgb: whether the components are red, green and blue, whatever libjpeg would guess.
    """

    def __init__(self, tables: bytes | None, *, rgb: bool) -> None:
        self._rgb = rgb
        self._head = b"".join((_SOI, _APP14_RGB if rgb else b"", *table_segments(tables or b"")))

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> bool:
        """Whether `data` have been decoded into `out`, uint8 RGB ``(height, width, 3)``.

        False is for what TurboJPEG does not support; another decoder may.

        Raises:
            TileError: the data are damaged.
        """
        if self._rgb and (b"JFIF" in data or b"Adobe" in data):
            return False  # markers that would outweigh ours
        try:
            stream = b"".join((self._head, memoryview(data)[2:]))
            simplejpeg.decode_jpeg(stream, "RGB", buffer=out)
        except ValueError as error:
            if str(error).startswith(_DAMAGE):
                raise TileError(f"its JPEG data are damaged ({error})") from error
            return False
        return True
