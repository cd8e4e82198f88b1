"""What the command line writes: ``--sink``, ``--output`` and ``--feature-dtype``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from streamwsi.stages import Sink

__all__ = ["Writing"]

_FEATURES = ("features-zarr", "features-hdf5")
_KINDS = ("zarr", "pdmcsv", *_FEATURES)

Choice = str | int


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written, and what of the model's outputs.

    Attributes:
        sink: writes all of it.
        output: of the processor.
    """

    sink: Sink[Any]
    output: Choice | tuple[Choice, ...] | None

    @classmethod
    def read(
        cls, words: Sequence[str], output: str | None, dtype: str | None, out: Path
    ) -> Writing:
        """What the options mean.

        Args:
            words: a kind of sink each, or ``KIND=OUTPUT``.
            output: for the sinks that do not say one.
            dtype: of features.
            out: the folder.

        Raises:
            ConfigError: an option means nothing.
        """
        wanted = dict(_parsed(words, output))
        if len(wanted) < len(words):
            raise ConfigError(
                "--sink names a kind twice; give each once, into folders of their own"
            )
        if dtype is not None and not {*wanted} & {*_FEATURES}:
            raise ConfigError(f"--feature-dtype is for the sinks {' and '.join(_FEATURES)}")
        sinks = {kind: _made(kind, out, dtype) for kind in wanted}
        outputs = tuple(dict.fromkeys(wanted.values()))
        if len(outputs) == 1:
            return cls(_teed([*sinks.values()]), outputs[0])
        chosen = tuple(one for one in outputs if one is not None)
        if len(chosen) < len(outputs):
            without = next(kind for kind, one in wanted.items() if one is None)
            raise ConfigError(
                f"--sink {without} does not say which of the model's outputs it gets, and another "
                f"does; say it for each ({without}=NAME), or for the rest by --output"
            )
        from streamwsi.sinks import Select

        return cls(_teed([Select(sink, str(wanted[kind])) for kind, sink in sinks.items()]), chosen)


def _parsed(words: Sequence[str], output: str | None) -> list[tuple[str, Choice | None]]:
    found = []
    for word in words:
        kind, equals, own = word.partition("=")
        if kind not in _KINDS or (equals and not own):
            raise ConfigError(f"--sink {word!r} is none of {', '.join(_KINDS)}, or KIND=OUTPUT")
        found.append((kind, _choice(own or output)))
    return found


def _choice(text: str | None) -> Choice | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else text


def _made(kind: str, out: Path, dtype: str | None) -> Sink[Any]:
    from streamwsi import sinks

    features: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    made: dict[str, Callable[[], Sink[Any]]] = {
        "zarr": lambda: sinks.HeatmapZarr(str(out)),
        "pdmcsv": lambda: sinks.Pdmcsv(str(out)),
        "features-zarr": lambda: sinks.FeaturesZarr(str(out), **features),
        "features-hdf5": lambda: sinks.FeaturesHdf5(str(out), **features),
    }
    return made[kind]()


def _teed(sinks: Sequence[Sink[Any]]) -> Sink[Any]:
    if len(sinks) == 1:
        return sinks[0]
    from streamwsi.sinks import Tee

    return Tee(*sinks)
