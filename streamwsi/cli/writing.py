"""What the command line writes: ``--sink``, ``--output``, and the options of some sinks."""

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
        cls,
        words: Sequence[str],
        output: str | None,
        out: Path,
        *,
        blend: str | None = None,
        dtype: str | None = None,
        colours: tuple[str, ...] | None = None,
        chunk: int | None = None,
        feature_dtype: str | None = None,
        halo: bool = False,
    ) -> Writing:
        """What the options mean.

        Args:
            words: a kind of sink each, or ``KIND=OUTPUT``.
            output: for the sinks that do not say one.
            out: the folder.
            blend, dtype, colours, chunk: of heatmaps in zarr; None is the sink's default.
            feature_dtype: of features.
            halo: whether windows have one, which is there to be cropped.

        Raises:
            ConfigError: an option means nothing.
        """
        wanted = dict(_parsed(words, output))
        if len(wanted) < len(words):
            raise ConfigError(
                "--sink names a kind twice; give each once, into folders of their own"
            )
        for option, value, kinds in (
            ("--feature-dtype", feature_dtype, _FEATURES),
            ("--blend", blend, ("zarr",)),
            ("--dtype", dtype, ("zarr",)),
            ("--colors", colours, ("zarr",)),
            ("--chunk", chunk, ("zarr",)),
        ):
            if value is not None and not {*wanted} & {*kinds}:
                many = "s" if len(kinds) > 1 else ""
                raise ConfigError(f"{option} is for the sink{many} {' and '.join(kinds)}")
        heatmap = _given(
            blend=blend or ("crop" if halo else None), dtype=dtype, colours=colours, chunk=chunk
        )
        features = _given(dtype=feature_dtype)
        sinks = {kind: _made(kind, out, heatmap, features) for kind in wanted}
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


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _made(kind: str, out: Path, heatmap: dict[str, Any], features: dict[str, Any]) -> Sink[Any]:
    from streamwsi import sinks

    made: dict[str, Callable[[], Sink[Any]]] = {
        "zarr": lambda: sinks.HeatmapZarr(str(out), **heatmap),
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
