"""Runs: many slides, isolation, cancellation, and the same result whatever the limits."""

from __future__ import annotations

import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamwsi.errors import ConfigError, SlideFailed
from streamwsi.geometry import Box
from streamwsi.limits import Limits
from streamwsi.pipelines import Pipeline
from streamwsi.reports import Event, PiecesWritten, RunReport, SlideEnded, SlideStarted
from streamwsi.runs import run, run_sync
from streamwsi.samplers.sliding_window import SlidingWindow
from streamwsi.slides import SlideRef
from streamwsi.sources.memory import MemorySource
from streamwsi.testing.faults import Checksums, Fault, RecordingSink, ScriptedSource
from streamwsi.testing.worker_faults import SeededSource, seeded_pixels, seeded_ref

INLINE = Limits(worker_kind="inline", memory="16 MiB")
IDS = ("a", "b", "c", "d")


def arrays(ids: tuple[str, ...] = IDS) -> dict[str, tuple[Any, ...]]:
    return {
        id_: (np.random.default_rng(i).integers(0, 200, (50, 30, 3), np.uint8),)
        for i, id_ in enumerate(ids)
    }


def pipeline(**stages: Any) -> Pipeline[Any]:
    defaults: dict[str, Any] = {
        "source": ScriptedSource(arrays(), 16),
        "sampler": SlidingWindow(8, 4),
        "processor": Checksums(8),
        "sink": RecordingSink(),
    }
    return Pipeline(**(defaults | stages))


def expected(array: Any) -> list[float]:
    windows = [
        array[y : y + 8, x : x + 8].tobytes() for y in range(0, 43, 4) for x in range(0, 23, 4)
    ]
    return [float(zlib.crc32(window)) for window in windows]


def records(report: RunReport, sink: RecordingSink) -> dict[str, list[float]]:
    return {o.slide: [*sink.records[o.slide].values.values()] for o in report.outcomes}


@pytest.mark.parametrize("slides", [1, 2, 4, 9])
async def test_every_slide_gives_its_own_result(slides: int) -> None:
    sink = RecordingSink()
    limits = replace(INLINE, slides=slides)
    report = await run(pipeline(sink=sink), [f"/x/{id_}.tif" for id_ in IDS], limits=limits)
    assert [o.slide for o in report.outcomes] == [*IDS]
    assert [o.uri for o in report.outcomes] == [f"/x/{id_}.tif" for id_ in IDS]
    assert {o.status for o in report.outcomes} == {"done"}
    assert records(report, sink) == {i: expected(a[0]) for i, a in arrays().items()}
    assert report.failures == ()
    report.raise_for_failures()


def test_the_same_without_a_loop() -> None:
    sink = RecordingSink()
    report = run_sync(pipeline(sink=sink), ["a.tif"], limits=INLINE)
    assert records(report, sink) == {"a": expected(arrays()["a"][0])}


async def test_one_bad_slide_does_not_hurt_the_others() -> None:
    """Neither one that fails while others run, nor one that cannot be opened."""
    source = ScriptedSource(arrays(("a", "c", "d")), 16, (Fault(Box(5, 40, 1, 1), "fail"),))
    good = ScriptedSource(arrays(("a", "c", "d")), 16)
    sink = RecordingSink()
    stages = pipeline(source=Mixed(good, source, "c"), sink=sink)
    report = await run(stages, IDS, limits=replace(INLINE, slides=3))
    assert {o.slide: (o.status, o.stage) for o in report.outcomes} == {
        "a": ("done", None),
        "b": ("failed", "open"),
        "c": ("failed", "read"),
        "d": ("done", None),
    }
    assert [o.slide for o in report.failures] == ["b", "c"]
    with pytest.raises(ExceptionGroup, match="2 of 4 slides failed") as caught:
        report.raise_for_failures()
    causes = caught.value.exceptions
    assert [(type(c), getattr(c, "slide", "")) for c in causes] == [
        (SlideFailed, "b"),
        (SlideFailed, "c"),
    ]
    assert sink.records["d"].complete


@dataclass(frozen=True)
class Mixed:
    """Two sources: one slide is opened by the second."""

    first: ScriptedSource
    second: ScriptedSource
    slide: str

    def accepts(self, ref: SlideRef) -> bool:
        return True

    def open(self, ref: SlideRef, workers: Any) -> Any:
        return (self.second if ref.id == self.slide else self.first).open(ref, workers)


async def test_no_more_slides_at_once_than_the_limit() -> None:
    going: set[str] = set()
    most = 0

    def observe(event: Event) -> None:
        nonlocal most
        if isinstance(event, SlideStarted):
            going.add(event.slide)
            most = max(most, len(going))
        elif isinstance(event, SlideEnded):
            going.discard(event.outcome.slide)

    sink = RecordingSink(delay_s=0.001)
    limits = replace(INLINE, slides=2)
    await run(pipeline(sink=sink), IDS, limits=limits, observers=[observe])
    assert most == 2


async def test_observers_see_each_slide_from_start_to_end() -> None:
    events: list[Event] = []
    report = await run(pipeline(), ["a", "b"], limits=INLINE, observers=[events.append])
    for outcome in report.outcomes:
        mine = [
            e for e in events if outcome.slide == getattr(e, "slide", getattr(e, "outcome", None))
        ]
        assert isinstance(mine[0], SlideStarted)
        written = sum(e.count for e in mine if isinstance(e, PiecesWritten))
        assert written == outcome.pieces == outcome.total == 66
        assert SlideEnded(outcome) in events


async def test_an_observer_that_raises_is_ignored() -> None:
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    report = await run(pipeline(), ["a"], limits=INLINE, observers=[broken, seen.append])
    assert report.outcomes[0].status == "done"
    assert isinstance(seen[-1], SlideEnded)


async def test_slides_of_one_id_are_refused_before_anything_is_done() -> None:
    sink = RecordingSink()
    with pytest.raises(ConfigError, match=r"2 slides have the id 'a' .*: x/a\.tif, y/a\.svs"):
        await run(pipeline(sink=sink), ["x/a.tif", "b.tif", "y/a.svs"], limits=INLINE)
    assert sink.records == {}


async def test_no_slides_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are no slides"):
        await run(pipeline(), [], limits=INLINE)


@dataclass(frozen=True)
class Absent:
    """A processor whose model cannot be had."""

    @asynccontextmanager
    async def open(self, workers: Any) -> AsyncIterator[Any]:
        raise ConfigError("there is no such model")
        yield


async def test_a_model_that_cannot_be_had_ends_the_run_with_that_error() -> None:
    """As itself, not in a group; and nothing goes on after it."""
    with pytest.raises(ConfigError, match="there is no such model"):
        await run(pipeline(processor=Absent()), ["a"], limits=INLINE)
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join(1.0)
        assert not timer.is_alive()


async def test_a_run_where_nothing_fits_is_misconfigured() -> None:
    report = await run(pipeline(sampler=SlidingWindow(500)), ["a", "b"], limits=INLINE)
    assert report.misconfigured
    assert [type(o.cause) for o in report.outcomes] == [ConfigError, ConfigError]
    report = await run(pipeline(), ["a", "missing"], limits=INLINE)
    assert not report.misconfigured


@pytest.mark.parametrize("after", [0, 3, 20])
async def test_a_cancelled_run_says_which_slides_were_interrupted(after: int) -> None:
    events: list[Event] = []
    written = anyio.Event()

    def observe(event: Event) -> None:
        events.append(event)
        if sum(isinstance(e, PiecesWritten) for e in events) > after:
            written.set()

    async def start() -> None:
        sink = RecordingSink(delay_s=0.002)
        await run(pipeline(sink=sink), IDS, limits=replace(INLINE, slides=2), observers=[observe])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await written.wait()
            tasks.cancel_scope.cancel()
    ended = {e.outcome.slide: e.outcome for e in events if isinstance(e, SlideEnded)}
    started = {e.slide for e in events if isinstance(e, SlideStarted)}
    assert started <= {*ended}
    interrupted = [o for o in ended.values() if o.status == "interrupted"]
    assert interrupted
    for outcome in interrupted:
        counts = [
            e.count for e in events if isinstance(e, PiecesWritten) and e.slide == outcome.slide
        ]
        assert outcome.pieces == sum(counts) < 66


async def test_a_hung_worker_does_not_hold_up_a_cancelled_run() -> None:
    """It is killed when the time of grace is over."""
    limits = Limits(workers=1, memory="16 MiB", grace_s=0.3)
    with anyio.fail_after(10):
        with anyio.move_on_after(0.7) as scope:
            hanging = seeded_ref(1, 30, 50, hangs=True)
            await run(pipeline(source=SeededSource()), [hanging], limits=limits)
    assert scope.cancelled_caught


async def test_a_slow_end_is_not_cut_short_where_nothing_hangs() -> None:
    """The time of grace runs only once the run was cancelled."""
    limits = Limits(workers=1, memory="16 MiB", grace_s=0.01)
    sink = RecordingSink(delay_s=0.01)
    ref = seeded_ref(1, 30, 50)
    report = await run(pipeline(source=SeededSource(), sink=sink), [ref], limits=limits)
    assert records(report, sink) == {"1": expected(seeded_pixels(ref))}


@pytest.mark.parametrize(
    "limits",
    [
        Limits(workers=2, memory="16 MiB"),
        Limits(workers=1, memory="16 MiB", slides=1),
        Limits(workers=3, memory="64 KiB", slides=3, worker_kind="threads"),
        Limits(workers=2, memory="16 MiB", worker_kind="threads"),
        Limits(memory="80 KiB", worker_kind="inline"),
    ],
    ids=lambda limits: f"{limits.worker_kind}-{limits.memory}",
)
async def test_the_result_is_the_same_whatever_the_limits(limits: Limits) -> None:
    sink = RecordingSink()
    refs = [seeded_ref(seed, 30, 50) for seed in (1, 2, 3)]
    report = await run(pipeline(source=SeededSource(), sink=sink), refs, limits=limits)
    assert records(report, sink) == {ref.id: expected(seeded_pixels(ref)) for ref in refs}


async def test_a_worker_that_dies_costs_its_pixels_only(tmp_path: Path) -> None:
    """Once is no loss at all: the job is made again."""
    limits = Limits(workers=1, memory="16 MiB")
    for times, invalid in ((1, 0), (2, 66)):
        (folder := tmp_path / f"{times}").mkdir()
        stages = pipeline(source=SeededSource())
        report = await run(stages, [seeded_ref(1, 30, 50, deaths=folder)], limits=limits)
        assert [(o.status, o.invalid) for o in report.outcomes] == [("done", invalid)]


async def test_a_memory_source_needs_no_decoding() -> None:
    sink = RecordingSink()
    report = await run(
        pipeline(source=MemorySource(arrays()), sink=sink),
        IDS,
        limits=replace(INLINE, memory=10**6),
    )
    assert records(report, sink) == {i: expected(a[0]) for i, a in arrays().items()}
    assert {o.tiles_decoded for o in report.outcomes} == {0}
