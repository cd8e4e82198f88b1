"""Functions by name: ``package.module:function``, as TOML and the command line write them.

Naming one imports its module, which is running its code: who runs a stranger's pipeline reads
it first.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, first_line

__all__ = [
    "attribute",
    "current_folder_importable",
    "function_named",
    "import_name",
    "object_named",
]

_NAME = re.compile(r"([^\W\d][\w.]*):([^\W\d][\w.]*)")


def attribute(module: str, qualname: str) -> Any:
    """What a dotted name in a module stands for.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such name.
    """
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


def object_named(text: str) -> Any:
    """What ``package.module:name`` stands for; modules of the current folder are found as well.

    Raises:
        ConfigError: there is no such thing.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} does not name a function: write package.module:function")
    with current_folder_importable():
        try:
            return attribute(match[1], match[2])
        except ModuleNotFoundError as error:
            raise ConfigError(f"{text}: there is no module {error.name}") from error
        except AttributeError as error:
            raise ConfigError(f"{text}: {first_line(error)}") from error
        except Exception as error:
            raise ConfigError(
                f"{text}: importing {match[1]} failed: {type(error).__name__}: {first_line(error)}"
            ) from error


def function_named(text: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; see `object_named`.

    Raises:
        ConfigError: there is none.
    """
    found = object_named(text)
    if not callable(found):
        raise ConfigError(f"{text} is no function but a {type(found).__qualname__}")
    return found  # type: ignore[no-any-return]


def import_name(function: Callable[..., Any]) -> str | None:
    """The text by which `object_named` finds a function, or the processor that a decorator made
    of it; None where there is none: a lambda, a function in a function or in a script.
    """
    module, qualname = (getattr(function, key, None) for key in ("__module__", "__qualname__"))
    text = f"{module}:{qualname}"
    if module == "__main__" or not _NAME.fullmatch(text):
        return None
    try:
        found = object_named(text)
    except ConfigError:
        return None
    return text if function in (found, getattr(found, "function", None)) else None


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """A console script's ``sys.path`` lacks the folder that the user stands in."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
