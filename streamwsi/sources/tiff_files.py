"""A slide's file as positional reads: opened once, read from any thread, closed when forgotten.

`os.pread` has no position to share, so that one descriptor serves concurrent readers; the
descriptor is closed when the last of them lets go of the object, never under a reader.
This module imports nothing heavy: `has_tiff_magic` runs in the parent process.
"""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from pathlib import Path

from ..errors import CannotOpen

__all__ = ["SlideFile", "has_tiff_magic", "signature"]

_CLASSIC = (b"II*\0", b"MM\0*")
_BIG = (b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")

_END_BYTES = 64 * 1024
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def has_tiff_magic(head: bytes) -> bool:
    """Whether these are the first bytes (8 are enough) of a classic TIFF or a BigTIFF."""
    return head.startswith(_CLASSIC) or head.startswith(_BIG)


def signature(uri: str) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written to: device, inode, size, time in ns.

    Raises:
        OSError: the file is not there.
    """
    status = Path(uri).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class SlideFile:
    """A regular file, open for reading.

    Attributes:
        uri: its path.
        size: in bytes, when it was opened.
        signature: see `signature`.

    Raises:
        CannotOpen: there is no such file, it is empty, not a regular file, or not readable.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            # A FIFO would block the open; so look before.
            mode = Path(uri).stat().st_mode
            if stat.S_ISDIR(mode):
                raise CannotOpen(f"{uri}: is a folder, not a TIFF file; name a file")
            if not stat.S_ISREG(mode):
                raise CannotOpen(f"{uri}: is not a regular file; copy the slide to a disk first")
            self._fd = os.open(uri, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise CannotOpen(f"{uri}: there is no such file; check the path") from error
        except PermissionError as error:
            raise CannotOpen(f"{uri}: may not be read; check the file's permissions") from error
        except (OSError, ValueError) as error:
            raise CannotOpen(f"{uri}: cannot be opened ({error}); check the path") from error
        weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        self.size = status.st_size
        self.signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self.size == 0:
            raise CannotOpen(f"{uri}: is empty; copy the slide again")

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer where the file ends.

        Raises:
            OSError: the disk or the network failed.
        """
        data = os.pread(self._fd, count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]
        while data and (missing := count - sum(map(len, parts))):
            data = os.pread(self._fd, missing, offset + count - missing)
            parts.append(data)
        return b"".join(parts)

    def identity(self, *tables: bytes) -> str:
        """32 hex digits that tell slides apart without reading them whole.

        SHA-256 over the size, the first and last 64 KiB, 64 samples of 4 KiB spread evenly, and
        `tables`: parts of the file that were read anyway and matter as a whole.
        """
        digest = hashlib.sha256(str(self.size).encode())
        digest.update(self.read(0, _END_BYTES))
        digest.update(self.read(max(0, self.size - _END_BYTES), _END_BYTES))
        for i in range(_SAMPLES):
            digest.update(self.read(self.size * i // _SAMPLES, _SAMPLE_BYTES))
        for table in tables:
            digest.update(table)
        return digest.hexdigest()[:32]
