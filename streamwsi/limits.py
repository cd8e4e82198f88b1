"""Limits: what a run may take of the machine. They change speed and memory, never results."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

__all__ = ["Limits", "WorkerKind", "cores", "parse_bytes"]

WorkerKind = Literal["processes", "threads", "inline"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int) -> int:
    """Bytes from ``"2 GiB"``, ``"500MB"``, ``"1048576"`` or an int.

    Raises:
        ConfigError: the text is not an amount of memory.
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(text).lower())
    if match is None:
        raise ConfigError(f"{text!r} is not an amount of memory; write it like 2GiB or 500MB")
    unit = match[2] or ""
    return int(float(match[1]) * (_UNITS | _BINARY)[unit])


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take of the machine.

    Attributes:
        slides: slides worked on at the same time.
        workers: decode workers; None means one per core.
        worker_kind: ``"processes"`` (default), ``"threads"`` (no start-up, shares the
            interpreter; a codec that crashes takes the run with it, one that hangs cannot be
            ended: for short runs over slides you trust), or ``"inline"`` (in the event loop; for
            debugging).
        memory: budget in bytes, or text such as ``"2 GiB"``, for pixels, batches and open outputs.
        read_timeout_s: a worker process that takes longer for one job is killed and replaced.
        grace_s: what a cancelled run may take to end cleanly.
        reads_per_second: tiles that are read and decoded per second at most, by all workers
            together (`streamwsi.paces`); None means as fast as it goes.
        nice: added to the worker processes' niceness, 1 … 19: others' programs go first.
    """

    slides: int = 2
    workers: int | None = None
    worker_kind: WorkerKind = "processes"
    memory: int | str = "2 GiB"
    read_timeout_s: float = 120.0
    grace_s: float = 4.0
    reads_per_second: float | None = None
    nice: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "memory", parse_bytes(self.memory))
        if self.slides < 1:
            raise ConfigError(f"limits.slides must be at least 1, not {self.slides}")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"limits.workers must be at least 1, not {self.workers}")
        if self.worker_kind not in ("processes", "threads", "inline"):
            raise ConfigError(
                f"limits.worker_kind must be processes, threads or inline, not {self.worker_kind!r}"
            )
        if self.memory_bytes < 1:
            raise ConfigError("limits.memory must be positive")
        for name in ("read_timeout_s", "grace_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"limits.{name} must be positive, not {getattr(self, name)}")
        self._check_politeness()

    def _check_politeness(self) -> None:
        rate, nice = self.reads_per_second, self.nice
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigError(f"limits.reads_per_second must be positive, not {rate}")
        if nice is not None and not 0 <= nice <= 19:
            raise ConfigError(f"limits.nice must be 0 to 19, not {nice}")
        if nice and self.worker_kind != "processes":
            raise ConfigError(
                f"limits.nice is for worker processes, and the worker kind is {self.worker_kind}; "
                "start the whole program with nice instead"
            )

    @property
    def memory_bytes(self) -> int:
        """The budget as a number."""
        return parse_bytes(self.memory)

    @property
    def worker_count(self) -> int:
        """How many decode workers that makes on this machine."""
        return self.workers or cores()
