"""A pipeline: one stage of each role, as a value; to and from TOML.

In TOML a stage is a table whose ``type`` is the name of its entry point and whose other keys
are the dataclass's fields::

    [sampler]
    type = "sliding-window"
    kernel_size = 256
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import plugins
from .errors import ConfigError, StageMismatch
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
    return Pipeline(**{role: _stage(role, tables[role]) for role in _METHODS})


def _stage(role: str, table: Any) -> Any:
    if not isinstance(table, dict) or not isinstance(table.get("type"), str):
        raise ConfigError(f"[{role}] needs a type, the name of an installed {role}")
    stage = plugins.load(role, table["type"])
    names = [f.name for f in dataclasses.fields(stage) if f.init]
    for key in set(table) - {"type"} - set(names):
        near = difflib.get_close_matches(key, names, 1, 0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"[{role}] {table['type']} has no field {key!r}{hint}")
    fields = {key: _frozen(value) for key, value in table.items() if key != "type"}
    try:
        return stage(**fields)
    except TypeError as error:
        raise ConfigError(f"[{role}] {table['type']}: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def to_toml(pipeline: Pipeline[Any]) -> str:
    """The pipeline as TOML; fields that hold their default are left out.

    Raises:
        ConfigError: a stage is not installed by an entry point, or a field holds an object
            (a model, a function) that TOML cannot name.
    """
    lines = []
    for role in _METHODS:
        stage = getattr(pipeline, role)
        lines += [f"[{role}]", f"type = {_toml(plugins.name_of(role, type(stage)), role)}"]
        for field in dataclasses.fields(stage):
            value = getattr(stage, field.name)
            if field.init and value != _default(field):
                lines.append(f"{field.name} = {_toml(value, f'{role}.{field.name}')}")
        lines.append("")
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _toml(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's; only DEL must be escaped here and need not be there.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item, where) for item in value)}]"
    raise ConfigError(f"{where} holds {value!r}, which TOML cannot name")
