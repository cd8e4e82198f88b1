"""Slides as plain values: what a header says, without a handle.

A `Slide` pickles, compares and travels to worker processes. `downsample` is base pixels per
level pixel and at least 1, per axis. Micrometres occur in `Mpp` only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, LevelNotFound
from .geometry import Size

__all__ = [
    "Level",
    "Microns",
    "Mpp",
    "Power",
    "Pyramid",
    "PyramidLevel",
    "Resolution",
    "Slide",
    "SlideRef",
    "snapped_downsample",
]

_UNSAFE = re.compile(r"[^\w.+@=,() -]")


@dataclass(frozen=True, slots=True)
class SlideRef:
    """A slide to be opened.

    Attributes:
        id: names the outputs; one path component, unique in a run.
        uri: where the slide lies: a local path.
    """

    id: str
    uri: str

    def __post_init__(self) -> None:
        if not self.id or self.id.startswith(".") or {"/", "\0"} & {*self.id}:
            raise ConfigError(f"{self.id!r} cannot be a slide id: it must be a plain file name")

    @classmethod
    def of(cls, slide: str | Path | SlideRef) -> SlideRef:
        """A reference to a file, its id the file's name without the extension."""
        if isinstance(slide, SlideRef):
            return slide
        path = Path(slide)
        name = path.name or path.resolve().name
        for ending in (".ome.tiff", ".ome.tif", ".ome.zarr"):
            if name.lower().endswith(ending):
                return cls(_safe(name[: -len(ending)]), str(path))
        return cls(_safe(Path(name).stem), str(path))


def _safe(name: str) -> str:
    return _UNSAFE.sub("_", name).lstrip(".") or "slide"


@dataclass(frozen=True, slots=True)
class Mpp:
    """Size of a level-0 pixel in micrometres."""

    x: float
    y: float

    def __post_init__(self) -> None:
        for value in (self.x, self.y):
            if not 0 < value < float("inf"):
                raise ValueError(f"mpp must be positive and finite, not {value}")


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """One resolution of a slide.

    Attributes:
        index: 0 is the finest; a level that is resampled has its source's.
        size: in pixels of this level.
        downsample: level-0 pixels per pixel of this level, ``(x, y)``.
        tile: what the file decodes at once (strips count as tiles as wide as the level).
        source: the level of the file that this one is resampled from; None for the file's own.
        factor: pixels of the source per pixel of this level, ``(x, y)``.
    """

    index: int
    size: Size
    downsample: tuple[float, float]
    tile: Size
    source: PyramidLevel | None = None
    factor: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.tile) < 1:
            raise ValueError(f"level {self.index}: size {self.size}, tile {self.tile}")
        if min(self.downsample) < 1:
            raise ValueError(f"level {self.index}: downsample {self.downsample} is below 1")


def snapped_downsample(base: int, level: int) -> float:
    """Base pixels per level pixel along one axis.

    Scanners make a level by dividing by an integer and dropping or keeping the rest; so where
    `level` is the floor or the ceiling of ``base / n``, the downsample is that integer n, and
    the ratio otherwise.
    """
    ratio = base / level
    n = round(ratio)
    if n >= 1 and level in (base // n, -(-base // n)):
        return float(n)
    return max(1.0, ratio)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a slide, finest first, and the size of a level-0 pixel where known."""

    levels: tuple[PyramidLevel, ...]
    mpp: Mpp | None = None

    def __post_init__(self) -> None:
        if not self.levels or [level.index for level in self.levels] != [*range(len(self.levels))]:
            raise ValueError("a pyramid needs levels numbered from 0 without gaps")


@dataclass(frozen=True, slots=True)
class Slide:
    """What an opened slide is.

    Attributes:
        ref: where it came from.
        pyramid: its levels and mpp.
        dtype: the pixels' numpy dtype, in native byte order: ``"uint8"``, ``"uint16"``, …
        channels: samples per pixel.
        vendor: ``"aperio"``, ``"hamamatsu"``, ``"ome"``, … or ``"generic"``.
        power: the objective's magnification, where known.
        nbytes: the file's size in bytes.
        compression: how level 0 is stored, in words.
        identity: a digest of the file's size and samples of its bytes: what a resume compares.
        properties: further facts of the header, JSON-able.
    """

    ref: SlideRef
    pyramid: Pyramid
    dtype: str
    channels: int
    vendor: str = "generic"
    power: float | None = None
    nbytes: int = 0
    compression: str = "none"
    identity: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)

    def level(self, index: int) -> PyramidLevel:
        """The level with that index.

        Raises:
            LevelNotFound: the slide has no such level.
        """
        levels = self.pyramid.levels
        if not 0 <= index < len(levels):
            raise LevelNotFound(
                f"{self.ref.uri}: there is no level {index}; the slide has "
                + ("one level, 0" if len(levels) == 1 else f"levels 0 to {len(levels) - 1}")
            )
        return levels[index]


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the slide's own, by its index: 0 is the finest."""

    index: int

    def __post_init__(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, int) or self.index < 0:
            raise ConfigError(f"level {self.index} must be 0 (the finest) or more")


@dataclass(frozen=True, slots=True)
class Microns:
    """A pixel size in micrometres."""

    mpp: float

    def __post_init__(self) -> None:
        _check_positive("mpp", self.mpp)


@dataclass(frozen=True, slots=True)
class Power:
    """An objective's magnification: 20 means 20×."""

    power: float

    def __post_init__(self) -> None:
        _check_positive("power", self.power)


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a positive number, not {value!r}")


Resolution = int | Level | Microns | Power | Callable[[Slide], int | Level | Microns | Power]
"""What to look at a slide with; a function is asked for each slide, and an int is a level."""
