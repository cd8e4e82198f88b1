"""Politeness: tiles per second by a clock of the test's own, and the niceness of workers."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.geometry import Size
from streamwsi.limits import Limits
from streamwsi.paces import Pace
from streamwsi.samplers.sliding_window import SlidingWindow
from streamwsi.slides import SlideRef
from streamwsi.testing.faults import ScriptedSource
from streamwsi.testing.synthetic import slide_array
from streamwsi.workers import open_workers


@dataclass
class Clock:
    """Time that passes only while somebody sleeps."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@settings(deadline=None, max_examples=60)
@given(
    takes=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 5)), min_size=1, max_size=30),
    rate=st.floats(0.5, 100),
)
async def test_no_interval_holds_more_than_the_rate_but_for_one_job(
    takes: list[tuple[int, float]], rate: float
) -> None:
    clock = Clock()
    pace = Pace(rate, clock, clock.sleep)
    turns = []
    for count, idle in takes:
        clock.now += idle
        await pace.take(count)
        turns.append((clock.now, count))
    for i, (begin, first) in enumerate(turns):
        for j in range(i, len(turns)):
            later = sum(count for _, count in turns[i : j + 1])
            assert later - turns[j][1] <= (turns[j][0] - begin) * rate * (1 + 1e-9) + 1e-6
        assert first == takes[i][0]


async def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    clock = Clock()
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    pace = Pace(10, clock, sleep)
    for count in (5, 20, 1, 1):
        await pace.take(count)  # all at the same moment
    assert asked == pytest.approx([0.5, 2.5, 2.6])


async def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    for _ in range(5):
        await Pace(None, clock, clock.sleep).take(10**9)
    assert clock.slept == []


async def test_tiles_of_all_slides_are_counted() -> None:
    array = slide_array(Size(300, 200))
    source = ScriptedSource({"a": (array,), "b": (array,)}, 64)
    limits = Limits(worker_kind="inline", memory="16 MiB", reads_per_second=4)
    clock = Clock()
    async with open_workers(limits) as workers:
        workers.pace = Pace(limits.reads_per_second, clock, clock.sleep)
        decoded = 0
        for id_ in ("a", "b"):
            async with source.open(SlideRef(id_, id_), workers) as reader:
                plan = SlidingWindow(100).plan(reader.slide)
                async for chunk in reader.bigchunks(plan.regions(), 2**22):
                    chunk.release()
                decoded += reader.tally.tiles_decoded
        assert decoded == 2 * 5 * 4
        await workers.pace.take(1)
    # The next turn comes when all tiles before it have had their time.
    assert clock.now - 100.0 == pytest.approx(decoded / 4)


async def test_a_run_keeps_to_its_limits() -> None:
    async with open_workers(Limits(worker_kind="inline", memory=2**20)) as workers:
        with anyio.fail_after(5):
            await workers.pace.take(10**12)
    limits = Limits(worker_kind="inline", memory=2**20, reads_per_second=1e-3)
    async with open_workers(limits) as workers:
        await workers.pace.take(1)
        with anyio.move_on_after(0.01) as scope:
            await workers.pace.take(1)
        assert scope.cancelled_caught


async def test_worker_processes_are_nicer() -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    for nice in (None, 0, 3):
        async with open_workers(Limits(workers=1, memory=2**20, nice=nice)) as workers:
            got = await workers.call(os.getpriority, os.PRIO_PROCESS, 0)
        assert got == min(19, mine + (nice or 0))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the policy")
async def test_worker_processes_do_batch_work() -> None:
    """They do not wake up into the turns of others; this process keeps its policy."""
    mine = os.sched_getscheduler(0)
    async with open_workers(Limits(workers=1, memory=2**20)) as workers:
        assert await workers.call(os.sched_getscheduler, 0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == mine


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reads_per_second": 0}, r"limits\.reads_per_second must be positive, not 0"),
        ({"reads_per_second": -1.5}, r"limits\.reads_per_second must be positive"),
        ({"reads_per_second": float("inf")}, r"limits\.reads_per_second must be positive"),
        ({"reads_per_second": float("nan")}, r"limits\.reads_per_second must be positive"),
        ({"nice": -1}, r"limits\.nice must be 0 to 19, not -1"),
        ({"nice": 20}, r"limits\.nice must be 0 to 19"),
        ({"nice": 5, "worker_kind": "threads"}, "start the whole program with nice instead"),
    ],
)
def test_impossible_limits_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Limits(**wrong)


def test_the_command_line_has_both_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from streamwsi.cli import app
    from streamwsi.cli import heatmap as command

    seen: list[Limits] = []

    def run_reported(pipeline: object, slides: object, limits: Limits, *_: object) -> None:
        seen.append(limits)
        raise ConfigError("enough")

    monkeypatch.setattr(command, "run_reported", run_reported)
    options = ["--model", "hematoxylin", "--out", "out", "--reads-per-second", "2.5", "--nice", "7"]
    CliRunner().invoke(app, ["heatmap", "a.svs", *options])
    [limits] = seen
    assert (limits.reads_per_second, limits.nice) == (2.5, 7)
