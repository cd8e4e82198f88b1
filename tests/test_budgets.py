"""Budgets: what fits is divided, what does not is refused with the smallest that would."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamwsi import Limits, Pipeline, run
from streamwsi.budgets import Budget, reading_share
from streamwsi.chunks import Batch, Region
from streamwsi.errors import ConfigError
from streamwsi.geometry import Grid, Size
from streamwsi.processors import FunctionProcessor
from streamwsi.processors.base import RunningBatchProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr, Pdmcsv
from streamwsi.sources import MemorySource
from streamwsi.stages import HoldsBuffers, HoldsOutput
from streamwsi.testing.faults import Checksums, RecordingSink, ScriptedSource
from streamwsi.testing.outputs import grid_plan
from streamwsi.testing.synthetic import slide_array
from streamwsi.values import ValueType

MIB = 2**20
#: 16 windows of 3 KiB in a row.
PLAN = grid_plan(Grid(Size(512, 512), Size(32, 32), Size(32, 32)))


class Reader:
    """Needs a MiB."""

    slide, tally, bigchunks = PLAN.slide, None, None

    def needs(self, region: Region) -> int:
        return MIB


class Sink(RecordingSink):
    """Holds two."""

    def memory(self, plan: Any, values: ValueType | None) -> int:
        return 2 * MIB


@contextmanager
def processor(at_once: int, batch: int = 8) -> Iterator[RunningBatchProcessor[Any]]:
    """Half a MiB per window."""
    with ThreadPoolExecutor(at_once) as threads:
        yield RunningBatchProcessor(
            lambda batch: np.zeros(len(batch)), batch, {}, threads, at_once, lambda *_: MIB // 2
        )


def share(nbytes: int, lanes: int, stage: Any, sink: Any = None) -> int:
    reader: Any = Reader()
    return reading_share(Budget(nbytes, lanes), reader, PLAN, stage, sink or Sink())


def test_what_says_how_much_it_holds() -> None:
    with processor(1) as stage:
        assert isinstance(stage, HoldsBuffers)
    for sink in (HeatmapZarr("out"), Pdmcsv("out")):
        assert isinstance(sink, HoldsOutput)
        assert 0 < sink.memory(PLAN, None) <= 256 * 64 * 1024


@pytest.mark.parametrize(("lanes", "at_once"), [(1, 1), (1, 16), (3, 4)])
def test_the_parts_fit_into_the_limit(lanes: int, at_once: int) -> None:
    batch_copies = 3 * 8 * 32 * 32 * 3  # regions of 16 windows: three batches of eight at most
    values = 6 * 8 * 32 * 32 * 3  # six batches of values that are taken to be as large
    for nbytes in range(20 * MIB, 200 * MIB, 7 * MIB):
        with processor(at_once) as stage:
            for_reader = share(nbytes, lanes, stage)
            buffers = stage.fit(PLAN, 0)
            assert buffers == 4 * MIB
            assert for_reader >= MIB
            assert lanes * (for_reader + 2 * MIB + batch_copies + values) + buffers <= nbytes


def test_more_memory_means_more_buffers() -> None:
    for nbytes, buffers in ((20, 2), (40, 4), (10_000, 16)):
        with processor(16) as stage:
            share(nbytes * MIB, 1, stage)
            assert stage._turns.most == buffers


def test_the_smallest_that_would_do_does() -> None:
    for lanes in (1, 3):
        with processor(16) as stage:
            with pytest.raises(ConfigError, match="the smallest that does is") as caught:
                share(MIB, lanes, stage)
            found = re.search(r"smallest that does is (\d+) MiB", str(caught.value))
            assert found is not None
            smallest = int(found[1])
            assert share(smallest * MIB, lanes, stage) >= MIB
            with pytest.raises(ConfigError):
                share((smallest - 1) * MIB, lanes, stage)


def test_stages_that_hold_nothing_of_their_own() -> None:
    class Plain:
        batch_size = 1

    # One batch of one window may reach over the end of a region, and six values wait.
    assert share(10 * MIB, 2, Plain(), RecordingSink()) == 5 * MIB - 7 * 3 * 32 * 32


def test_values_that_are_known_count() -> None:
    """Six batches of them wait for the sink, or are on the way to it."""
    reader: Any = Reader()
    with processor(1) as stage:
        shares = [
            reading_share(Budget(100 * MIB, 1), reader, PLAN, stage, RecordingSink(), values)
            for values in (ValueType((1,), np.dtype("f4")), ValueType((2, 64, 64), np.dtype("f4")))
        ]
        assert shares[0] - shares[1] == 6 * 8 * (2 * 64 * 64 - 1) * 4
        huge = ValueType((2, 256, 256), np.dtype("f4"))
        with pytest.raises(ConfigError, match="smallest that does is 32 MiB"):
            reading_share(Budget(30 * MIB, 1), reader, PLAN, stage, Sink(), huge)


async def test_maps_of_a_function_are_refused_when_the_first_are_too_large(tmp_path: Path) -> None:
    """What it gives is not known before; merging it would take more than the limit."""
    calls = []

    def maps(batch: Batch) -> Any:
        calls.append(len(batch))
        return np.repeat(batch.pixels[..., :1].transpose(0, 3, 1, 2), 10, axis=1) / 255

    pipeline = Pipeline(
        source=MemorySource({"a": (np.zeros((1200, 4000, 1), np.uint8),)}),
        sampler=SlidingWindow(256, 192),
        processor=FunctionProcessor(maps, batch_size=4),
        sink=HeatmapZarr(tmp_path),
    )
    limits = Limits(worker_kind="inline", memory="64 MiB")
    (outcome,) = (await run(pipeline, ["a"], limits=limits)).outcomes
    assert isinstance(outcome.cause, ConfigError)
    found = re.search(r"smallest that does is (\d+) MiB", outcome.error or "")
    assert found is not None
    assert len(calls) < 5
    limits = Limits(worker_kind="inline", memory=f"{found[1]} MiB")
    report = await run(pipeline, ["a"], limits=limits)
    report.raise_for_failures()


async def test_too_small_a_limit_is_refused_before_anything_is_opened() -> None:
    sink = RecordingSink()
    pipeline = Pipeline(
        source=ScriptedSource({"a": (slide_array(Size(600, 600)),)}),
        sampler=SlidingWindow(64),
        processor=Checksums(),
        sink=sink,
    )
    limits = Limits(worker_kind="inline", memory="100 KiB")
    (outcome,) = (await run(pipeline, ["a"], limits=limits)).outcomes
    assert isinstance(outcome.cause, ConfigError)
    assert "the memory limit of 0.09766 MiB does not hold" in (outcome.error or "")
    assert sink.records == {}


def test_no_more_buffers_are_used_than_were_granted() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def compute(batch: Batch) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.01)
        with lock:
            inside -= 1
        return np.zeros(len(batch))

    with ThreadPoolExecutor(8) as threads:
        stage = RunningBatchProcessor(compute, 4, {}, threads, 8, lambda *_: MIB)
        assert stage.fit(PLAN, 14 * MIB) == 12 * MIB
        batches: list[Any] = [Batch.__new__(Batch) for _ in range(16)]
        for batch in batches:
            batch.places, batch.parts, batch.valid = (), (), np.ones(0, np.bool_)
        list(threads.map(stage._values, batches))
    assert most == 3
