"""Names that a package offers and loads on first use.

``import streamwsi`` must stay light, and a decode worker must not pay for stages that it never
runs: with two workers on two cores, every 100 ms of imports there are 100 ms of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["loaded_on_use"]


def loaded_on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` for a package.

    Args:
        package: its ``__name__``.
        homes: for each name, the submodule that defines it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{homes[name]}", package), name)

    return load
