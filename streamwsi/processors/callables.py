"""Functions of the user's: what they are called, what identifies them, what they return.

An output on disk may be completed only by what began it, so that a function has to be told from
its former self: `described` gives its name and a digest of its source text. What the function
calls or captures is not seen: who changes that starts afresh, or says it in a ``config``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, first_line

__all__ = [
    "as_array",
    "checked_config",
    "described",
    "name_of",
]

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
