"""The sources that the command line tries: TIFF, OME-Zarr, then every installed plugin.

Sources that are made of others, or need settings, it leaves to Python and TOML.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

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
            source = plugins.load("source", name)
            if _needs_nothing(source):
                found.append(source())
        except StageLoadError as error:
            print(f"warning: {error}", file=sys.stderr)
    return FirstOf(tuple(found))


def _needs_nothing(source: type[Any]) -> bool:
    fields = [field for field in dataclasses.fields(source) if field.init]
    missing = dataclasses.MISSING
    return all(f.default is not missing or f.default_factory is not missing for f in fields)
