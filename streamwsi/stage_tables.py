"""A stage as a TOML table, and back.

``type`` is the name of the stage's entry point, and the other keys are the dataclass's fields. A
field that holds other stages is a table of its own, or several::

    [sampler]
    type = "masked"
    fraction = 0.5
    sampler = { type = "sliding-window", kernel_size = 256 }
    mask = { type = "tissue" }

    [sink]
    type = "tee"

    [[sink.sinks]]
    type = "heatmap-zarr"
    out = "out"

Which fields these are, a stage says itself, in their metadata: ``{"role": "mask"}`` for a mask,
``{"role": "mask", "several": "list"}`` and ``"mapping"`` for a tuple of masks and for a mapping
of names to masks; ``"named"`` for a tuple that the stage takes one by one, or by names that it
has in a field ``names``. The role ``"function"`` is that of a field that may hold a function; its
text is ``"package.module:function"``. ``{"role": "mask", "function": True}`` allows either.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import plugins
from .errors import ConfigError, UnknownStage
from .functions import import_name, object_named

__all__ = ["read_stage", "stage_lines"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def read_stage(role: str, table: Any, at: str) -> Any:
    """The stage that a table describes.

    Args:
        role: of the stage.
        table: what TOML has there.
        at: where that is, for messages.

    Raises:
        ConfigError: it describes none; the message names the key.
    """
    if not isinstance(table, dict) or not isinstance(table.get("type"), str):
        raise ConfigError(f"[{at}] needs a type, the name of an installed {role}")
    stage = plugins.load(role, table["type"])
    fields = {field.name: field for field in dataclasses.fields(stage) if field.init}
    for key in {*table} - {"type", *fields}:
        near = difflib.get_close_matches(key, fields, 1, 0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"[{at}] {table['type']} has no field {key!r}{hint}")
    values = {
        key: _value(fields[key].metadata, value, f"{at}.{key}")
        for key, value in table.items()
        if key != "type"
    }
    try:
        return stage(*_positional(stage, values), **_named(stage, values))
    except TypeError as error:
        raise ConfigError(f"[{at}] {table['type']}: {error}") from error


def _positional(stage: type[Any], values: dict[str, Any]) -> tuple[Any, ...]:
    """What a stage takes one by one, as ``Tee(one, other)`` does; taken out of the values."""
    for name, parameter in inspect.signature(stage).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and not isinstance(
            values.get(name), dict
        ):
            return tuple(values.pop(name, ()))
    return ()


def _named(stage: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """What a stage takes by names of the user's, as ``Together(a=one, b=other)`` does."""
    for field in dataclasses.fields(stage):
        if field.metadata.get("several") == "named" and field.name in values:
            return {**values.pop(field.name), **values}
    return values


def _value(metadata: Mapping[str, Any], value: Any, at: str) -> Any:
    role = metadata.get("role")
    function = role == "function" or "function" in metadata
    if role in plugins.ROLES and not (function and isinstance(value, str)):
        return _stages(role, metadata.get("several"), value, at)
    if function and isinstance(value, str):
        try:
            return object_named(value)
        except ConfigError as error:
            raise ConfigError(f"[{at}] {error}") from error
    return _frozen(value)


def _stages(role: str, several: str | None, value: Any, at: str) -> Any:
    """One stage, several of them, or several with names."""
    if several == "list" or (several == "named" and isinstance(value, list)):
        if not isinstance(value, list):
            raise ConfigError(f"[{at}] holds several: write [[{at}]] above each of them")
        return tuple(read_stage(role, each, f"{at}[{i}]") for i, each in enumerate(value))
    if several in ("mapping", "named"):
        if not isinstance(value, dict):
            raise ConfigError(f"[{at}] holds several with names: write [{at}.NAME] above each")
        return {key: read_stage(role, each, f"{at}.{_key(key)}") for key, each in value.items()}
    return read_stage(role, value, at)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(each) for key, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def stage_lines(role: str, stage: Any, at: str, header: str = "[{}]") -> Iterator[str]:
    """The lines of a stage's table; fields that hold their default are left out.

    Args:
        role: of the stage.
        stage: what is written.
        at: the table's key.
        header: how the table begins: ``[{}]``, or ``[[{}]]`` for one of an array.

    Raises:
        ConfigError: the stage, or one that it holds, is not installed by an entry point; or a
            field holds an object that TOML cannot name.
    """
    yield header.format(at)
    yield f"type = {_toml(_type(role, stage, at), at)}"
    nested: list[str] = []
    for field in dataclasses.fields(stage):
        value = getattr(stage, field.name)
        if not field.init or _same(value, _default(field)):
            continue
        where, of = f"{at}.{field.name}", field.metadata.get("role")
        function = of == "function" or "function" in field.metadata
        if of in plugins.ROLES and not (function and callable(value)):
            several = field.metadata.get("several")
            if several == "named":
                several = "mapping" if stage.names else "list"
                value = dict(zip(stage.names, value, strict=True)) if stage.names else value
            nested += _nested_lines(of, several, value, where)
        elif function:
            yield f"{field.name} = {_function(value, where)}"
        else:
            yield f"{field.name} = {_toml(value, where)}"
    yield from nested


def _type(role: str, stage: Any, at: str) -> str:
    try:
        return plugins.name_of(role, type(stage))
    except UnknownStage as error:
        # A class that has no entry point on purpose says what to write instead.
        hint = getattr(stage, "toml_hint", "")
        raise UnknownStage(f"{at} cannot go to TOML: {error}{hint and '; '}{hint}") from error


def _nested_lines(role: str, several: str | None, value: Any, at: str) -> Iterator[str]:
    if several == "list":
        for each in value:
            yield ""
            yield from stage_lines(role, each, at, "[[{}]]")
    elif several == "mapping":
        for key, each in value.items():
            yield ""
            yield from stage_lines(role, each, f"{at}.{_key(key)}")
    else:
        yield ""
        yield from stage_lines(role, value, at)


def _function(value: Any, at: str) -> str:
    if isinstance(value, str):
        raise ConfigError(f"{at} holds the text {value!r}, which TOML takes for a function's name")
    if not callable(value):
        return _toml(value, at)
    name = import_name(value)
    if name is None:
        shown = getattr(value, "__qualname__", None) or f"{type(value).__qualname__} object"
        raise ConfigError(
            f"{at} holds {shown}, which TOML cannot name; define it at the top level of a module "
            "that can be imported"
        )
    return _toml(name, at)


def _same(value: Any, default: Any) -> bool:
    # By type first: arrays compare to arrays, and 1 is not True.
    return value is default or (type(value) is type(default) and bool(value == default))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are TOML's; only DEL must be escaped here and need not be there.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any, at: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return _text(str(value))
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item, at) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_toml(item, at)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    raise ConfigError(f"{at} holds a {type(value).__qualname__}, which TOML cannot name")
