"""Outputs lie apart from what they are made of: what is read is never written over, or into."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError

__all__ = ["check_apart"]


def check_apart(source: str | Path, output: str | Path) -> None:
    """Refuse an output that would take the place of its source, or lie in it, or around it.

    Raises:
        ConfigError: it would.
    """
    if not os.path.lexists(source):
        return
    read, written = Path(os.path.realpath(source)), Path(os.path.realpath(output))
    if read == written or read in written.parents or written in read.parents:
        raise ConfigError(
            f"{source}: the output {output} would be written over it, or into it; choose another "
            "output folder"
        )
