"""Lanes: order, resuming, and who is to blame."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.budgets import Budget, reading_share
from streamwsi.chunks import Batch, BigChunk, Pieces, Plan, Receipt, Region, SmallChunks
from streamwsi.errors import (
    CannotOpen,
    CannotProcess,
    CannotRead,
    CannotWrite,
    ConfigError,
    ContractBroken,
    PlanChanged,
    SlideFailed,
)
from streamwsi.geometry import Box, Grid, Size
from streamwsi.lanes import Lane
from streamwsi.limits import Limits
from streamwsi.reports import Event, PiecesWritten, SlideOutcome, SlideStarted
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow, windows_of
from streamwsi.slides import Slide, SlideRef
from streamwsi.stages import Recipe
from streamwsi.testing.faults import Checksums, Fault, RecordingSink, ScriptedSource
from streamwsi.workers import open_workers

ARRAY = np.random.default_rng(1).integers(0, 200, (60, 40, 3), np.uint8)
REF = SlideRef("slide", "slide.tif")
COUNT = 9 * 14


@dataclass(frozen=True, slots=True)
class SmallRegions:
    """Windows of 8 at a stride of 4 in regions of one row, two panels."""

    def plan(self, slide: Slide) -> GridPlan:
        grid = Grid(slide.level(0).size, Size(8, 8), Size(4, 4), 5)
        return GridPlan(slide, slide.level(0), grid, 1, {"type": "small-regions"})

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        async for chunk in bigchunks:
            for windows in windows_of(plan, chunk):
                yield windows


def scripted(*faults: Fault, jitter: int = 0, seed: int = 0) -> ScriptedSource:
    return ScriptedSource({"slide": (ARRAY,)}, 8, faults, jitter, seed)


class Stages:
    """A lane's stages, of which a test replaces some."""

    def __init__(
        self,
        source: Any = None,
        sampler: Any = None,
        processor: Any = None,
        sink: Any = None,
        memory: int = 2**20,
    ) -> None:
        self.source = source or scripted()
        self.sampler = sampler or SmallRegions()
        self.processor = processor or Checksums(8)
        self.sink = sink or RecordingSink()
        self.memory = memory
        self.events: list[Event] = []

    async def run(self) -> SlideOutcome:
        limits = Limits(worker_kind="inline", memory=2**20)
        with anyio.fail_after(10):
            async with open_workers(limits) as workers, self.processor.open(workers) as processor:
                lane = Lane(
                    REF,
                    self.source,
                    self.sampler,
                    processor,
                    self.sink,
                    workers,
                    Budget(self.memory, 1),
                    False,
                    self.events.append,
                )
                outcome = await lane.run()
                free = sum(block.nbytes for block in workers.arena._free)
                assert free == workers.arena.nbytes, "the lane kept memory"
        return outcome


def expected_values() -> dict[int, float]:
    grid = Grid(Size(40, 60), Size(8, 8), Size(4, 4), 5)
    boxes = [grid.box(*grid.cell(i)) for i in range(COUNT)]
    crop = [ARRAY[b.y : b.bottom, b.x : b.right].tobytes() for b in boxes]
    return {i: float(zlib.crc32(pixels)) for i, pixels in enumerate(crop)}


async def test_every_window_arrives_once_and_in_order() -> None:
    stages = Stages()
    outcome = await stages.run()
    record = stages.sink.records["slide"]
    assert (outcome.status, outcome.pieces, outcome.total) == ("done", COUNT, COUNT)
    assert record.values == expected_values()
    assert [*record.values] == [*range(COUNT)]
    assert record.starts == [*range(0, COUNT, 8)]
    assert record.complete
    assert stages.events[0] == SlideStarted("slide", COUNT, 0)
    assert [e.count for e in stages.events[1:] if isinstance(e, PiecesWritten)] == [8] * 15 + [6]
    assert (outcome.tiles_decoded, outcome.distinct_tiles) == (48, 40)
    assert outcome.amplification == 1.2
    assert {*outcome.stages} == {"read", "sample", "process", "write"}
    assert outcome.outputs == ("recording:slide",)


@settings(deadline=None, max_examples=40)
@given(resume=st.integers(0, COUNT), batch=st.integers(1, 50))
async def test_a_resumed_lane_gives_exactly_the_rest_in_the_same_batches(
    resume: int, batch: int
) -> None:
    before, after = Recorder(batch), Recorder(batch)
    await Stages(processor=before).run()
    rest = Stages(processor=after, sink=RecordingSink(resume_at=resume))
    outcome = await rest.run()
    assert (outcome.status, outcome.resumed_at, outcome.pieces) == ("done", resume, COUNT - resume)
    values = rest.sink.records["slide"].values
    assert values == {i: v for i, v in expected_values().items() if i >= resume}
    # The model sees batches of the uninterrupted run, all of those that hold a needed piece.
    if resume < COUNT:
        assert after.seen == [b for b in before.seen if b[1] > resume]
    else:
        assert after.seen == []
        assert outcome.tiles_decoded == 0


class Recorder:
    """`Checksums` that notes the batches which it is given."""

    config: Mapping[str, Any] = {}

    def __init__(self, batch_size: int) -> None:
        self._stage = Checksums(batch_size)
        self.seen: list[tuple[int, int]] = []

    @asynccontextmanager
    async def open(self, workers: Any) -> AsyncIterator[Any]:
        async with self._stage.open(workers) as running:
            self.batch_size, self._running = running.batch_size, running
            yield self

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Any], None]:
        async for some in self._running.pieces(batches):
            self.seen.append((some.places.start, some.places.stop))
            yield some


@settings(deadline=None, max_examples=40)
@given(
    spare=st.sampled_from([-1, 0, 0, 1, 1000, 20_000]),
    batch=st.sampled_from([1, 7, 64, 500]),
    jitter=st.integers(0, 5),
    seed=st.integers(0, 9),
)
async def test_memory_and_timing_never_change_the_result(
    spare: int, batch: int, jitter: int, seed: int
) -> None:
    """Down to the memory of one region; below it the lane says so, and begins no output."""
    source = scripted(jitter=jitter, seed=seed)
    memory = await least_memory(batch) + spare
    stages = Stages(source, processor=Checksums(batch), memory=memory)
    outcome = await stages.run()
    if spare < 0:
        assert isinstance(outcome.cause, ConfigError)
        assert stages.sink.records == {}
    else:
        assert outcome.status == "done"
        assert stages.sink.records["slide"].values == expected_values()


async def least_memory(batch: int) -> int:
    """What one region and the batches take, as `streamwsi.budgets` counts it."""
    async with (
        open_workers(Limits(worker_kind="inline", memory=4096)) as workers,
        scripted().open(REF, workers) as reader,
        Checksums(batch).open(workers) as processor,
    ):
        plan = SmallRegions().plan(reader.slide)
        share = reading_share(Budget(2**40, 1), reader, plan, processor, RecordingSink())
        return 2**40 - share + reader.needs(next(plan.regions()))


async def test_damaged_windows_are_nan_and_counted() -> None:
    spot = Box(17, 30, 1, 1)
    stages = Stages(scripted(Fault(spot, "damage")))
    outcome = await stages.run()
    values = stages.sink.records["slide"].values
    grid = Grid(Size(40, 60), Size(8, 8), Size(4, 4), 5)
    tile = Box(16, 24, 8, 8)
    touched = {i for i in values if not grid.box(*grid.cell(i)).intersection(tile).empty}
    assert {i for i, value in values.items() if np.isnan(value)} == touched
    assert {i: v for i, v in values.items() if i not in touched} == {
        i: v for i, v in expected_values().items() if i not in touched
    }
    assert (outcome.status, outcome.invalid) == ("done", len(touched))
    # Both panels touch the tile.
    assert (outcome.damaged_tiles, {d.box for d in outcome.damage}) == (2, {tile})


class Broken(Exception):
    """What no stage declares."""


@dataclass
class Failing:
    """A stage that fails at one of its methods."""

    stage: Any
    method: str
    error: Exception

    def __getattr__(self, name: str) -> Any:
        if name == self.method:
            raise self.error
        return getattr(self.stage, name)


def faulty(kind: Any) -> Stages:
    return Stages(scripted(Fault(Box(3, 33, 1, 1), kind)))


@pytest.mark.parametrize(
    ("stages", "stage", "error", "says"),
    [
        (lambda: Stages(source=ScriptedSource({})), "open", CannotOpen, "no array"),
        (lambda: Stages(sampler=SlidingWindow(99)), "open", ConfigError, "kernel size 99×99"),
        (lambda: faulty("fail"), "read", CannotRead, "the script fails"),
        (lambda: Stages(memory=10), "open", ConfigError, "memory limit"),
        (lambda: Stages(processor=Checksums(8, fail_at=3)), "process", CannotProcess, "batch 3"),
        (lambda: Stages(sink=RecordingSink(fail_at=50)), "write", CannotWrite, "piece 50"),
        (
            lambda: Stages(sink=Failing(RecordingSink(), "open", PlanChanged("other plan"))),
            "write",
            PlanChanged,
            "other plan",
        ),
        (
            lambda: Stages(sink=Failing(RecordingSink(), "outputs", CannotWrite("no folder"))),
            "write",
            CannotWrite,
            "no folder",
        ),
        (
            lambda: Stages(sampler=Failing(SmallRegions(), "smallchunks", Broken("oh"))),
            "sample",
            Broken,
            r"slide\.tif: unexpected Broken: oh",
        ),
        (lambda: Stages(sampler=ShortSampler()), "sample", ContractBroken, "ended after 124"),
        (lambda: Stages(processor=Lazy(0, 1)), "write", ContractBroken, "gave piece 8 where 0"),
        (lambda: Stages(processor=Lazy(15, 16)), "write", ContractBroken, "gave 120 of the 126"),
        (lambda: Stages(sink=ClosingSink(fails=True)), "write", CannotWrite, "closing"),
        (lambda: Stages(source=LeavingSource()), "read", CannotRead, "leaving"),
        (lambda: Stages(processor=Grouped()), "process", CannotProcess, "in a group"),
    ],
)
async def test_a_failure_names_its_stage_and_its_lone_cause(
    stages: Callable[[], Stages], stage: str, error: type[Exception], says: str
) -> None:
    used = stages()
    outcome = await used.run()
    assert (outcome.status, outcome.stage) == ("failed", stage)
    cause = outcome.cause
    if isinstance(cause, SlideFailed):
        assert (cause.slide, cause.stage) == ("slide", stage)
        assert str(cause) == outcome.error
        assert isinstance(cause.__cause__, Exception)
        cause = cause.__cause__
    assert type(cause) is error
    assert outcome.error is not None
    assert says.replace("\\", "") in outcome.error
    records = getattr(used.sink, "records", {})
    assert all(record.complete == (says == "leaving") for record in records.values())


@pytest.mark.parametrize("kind", ["fail", "die"])
async def test_a_sink_never_takes_a_failed_slide_for_a_finished_one(kind: str) -> None:
    stages = faulty(kind)
    outcome = await stages.run()
    # A dead worker costs pixels, not the slide.
    assert outcome.status == ("failed" if kind == "fail" else "done")
    assert stages.sink.records["slide"].complete == (kind == "die")


@dataclass(frozen=True, slots=True)
class ShortSampler(SmallRegions):
    """Keeps the last two windows to itself."""

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        async for chunk in bigchunks:
            for windows in windows_of(plan, chunk):
                n = min(len(windows), plan.count - 2 - windows.first)
                yield SmallChunks(windows.first, windows.pixels[:n], windows.valid[:n], chunk)


@dataclass(frozen=True)
class Lazy:
    """A processor that leaves out the batches from `begin` to `end`."""

    begin: int
    end: int

    @asynccontextmanager
    async def open(self, workers: Any) -> AsyncIterator[Any]:
        async with Checksums(8).open(workers) as running:
            self_ = self

            class Running:
                batch_size, config = 8, running.config

                async def pieces(
                    self, batches: AsyncIterator[Batch]
                ) -> AsyncGenerator[Pieces[Any], None]:
                    async for some in running.pieces(batches):
                        if not self_.begin <= some.places.start // 8 < self_.end:
                            yield some

            yield Running()


@dataclass(frozen=True)
class Grouped:
    """A processor that works in a task group, which wraps what it raises."""

    batch_size = 8
    config: ClassVar[Mapping[str, Any]] = {}

    @asynccontextmanager
    async def open(self, workers: Any) -> AsyncIterator[Any]:
        yield self

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Any], None]:
        async for batch in batches:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._fail)
            yield Pieces(batch.places, [0] * len(batch), batch.valid)

    async def _fail(self) -> None:
        raise CannotProcess("in a group")


@dataclass(frozen=True)
class ClosingSink(RecordingSink):
    """A sink that fails, or not, when its output is closed; it notes that it was."""

    fails: bool = False

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Recipe, *, overwrite: bool) -> AsyncIterator[Any]:
        async with RecordingSink.open(self, plan, recipe, overwrite=overwrite) as writer:
            yield writer
        self.records["slide"].complete = False
        if self.fails:
            raise CannotWrite("closing")


@dataclass(frozen=True)
class LeavingSource:
    """A source that fails when the slide is closed."""

    @asynccontextmanager
    async def open(self, ref: SlideRef, workers: Any) -> AsyncIterator[Any]:
        async with scripted().open(ref, workers) as reader:
            yield reader
        raise CannotRead("leaving")


class EarlySink(RecordingSink):
    """A sink that is content with a few pieces, and closes the rest, or not."""

    closes = False

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Recipe, *, overwrite: bool) -> AsyncIterator[Any]:
        closes = self.closes

        class Writer:
            resume_at = 0

            async def write(self, pieces: AsyncGenerator[Pieces[Any], None]) -> Receipt:
                await anext(pieces)
                if closes:
                    await pieces.aclose()
                return Receipt("slide", 8, ())

        yield Writer()


class EarlyClosingSink(EarlySink):
    closes = True


@pytest.mark.parametrize("sink", [EarlySink, EarlyClosingSink])
async def test_a_sink_that_ends_early_is_told_so(sink: type[RecordingSink]) -> None:
    """It would leave the other stages waiting for ever."""
    outcome = await Stages(sink=sink()).run()
    assert (outcome.status, outcome.stage) == ("failed", "write")
    assert isinstance(outcome.cause, ContractBroken)
    assert "the sink ended after" in str(outcome.error)


class ExactSink(RecordingSink):
    """A sink that stops with the last piece, before the end of the iteration."""

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Recipe, *, overwrite: bool) -> AsyncIterator[Any]:
        class Writer:
            resume_at = 0

            async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
                async for some in pieces:
                    if some.places.stop == plan.count:
                        break
                return Receipt("slide", plan.count, ())

        yield Writer()


async def test_a_sink_may_stop_with_the_last_piece() -> None:
    outcome = await Stages(sink=ExactSink()).run()
    assert (outcome.status, outcome.pieces) == ("done", COUNT)


@dataclass(frozen=True, slots=True)
class GenerousPlan(SmallRegions):
    """A sampler whose plan reads a region more than its windows need."""

    def plan(self, slide: Slide) -> Any:
        @dataclass(frozen=True)
        class Generous(GridPlan):
            def regions(self, start: int = 0) -> Iterator[Region]:
                yield from GridPlan.regions(self, start)
                yield Region(99, 0, Box(0, 0, 8, 8), COUNT, 0)
                yield Region(100, 0, Box(0, 0, 8, 8), COUNT, 0)

        plan = SmallRegions.plan(self, slide)
        return Generous(plan.slide, plan.level, plan.grid, 1, {})


@dataclass(frozen=True, slots=True)
class SatisfiedSampler(GenerousPlan):
    """It does not even ask for the regions without windows."""

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        async for chunk in bigchunks:
            for windows in windows_of(plan, chunk):
                yield windows
                if windows.first + len(windows) == plan.count:
                    return


@pytest.mark.parametrize("sampler", [GenerousPlan, SatisfiedSampler])
async def test_regions_without_windows_do_no_harm(sampler: type[SmallRegions]) -> None:
    outcome = await Stages(sampler=sampler()).run()
    assert (outcome.status, outcome.pieces) == ("done", COUNT)


async def test_an_error_in_closing_does_not_hide_the_cause() -> None:
    stages = Stages(processor=Checksums(8, fail_at=2), sink=ClosingSink())
    outcome = await stages.run()
    assert (outcome.stage, outcome.error) == ("process", "slide.tif: the script fails at batch 2")


@dataclass(frozen=True)
class MaskingSink(RecordingSink):
    """A sink that fails in its turn where the lane fails."""

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Recipe, *, overwrite: bool) -> AsyncIterator[Any]:
        try:
            async with RecordingSink.open(self, plan, recipe, overwrite=overwrite) as writer:
                yield writer
        finally:
            raise CannotWrite("the clean-up failed too")


async def test_the_first_cause_wins() -> None:
    stages = Stages(processor=Checksums(8, fail_at=2), sink=MaskingSink())
    outcome = await stages.run()
    assert (outcome.stage, outcome.error) == ("process", "slide.tif: the script fails at batch 2")


async def test_pieces_that_are_there_already_are_not_written_again() -> None:
    """Nor are empty ones, where a processor hands on less than a batch."""
    stages = Stages(processor=OneByOne(), sink=RecordingSink(resume_at=19))
    outcome = await stages.run()
    assert (outcome.status, outcome.pieces) == ("done", COUNT - 19)
    assert stages.sink.records["slide"].starts == [*range(19, COUNT)]


class OneByOne(Recorder):
    def __init__(self) -> None:
        super().__init__(8)

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Any], None]:
        async for some in super().pieces(batches):
            for i in range(len(some)):
                one = slice(i, i + 1)
                yield Pieces(some.places[one], some.values[one], some.valid[one])


async def test_a_resumed_lane_reads_only_the_rest() -> None:
    """The second panel has four of the nine columns of windows: three of the five of tiles."""
    sink = RecordingSink(resume_at=5 * 14)
    outcome = await Stages(processor=Checksums(7), sink=sink).run()
    assert (outcome.tiles_decoded, outcome.pieces) == (3 * 8, 4 * 14)


async def test_a_cancelled_lane_gives_everything_back() -> None:
    """At any point, and it does not take the cancellation for an outcome."""
    stages = Stages(scripted(jitter=2))
    for turns in range(0, 400, 13):
        limits = Limits(worker_kind="inline", memory=2**20)
        outcomes: list[SlideOutcome] = []
        async with open_workers(limits) as workers, stages.processor.open(workers) as processor:
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:

                    async def run(workers: Any, processor: Any) -> None:
                        lane = Lane(
                            REF,
                            stages.source,
                            stages.sampler,
                            processor,
                            RecordingSink(),
                            workers,
                            Budget(20_000, 1),
                            False,
                            stages.events.append,
                        )
                        outcomes.append(await lane.run())  # noqa: B023

                    tasks.start_soon(run, workers, processor)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            assert [outcome.status for outcome in outcomes] in ([], ["done"])
            assert sum(b.nbytes for b in workers.arena._free) == workers.arena.nbytes
