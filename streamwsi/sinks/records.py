"""What an output says about itself: a JSON document, the *record*.

It holds what the output was made from (`identity`: the slide, the configuration of the stages,
the version of the format) and its `State`: how many pieces are
durable, how many there will be, how many are NaN. Two runs whose identities are equal write the
same bytes, so that one may go on where the other stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chunks import Plan
from ..errors import ConfigError, StageMismatch
from ..stages import Recipe

__all__ = ["FORMAT_VERSION", "State", "differences", "identity"]

FORMAT_VERSION = 1

_SHOWN = 80


def identity(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    """What an output is made from, as JSON.

    Raises:
        ConfigError: a stage's configuration is not JSON-able.
        StageMismatch: the processor gives several outputs.
    """
    slide = plan.slide
    if isinstance(several := recipe.processor.get("outputs"), Mapping):
        raise StageMismatch(
            f"the processor gives several outputs ({', '.join(several)}), and a sink writes one: "
            f"put each into a Select, as in Select(sink, {next(iter(several))!r})"
        )
    size, mpp = slide.level(0).size, slide.pyramid.mpp
    document = {
        "version": FORMAT_VERSION,
        "slide": {
            "name": Path(slide.ref.uri).name,
            "bytes": slide.nbytes,
            "identity": slide.identity,
            "width": size.width,
            "height": size.height,
            "mpp": [mpp.x, mpp.y] if mpp else None,
        },
        "source": dict(recipe.source),
        "sampler": dict(recipe.sampler),
        "processor": dict(recipe.processor),
        "sink": dict(recipe.sink),
    }
    try:
        # There and back: tuples become lists, as they will be when they are read again.
        return json.loads(json.dumps(document, allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"slide {slide.ref.id}: a stage's configuration cannot be recorded as JSON: {error}"
        ) from error


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and JSON texts of all that is in a document; lists count as one value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``"sampler.stride 128 → 64"`` for each value that differs."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name} {_shown(before.get(name, 'absent'))} → {_shown(after.get(name, 'absent'))}"
        for name in [*before, *(name for name in after if name not in before)]
        if before.get(name) != after.get(name)
    ]


@dataclass(frozen=True, slots=True)
class State:
    """How far an output is.

    Attributes:
        total: pieces of the plan.
        pieces: the watermark: every piece below it is durable.
        invalid: pieces below it that touched pixels that could not be had.
        nbytes: bytes of the file that hold them, where the output is one file.
    """

    total: int
    pieces: int = 0
    invalid: int = 0
    nbytes: int | None = None

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.pieces == self.total

    def to_json(self) -> dict[str, Any]:
        """As it stands in the record."""
        document: dict[str, Any] = {
            "complete": self.complete,
            "invalid": self.invalid,
            "pieces": self.pieces,
            "total": self.total,
        }
        return document if self.nbytes is None else document | {"bytes": self.nbytes}

    @classmethod
    def from_json(cls, document: Any) -> State | None:
        """The state in a record; None where it is not one."""
        if not isinstance(document, dict):
            return None
        numbers: list[Any] = [document.get(name) for name in ("total", "pieces", "invalid")]
        nbytes = document.get("bytes", 0)
        if not all(type(number) is int and number >= 0 for number in (*numbers, nbytes)):
            return None
        state = cls(numbers[0], numbers[1], numbers[2], document.get("bytes"))
        return state if state.invalid <= state.pieces <= state.total else None
