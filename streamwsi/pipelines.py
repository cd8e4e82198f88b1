"""A pipeline: one stage of each role, as a value; to and from TOML.

In TOML each stage is a table, whose ``type`` is the name of its entry point and whose other keys
are the dataclass's fields; stages that hold others have tables in tables (`stage_tables`)::

    [sampler]
    type = "sliding-window"
    kernel_size = 256
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import ConfigError, StageMismatch
from .stage_tables import read_stage, stage_lines
from .stages import Processor, Sampler, Sink, Source

__all__ = ["Pipeline", "from_toml", "to_toml"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline(Generic[V]):
    """What is done with each slide.

    Attributes:
        source: opens slides and reads their pixels.
        sampler: decides which windows there are.
        processor: turns windows into values.
        sink: writes the values.

    Raises:
        StageMismatch: a stage is not of its role.
    """

    source: Source
    sampler: Sampler
    processor: Processor[V]
    sink: Sink[V]

    def __post_init__(self) -> None:
        for role, methods in _METHODS.items():
            stage = getattr(self, role)
            missing = [name for name in methods if not hasattr(stage, name)]
            if missing or isinstance(stage, type):
                hint = " (it is a class: give an instance)" if isinstance(stage, type) else ""
                raise StageMismatch(
                    f"{stage!r} cannot be the {role}: it lacks {', '.join(missing) or 'a value'}"
                    + hint
                )


_METHODS = {
    "source": ("accepts", "open"),
    "sampler": ("plan", "smallchunks"),
    "processor": ("open",),
    "sink": ("outputs", "open", "config"),
}


def from_toml(text: str | Path) -> Pipeline[Any]:
    """A pipeline from TOML text, or from a file where a `Path` is given.

    Functions that it names (``"package.module:function"``) are imported: read a stranger's
    pipeline before you load it. Paths in it are relative to the current folder.

    Raises:
        ConfigError: the TOML is not a pipeline; the message names the key.
    """
    try:
        tables = tomllib.loads(text.read_text("utf-8") if isinstance(text, Path) else text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the pipeline's TOML cannot be read: {error}") from error
    unknown = sorted(set(tables) - set(_METHODS))
    missing = sorted(set(_METHODS) - set(tables))
    if unknown or missing:
        problem = f"does not know {unknown[0]!r}" if unknown else f"lacks [{missing[0]}]"
        raise ConfigError(f"a pipeline's TOML has the tables {', '.join(_METHODS)}; it {problem}")
    return Pipeline(**{role: read_stage(role, tables[role], role) for role in _METHODS})


def to_toml(pipeline: Pipeline[Any]) -> str:
    """The pipeline as TOML; fields that hold their default are left out.

    Raises:
        ConfigError: a stage is not installed by an entry point, or a field holds an object
            (a model, an array, a lambda) that TOML cannot name; the message names the field.
    """
    lines: list[str] = []
    for role in _METHODS:
        lines += [*stage_lines(role, getattr(pipeline, role), role), ""]
    return "\n".join(lines)
