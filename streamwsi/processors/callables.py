"""Functions of the user's: how they are found, what they are called, what identifies them.

An output on disk may be completed only by what began it, so that a function has to be told from
its former self: `described` gives its name and a digest of its source text. What the function
calls or captures is not seen: who changes that starts afresh, or says it in a ``config``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .base import first_line

__all__ = [
    "as_array",
    "attribute",
    "checked_config",
    "current_folder_importable",
    "described",
    "function_named",
    "name_of",
]

_NAME = re.compile(r"([^\W\d][\w.]*):([^\W\d][\w.]*)")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def name_of(function: Callable[..., Any]) -> str:
    """``package.module.function``; for an object that can be called, its class's name."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """What identifies a function, JSON-able: its name and the SHA-256 of its source text.

    The digest is None where Python has no source for it (built-in functions, ``python -c``). Of
    a `functools.partial` the arguments count as well, by their repr.
    """
    description: dict[str, Any] = {"name": name_of(function)}
    arguments = []
    while isinstance(function, functools.partial):
        arguments.append(_ADDRESS.sub("", repr((function.args, function.keywords))))
        function = function.func
    if arguments:
        description["arguments"] = arguments
    return description | {"sha256": _digest(function)}


def _digest(function: Callable[..., Any]) -> str | None:
    has_source = inspect.isroutine(function) or inspect.isclass(function)
    try:
        source = inspect.getsource(function if has_source else type(function))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def attribute(module: str, qualname: str) -> Any:
    """What a dotted name in a module stands for.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: it has no such name.
    """
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))


def function_named(text: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; also found in the current folder.

    Raises:
        ConfigError: there is none.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} does not name a function: write package.module:function")
    with current_folder_importable():
        try:
            found = attribute(match[1], match[2])
        except ModuleNotFoundError as error:
            raise ConfigError(f"{text}: there is no module {error.name}") from error
        except AttributeError as error:
            raise ConfigError(f"{text}: {first_line(error)}") from error
        except Exception as error:
            raise ConfigError(
                f"{text}: importing {match[1]} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
    if not callable(found):
        raise ConfigError(f"{text} is no function but a {type(found).__qualname__}")
    return found  # type: ignore[no-any-return]


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


def as_array(value: Any) -> npt.NDArray[Any] | None:
    """A numpy array or a torch tensor as an array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    # By its methods: whoever works without torch need not wait for its import.
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return np.asarray(value.detach().cpu().numpy())
    return None


def checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a user's configuration as it comes back from JSON.

    Raises:
        ConfigError: it is not JSON-able.
    """
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config must go to JSON, and does not: {first_line(error)}") from error
