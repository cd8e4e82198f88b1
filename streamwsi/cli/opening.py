"""The sources that the command line tries: TIFF, OME-Zarr, then every installed plugin."""

from __future__ import annotations

import sys

from streamwsi import plugins
from streamwsi.errors import StageLoadError
from streamwsi.sources.first_of import FirstOf
from streamwsi.stages import Source

__all__ = ["any_source"]

_FIRST = ("tiff", "zarr")


def any_source() -> FirstOf:
    """All installed sources, the built-in ones first; a broken plugin is named and left out."""
    names = {stage.name for stage in plugins.installed("source")}
    found: list[Source] = []
    for name in [*_FIRST, *sorted(names - set(_FIRST))]:
        try:
            found.append(plugins.load("source", name)())
        except StageLoadError as error:
            print(f"warning: {error}", file=sys.stderr)
    return FirstOf(tuple(found))
