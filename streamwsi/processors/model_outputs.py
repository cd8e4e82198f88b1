"""Which of a model's outputs are taken, where it returns a dict or a tuple of them.

An output is chosen by its name in a mapping (a dict, or what transformers' models return) or in
a named tuple, or by its number in any of these. One that is chosen goes on as if the model
returned nothing else. Of several, each window's values become a record: one structured array
``(n,)``, whose fields have the outputs' names (numbers as text) and shapes, so that
``values["features"]`` is an array ``(n, …)``. `streamwsi.sinks.Select` hands a field to a sink.

A processor that gives records tells in its configuration, as ``outputs``, what the
configuration of each would be alone: outputs are then recorded, compared and resumed as if
there were no others. Who wraps a processor wraps each of them (`each_output`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError

__all__ = ["Choice", "checked_choice", "chosen", "each_output", "records", "undecided"]

Choice = str | int


def checked_choice(output: object) -> Choice | tuple[Choice, ...] | None:
    """A name, a number, several of them, or None.

    Raises:
        ConfigError: it is something else.
    """
    if output is None:
        return None
    several = isinstance(output, list | tuple)
    choices: list[Any] = [*output] if isinstance(output, list | tuple) else [output]
    for one in choices:
        number = isinstance(one, int) and not isinstance(one, bool) and one >= 0
        if not number and not (isinstance(one, str) and one):
            raise ConfigError(
                f"output must be a name or a number from 0 on, or several of them, not {output!r}"
            )
    if len({*map(str, choices)}) < len(choices) or not choices:
        raise ConfigError(f"output must be one or several different ones, not {output!r}")
    return tuple(choices) if several else choices[0]


def chosen(output: object, choice: Choice) -> object:
    """One of what a model returned.

    Raises:
        ConfigError: there is no such one; the message names those there are.
    """
    found = _listed(output)
    if found is None:
        raise ConfigError(
            f"the model returns one {type(output).__qualname__}, and not several outputs of which "
            f"{choice!r} could be one; leave out --output (output=)"
        )
    for name in (choice, str(choice)):
        if name in found:
            return found[name]
    # A number of outputs that have names is their place.
    named = all(isinstance(name, str) for name in found)
    if isinstance(choice, int) and named and choice < len(found):
        return [*found.values()][choice]
    raise ConfigError(f"the model has no output {choice!r}; it returns {_described(found)}")


def undecided(output: object) -> ConfigError | None:
    """The error where nothing was chosen of several outputs; None where there are no several."""
    found = _listed(output)
    if found is None:
        return None
    return ConfigError(
        f"the model returns a {type(output).__qualname__} of {_described(found)}; choose one by "
        "--output NAME or NUMBER (output=)"
    )


def _listed(output: object) -> dict[Choice, object] | None:
    """Outputs by name, or by number where they have none."""
    if isinstance(output, Mapping):
        return {name if isinstance(name, int) else str(name): output[name] for name in output}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return dict(zip(names, output, strict=True))
    return None


def _described(found: Mapping[Choice, object]) -> str:
    """``logits (32×2) and features (32×1024)``."""
    texts = []
    for name, value in found.items():
        shape = getattr(value, "shape", None)
        what = type(value).__name__ if shape is None else "×".join(map(str, shape)) or "one number"
        texts.append(f"{name} ({what})")
    return (
        " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) or "nothing"
    )


def records(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Arrays ``(n, …)`` as one array of records."""
    dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    found = np.empty(len(next(iter(arrays.values()))), dtype)
    for name, array in arrays.items():
        found[name] = array
    return found


def each_output(
    config: Mapping[str, Any], wrapped: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """A processor's configuration, wrapped; each output's where there are several."""
    outputs = config.get("outputs")
    if not isinstance(outputs, Mapping):
        return wrapped(config)
    return {**config, "outputs": {name: wrapped(one) for name, one in outputs.items()}}
