"""What a run tells: events while it goes on, and a report at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .chunks import Damage
from .errors import ConfigError

__all__ = [
    "Event",
    "Observer",
    "PiecesWritten",
    "RunReport",
    "SlideEnded",
    "SlideOutcome",
    "SlideStarted",
    "StageTimes",
    "Status",
]

Status = Literal["done", "failed", "interrupted"]


@dataclass(slots=True)
class StageTimes:
    """Seconds that a stage waited: `starved_s` for input, `blocked_s` for room downstream."""

    starved_s: float = 0.0
    blocked_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """How a slide ended.

    Attributes:
        slide: the slide's id.
        uri: where it lies.
        status: ``"done"``, ``"failed"`` or ``"interrupted"``.
        error: one sentence, where it failed.
        stage: the stage that failed: ``open``, ``read``, ``sample``, ``process`` or ``write``.
        outputs: files and folders that hold the result.
        pieces: windows written by this run.
        resumed_at: windows that an earlier run had written.
        total: windows of the slide.
        invalid: windows written as NaN because they touch damaged pixels.
        filled: windows that this run computed with damaged pixels painted in a colour.
        seconds: from opening to the end.
        tiles_decoded: tiles decoded, each time counted.
        distinct_tiles: different tiles among them.
        tiles_saved: tiles that no window needs, because of a mask.
        damaged_tiles: tiles that could not be decoded.
        damage: the first of them.
        resolution: what was sampled: the ``level`` that was read, the ``factor`` by which it was
            resampled, ``downsample`` and ``mpp`` of the pixels, each ``[x, y]``; where a pixel
            size was asked for, the ``tolerance`` within which a level is taken as it is.
        stages: waiting times by stage.
        cause: the exception behind `error`.
    """

    slide: str
    uri: str
    status: Status
    error: str | None = None
    stage: str | None = None
    outputs: tuple[str, ...] = ()
    pieces: int = 0
    resumed_at: int = 0
    total: int = 0
    invalid: int = 0
    filled: int = 0
    seconds: float = 0.0
    tiles_decoded: int = 0
    distinct_tiles: int = 0
    tiles_saved: int = 0
    damaged_tiles: int = 0
    damage: tuple[Damage, ...] = ()
    resolution: Mapping[str, Any] | None = None
    stages: dict[str, StageTimes] = field(default_factory=dict)
    cause: Exception | None = field(default=None, compare=False, repr=False)

    @property
    def amplification(self) -> float:
        """Tiles decoded ÷ distinct tiles."""
        return self.tiles_decoded / self.distinct_tiles if self.distinct_tiles else 1.0

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON-able values."""
        record = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("cause", "damage", "stages")
        }
        record["outputs"] = list(self.outputs)
        record["amplification"] = round(self.amplification, 4)
        record["damage"] = [asdict(damage) for damage in self.damage]
        record["stages"] = {name: asdict(times) for name, times in self.stages.items()}
        return record


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended: one outcome a slide, in the order given."""

    outcomes: tuple[SlideOutcome, ...]
    seconds: float

    @property
    def failures(self) -> tuple[SlideOutcome, ...]:
        """The slides that did not become complete."""
        return tuple(o for o in self.outcomes if o.status != "done")

    @property
    def misconfigured(self) -> bool:
        """Whether nothing was done, and all for wrong usage or configuration."""
        return bool(self.outcomes) and all(isinstance(o.cause, ConfigError) for o in self.outcomes)

    def raise_for_failures(self) -> None:
        """Raise what failed, all of it at once.

        Raises:
            ExceptionGroup: of `SlideFailed`, one a slide.
        """
        causes = [outcome.cause for outcome in self.failures if outcome.cause is not None]
        if causes:
            raise ExceptionGroup(f"{len(causes)} of {len(self.outcomes)} slides failed", causes)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "seconds": self.seconds,
            "slides": [outcome.to_json() for outcome in self.outcomes],
        }


@dataclass(frozen=True, slots=True)
class SlideStarted:
    """A slide was opened and its windows are known."""

    slide: str
    total: int
    resumed_at: int


@dataclass(frozen=True, slots=True)
class PiecesWritten:
    """Windows of a slide went to its sink."""

    slide: str
    count: int


@dataclass(frozen=True, slots=True)
class SlideEnded:
    """A slide is done, failed or interrupted."""

    outcome: SlideOutcome


Event = SlideStarted | PiecesWritten | SlideEnded
Observer = Callable[[Event], None]
"""Gets each event in the loop's thread; must return at once, and what it raises is dropped."""
