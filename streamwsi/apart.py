"""Outputs lie apart from the slide: what is read is never written over, or into."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError

__all__ = ["check_apart"]


def check_apart(slide: str | Path, output: str | Path) -> None:
    """Refuse an output that would take the place of the slide, or lie in it, or around it.

    Raises:
        ConfigError: it would.
    """
    if not os.path.lexists(slide):
        return
    read, written = Path(os.path.realpath(slide)), Path(os.path.realpath(output))
    if read == written or read in written.parents or written in read.parents:
        raise ConfigError(
            f"{slide}: the output {output} would be written over this slide, or into it; choose "
            "another output folder"
        )
