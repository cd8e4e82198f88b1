"""Seams: cells that a panel has begun and the next one goes on with, in a file of their own.

A level that is walked in panels has, at each panel's right, cells that wait for the next panel:
as many as the level is high. They would not stay within any memory limit, so they go to a
sparse file beside the output, band by band, not yet divided. It is fsynced before the record
says that its rows are durable, read again by the next panel, and removed when that one is
complete.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CannotWrite
from .durable import sync_folders

__all__ = ["Seam", "remove_seams"]


def remove_seams(output: Path) -> None:
    """Remove all that an output has; nothing happens where there are none."""
    found = [*output.parent.glob(f".{_escaped(output.name)}.seam-*")]
    for path in found:
        path.unlink()
    if found:
        sync_folders([output.parent])


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


class Seam:
    """The file of one border between two panels.

    Args:
        output: what it belongs to.
        number: of the panel that goes on with it.
        band_bytes: bytes of a band.
        bands: how many there are.
    """

    def __init__(self, output: Path, number: int, band_bytes: int, bands: int) -> None:
        self.path = output.with_name(f".{output.name}.seam-{number}")
        self._band_bytes = band_bytes
        self._nbytes = band_bytes * bands
        self._fd = -1

    def create(self) -> None:
        """Make it empty: all bands are zeros."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o666)
        os.ftruncate(self._fd, self._nbytes)
        sync_folders([self.path.parent])

    def open(self) -> None:
        """Go on with what an earlier run has left.

        Raises:
            CannotWrite: it is not there.
        """
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            whole = os.fstat(self._fd).st_size == self._nbytes
        except FileNotFoundError:
            whole = False
        if not whole:
            raise CannotWrite(
                f"{self.path}, which holds values that are not final yet, is missing or damaged; "
                "--overwrite starts afresh"
            )

    def write(self, band: int, data: bytes) -> None:
        """Put a band."""
        view, at = memoryview(data), band * self._band_bytes
        while view:
            n = os.pwrite(self._fd, view, at)
            view, at = view[n:], at + n

    def read(self, band: int, nbytes: int) -> bytes:
        """A band, or the rows of it that there are.

        Raises:
            CannotWrite: the file has been cut.
        """
        data, at = bytearray(), band * self._band_bytes
        while len(data) < nbytes:
            part = os.pread(self._fd, nbytes - len(data), at + len(data))
            if not part:
                raise CannotWrite(f"{self.path} has lost values; --overwrite starts afresh")
            data += part
        return bytes(data)

    def sync(self) -> None:
        """Make all that was put durable."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
