"""Jobs for worker processes that die, hang or raise, and a source made of them.

Worker processes import what they run by its name: this module is there for them, a test's
module is not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anyio
import numpy as np
import numpy.typing as npt

from ..chunks import Damage, Pixels
from ..errors import CannotOpen
from ..geometry import Box, Size
from ..slides import Pyramid, PyramidLevel, Slide, SlideRef
from ..sources.base import Inspect, PooledSource, ReadBox
from ..workers import Workers

__all__ = [
    "OneWayError",
    "SeededSource",
    "alive",
    "all_started",
    "children",
    "die_once",
    "fill_slowly",
    "loaded",
    "raise_one_way",
    "raise_unpicklable",
    "seeded_pixels",
    "seeded_ref",
]


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process started and that are not gone."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


async def all_started(workers: Workers) -> tuple[int, ...]:
    """The process ids of all workers, which are not forked before they are needed."""
    while len(workers.pids) < workers.count:
        async with anyio.create_task_group() as tasks:
            for _ in range(workers.count):
                tasks.start_soon(workers.call, time.sleep, 0.05)
    return workers.pids


def die_once(marker: Path) -> str:
    """Kill this worker, unless the file is there already, which it is the next time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def fill_slowly(out: npt.NDArray[Any], value: int, seconds: float) -> int:
    """Write a value into an array some time later; returns the worker's process id."""
    time.sleep(seconds)
    out[...] = value
    return os.getpid()


def loaded(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of these modules the worker has imported."""
    return tuple(name for name in names if name in sys.modules)


def raise_unpicklable() -> None:
    """Raise an exception that cannot be pickled."""
    error = ValueError("it holds a function")
    error.payload = lambda: None  # type: ignore[attr-defined]
    raise error


class OneWayError(Exception):
    """An exception that pickles, but fails to come back."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def raise_one_way() -> None:
    """Raise an exception that pickles, but fails to come back."""
    raise OneWayError("lost", "sea")


def seeded_ref(
    seed: int, width: int, height: int, *, deaths: Path | None = None, hangs: bool = False
) -> SlideRef:
    """A slide of random pixels for `SeededSource`; its id is the seed.

    Args:
        deaths: a folder in which a file is made for each worker that the slide kills; there
            are as many deaths as the folder's name says.
        hangs: whether decoding never ends.
    """
    facts = {"width": width, "height": height, "deaths": str(deaths or ""), "hangs": hangs}
    return SlideRef(str(seed), json.dumps(facts))


def seeded_pixels(ref: SlideRef) -> Pixels:
    """The pixels of a `seeded_ref`, ``(height, width, 3)`` uint8."""
    facts = json.loads(ref.uri)
    shape = (facts["height"], facts["width"], 3)
    return np.random.default_rng(int(ref.id)).integers(0, 256, shape, np.uint8)


def inspect(ref: SlideRef) -> Slide:
    """The slide of a `seeded_ref`: one level in tiles of 16."""
    if not ref.uri.startswith("{"):
        raise CannotOpen(f"{ref.uri}: not a slide of `seeded_ref`")
    facts = json.loads(ref.uri)
    size = Size(facts["width"], facts["height"])
    return Slide(
        ref,
        Pyramid((PyramidLevel(0, size, (1.0, 1.0), Size(16, 16)),)),
        "uint8",
        3,
        vendor="seeded",
    )


def read_box(ref: SlideRef, level: int, box: Box, out: npt.NDArray[Any]) -> tuple[Damage, ...]:
    """See `streamwsi.sources.base.PooledSource`; dies and hangs as the reference says."""
    facts = json.loads(ref.uri)
    if facts["deaths"]:
        folder = Path(facts["deaths"])
        if len([*folder.iterdir()]) < int(folder.name):
            (folder / f"{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    while facts["hangs"]:
        time.sleep(1.0)
    out[...] = seeded_pixels(ref)[box.y : box.bottom, box.x : box.right]
    return ()


@dataclass(frozen=True, slots=True)
class SeededSource(PooledSource):
    """Slides of random pixels, made in the workers; see `seeded_ref`."""

    inspect: ClassVar[Inspect] = inspect
    read_box: ClassVar[ReadBox] = read_box

    def accepts(self, ref: SlideRef) -> bool:
        """See `streamwsi.stages.Source`."""
        return ref.uri.startswith("{")
