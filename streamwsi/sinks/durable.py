"""Files that survive: atomic replacement, durable directory entries, a lock that dies with its
process.

A file is durable once its bytes were fsynced, and once the directory that names it was. A
replacement is written beside its target, fsynced and then renamed over it, so that at every
instant, a power cut included, the name stands for the whole old or the whole new content.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

__all__ = ["Lock", "make_folders", "replace_file", "sync_folders", "write_json"]


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the directory entries of some folders durable."""
    for folder in folders:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network file systems cannot do it, and do not need it.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


def make_folders(folder: Path, root: Path | None = None) -> list[Path]:
    """Make a folder and the missing ones above it; those at or above `root` must exist.

    Returns:
        The folders that have new entries, to be synced.
    """
    missing = []
    while not folder.is_dir():
        if folder == root:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError as error:
            if not path.is_dir():  # otherwise another thread was faster
                code = errno.ENOTDIR
                raise NotADirectoryError(code, os.strerror(code), str(path)) from error
    return [path.parent for path in missing]


def replace_file(path: Path, data: bytes | memoryview, temporary: Path) -> None:
    """Put `data` at `path` atomically; the entry is durable once the folder is synced."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o666), "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Put a JSON document at `path`, atomically and durably; the same document, the same bytes."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
    replace_file(path, text.encode() + b"\n", path.with_name(f".{path.name}.partial"))
    sync_folders([path.parent])


class Lock:
    """An exclusive claim on an output, held by this process until `release` or its end.

    Args:
        path: the lock file, beside the output.
        output: what is claimed, for the message.

    Raises:
        ConfigError: somebody else holds it.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._fd = os.open(path, flags, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current():
                    return
            except BlockingIOError:
                os.close(self._fd)
                raise ConfigError(
                    f"{output} is being written by another run; wait until it has ended, or "
                    "choose another folder"
                ) from None
            except BaseException:
                os.close(self._fd)
                raise
            # Its last holder removed the file between our open and our lock.
            os.close(self._fd)

    def _is_current(self) -> bool:
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._fd))

    def release(self) -> None:
        """Give the claim up and remove the lock file."""
        try:
            if self._is_current():
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)
