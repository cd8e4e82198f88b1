"""JSON documents on the disk that may be anybody's: read without waiting, and up to a limit."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_json", "zarr_attributes"]

#: A state document is some kilobytes; a stranger's file of that name may be anything.
_MAX_JSON_BYTES = 16 << 20


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none (not JSON, not an object, a symlink)."""
    try:
        with open(path, "rb", opener=_open_plainly) as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        document = json.loads(data) if len(data) <= _MAX_JSON_BYTES else None
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    return document if isinstance(document, dict) else None


def zarr_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of the zarr v3 group or array in a folder; none where there is none."""
    attributes = (read_json(folder / "zarr.json") or {}).get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _open_plainly(path: str, flags: int) -> int:
    """Follow no link, and do not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
