"""A lane: one slide on its way through the four stages, a task each::

    read ──BigChunk──▶ sample ──Batch──▶ process ──Pieces──▶ write ─▶ Receipt

The tasks are joined by links. What a stage raises ends the lane, with that stage as the cause;
the echoes in the other stages are dropped. Order is kept all the way, so that the lane's state
is one number: how many pieces the sink has made durable.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from .apart import check_apart
from .batches import batches
from .budgets import PIECES_IN_LINK, Budget, reading_share
from .chunks import Batch, BigChunk, Pieces, Plan, Receipt
from .errors import CannotProcess, ContractBroken, SlideError, SlideFailed, StreamwsiError
from .links import DownstreamFailed, Inlet, Link, Outlet
from .reports import Observer, PiecesWritten, SlideOutcome, SlideStarted, StageTimes
from .resampled_readers import resampled
from .resolutions import describe
from .slides import SlideRef
from .stages import (
    LeavesTilesOut,
    NeedsPixels,
    ReadTally,
    Recipe,
    RunningProcessor,
    Sampler,
    Sink,
    SlideReader,
    SlideWriter,
    Source,
    TellsValues,
)
from .touched import windows_touched
from .values import ValueType, blank_batch
from .workers import Workers

__all__ = ["Lane"]

_BIGCHUNKS = 1
_BATCHES = 2


@dataclass(slots=True)
class Lane:
    """One slide's way through the stages.

    Attributes:
        ref: the slide.
        source, sampler, processor, sink: the stages; the processor is shared by all lanes.
        workers: where decoding runs.
        budget: the run's memory.
        overwrite: whether an existing output is replaced.
        observe: gets the lane's events.
    """

    ref: SlideRef
    source: Source
    sampler: Sampler
    processor: RunningProcessor[Any]
    sink: Sink[Any]
    workers: Workers
    budget: Budget
    overwrite: bool
    observe: Observer
    _stage: str = "open"
    _cause: tuple[str, Exception] | None = None
    _outputs: tuple[str, ...] = ()
    _began: float = field(default_factory=time.perf_counter)
    _tally: ReadTally = field(default_factory=ReadTally)
    _saved: int = 0
    _filled: int = 0
    _resolution: Mapping[str, Any] | None = None
    _values: ValueType | None = None
    _resumed_at: int = 0
    _total: int = 0
    _written: int = 0
    _times: dict[str, StageTimes] = field(
        default_factory=lambda: {n: StageTimes() for n in ("read", "sample", "process", "write")}
    )

    async def run(self) -> SlideOutcome:
        """Work the slide off; whatever is raised on the way becomes the outcome."""
        try:
            receipt = await self._run()
        except Exception as error:
            return self._failed(error)
        return self.outcome(
            "done", outputs=receipt.outputs, pieces=receipt.pieces, invalid=receipt.invalid
        )

    def outcome(self, status: Any, **facts: Any) -> SlideOutcome:
        """The lane's outcome as of now."""
        written: dict[str, Any] = {"outputs": self._outputs, "pieces": self._written}
        return SlideOutcome(
            self.ref.id,
            self.ref.uri,
            status,
            seconds=time.perf_counter() - self._began,
            resumed_at=self._resumed_at,
            total=self._total,
            tiles_decoded=self._tally.tiles_decoded,
            distinct_tiles=self._tally.distinct_tiles,
            tiles_saved=self._saved,
            filled=self._filled,
            damaged_tiles=self._tally.damaged_tiles,
            damage=tuple(self._tally.damage),
            resolution=self._resolution,
            stages=self._times,
            **(written | facts),
        )

    def _failed(self, error: Exception) -> SlideOutcome:
        stage, cause = self._cause or (self._stage, error)
        cause = _unwrapped(cause)
        message = str(cause) if isinstance(cause, StreamwsiError) else _described(self.ref, cause)
        if isinstance(cause, CannotProcess) and self.ref.uri not in message:
            message = f"{self.ref.uri}: {message}"
        if not isinstance(cause, StreamwsiError) or isinstance(cause, SlideError):
            failure: Exception = SlideFailed(self.ref.id, stage, message)
            failure.__cause__ = cause
        else:
            failure = cause  # configuration: its type decides about the exit code
        return self.outcome("failed", error=message, stage=stage, cause=failure)

    async def _run(self) -> Receipt:
        self._stage = "write"
        self._outputs = self.sink.outputs(self.ref)
        for output in self._outputs:
            check_apart(self.ref.uri, output)
        self._stage = "open"
        async with self.source.open(self.ref, self.workers) as opened, AsyncExitStack() as held:
            self._tally = opened.tally
            plan = await self._plan(opened)
            self._total = plan.count
            self._resolution = describe(plan.level, plan.slide, plan.config)
            reader = held.enter_context(resampled(opened, plan.level, self.workers))
            # Before anything is written: an output must not be begun that can never be completed.
            self._values = await self._told(plan)
            memory = await self._share(reader, plan)
            policy = {"invalid": "nan", **getattr(self.source, "config", {})}
            recipe = Recipe(
                plan.config, self.processor.config, self.sink.config, policy, self._values
            )
            self._stage = "write"
            async with self.sink.open(plan, recipe, overwrite=self.overwrite) as writer:
                self._resumed_at = writer.resume_at
                self.observe(SlideStarted(self.ref.id, plan.count, writer.resume_at))
                receipt = await self._stream(reader, plan, writer, memory)
            self._stage = "read"
        return receipt

    async def _plan(self, reader: SlideReader) -> Plan:
        if not isinstance(self.sampler, NeedsPixels):
            return self.sampler.plan(reader.slide)
        self._stage = "sample"
        if self.sampler.needs_pixels(self.ref):
            # A reader of its own: what it reads is not part of the tally, and its memory is free
            # again before this lane's reader takes any.
            async with self.source.open(self.ref, self.workers) as preview:
                memory = self.budget.nbytes // self.budget.lanes
                self.sampler = await self.sampler.prepare(preview, memory)
        plan = await anyio.to_thread.run_sync(self.sampler.plan, reader.slide)
        if isinstance(plan, LeavesTilesOut):
            self._saved = await anyio.to_thread.run_sync(lambda: plan.tiles_saved)
        self._stage = "open"
        return plan

    async def _share(self, reader: SlideReader, plan: Plan) -> int:
        """Memory for the reader; ConfigError where the limit does not hold what is needed."""
        return await anyio.to_thread.run_sync(
            reading_share, self.budget, reader, plan, self.processor, self.sink, self._values
        )

    async def _told(self, plan: Plan) -> ValueType | None:
        """What the processor will give per window, as far as it can tell."""
        if plan.count == 0 or not isinstance(self.processor, TellsValues):
            return None
        self._stage = "process"
        blank = blank_batch(plan, self.processor.batch_size)
        values = await anyio.to_thread.run_sync(self.processor.value_type, blank)
        self._stage = "open"
        return values

    async def _stream(
        self, reader: SlideReader, plan: Plan, writer: SlideWriter[Any], memory: int
    ) -> Receipt:
        times = self._times
        bigchunks = Link[BigChunk](_BIGCHUNKS, times["read"], times["sample"])
        lent = Link[Batch](_BATCHES, times["sample"], times["process"])
        pieces = Link[Pieces[Any]](PIECES_IN_LINK, times["process"], times["write"])
        receipts: list[Receipt] = []
        with closing(bigchunks), closing(lent), closing(pieces):
            async with anyio.create_task_group() as tasks:
                start = tasks.start_soon
                start(self._task, "read", self._read, reader, plan, memory, bigchunks.outlet)
                start(self._task, "sample", self._sample, plan, bigchunks.inlet, lent.outlet)
                start(self._task, "process", self._process, reader, plan, lent.inlet, pieces.outlet)
                start(self._task, "write", self._write, writer, pieces.inlet, receipts)
        return receipts[0]

    async def _task(self, stage: str, body: Callable[..., Awaitable[None]], *args: Any) -> None:
        """A stage's task: the first one that fails is the lane's failure, the others echo it.

        That it is the first is sure: a stage fails before its links end (`Outlet.finishing`).
        """
        try:
            await body(*args)
        except DownstreamFailed:
            # The next stage has all it wants, or has failed and says so itself.
            return
        except Exception as error:
            self._cause = self._cause or (stage, error)
            raise

    def _start(self, writer_needs: int) -> int:
        """The batch boundary at or before the first piece that is needed."""
        return writer_needs // self.processor.batch_size * self.processor.batch_size

    async def _read(
        self, reader: SlideReader, plan: Plan, memory: int, outlet: Outlet[BigChunk]
    ) -> None:
        regions = plan.regions(self._start(self._resumed_at))
        async with outlet.finishing():
            if self._resumed_at >= plan.count:
                return
            async with aclosing(reader.bigchunks(regions, memory)) as chunks:
                async for chunk in chunks:
                    if chunk.filled:
                        self._filled += await anyio.to_thread.run_sync(
                            windows_touched, plan, chunk.region, chunk.filled, self._resumed_at
                        )
                    await outlet.send(chunk)

    async def _sample(self, plan: Plan, inlet: Inlet[BigChunk], outlet: Outlet[Batch]) -> None:
        async with outlet.finishing():
            if self._resumed_at >= plan.count:
                return
            async with (
                aclosing(inlet.items()) as items,
                aclosing(_released(items)) as chunks,
                aclosing(self.sampler.smallchunks(plan, chunks)) as windows,
                aclosing(
                    batches(plan, windows, self.processor.batch_size, self._start(self._resumed_at))
                ) as lent,
            ):
                async for batch in lent:
                    await outlet.send(batch)
            # Where the sampler is done before the reader, the reader may stop as well.
            inlet.close()

    async def _process(
        self,
        reader: SlideReader,
        plan: Plan,
        inlet: Inlet[Batch],
        outlet: Outlet[Pieces[Any]],
    ) -> None:
        async with (
            outlet.finishing(),
            aclosing(inlet.items()) as items,
            aclosing(_returned(items)) as lent,
            aclosing(self.processor.pieces(lent)) as pieces,
        ):
            async for some in pieces:
                if self._values is None and (values := ValueType.of(some.values)) is not None:
                    # A processor that could not tell: does the limit hold what they make?
                    self._values = values
                    await self._share(reader, plan)
                needed = some.since(self._resumed_at)
                if len(needed):
                    await outlet.send(needed)

    async def _write(
        self, writer: SlideWriter[Any], inlet: Inlet[Pieces[Any]], receipts: list[Receipt]
    ) -> None:
        async with aclosing(inlet.items()) as items, aclosing(self._counted(items)) as pieces:
            receipts.append(await writer.write(pieces))
            async for _ in pieces:
                break  # nothing is left, unless the sink ended early
            if self._resumed_at + self._written < self._total:
                raise ContractBroken(
                    f"the sink ended after {self._resumed_at + self._written} of the "
                    f"{self._total} pieces that were planned"
                )

    async def _counted(
        self, pieces: AsyncGenerator[Pieces[Any], None]
    ) -> AsyncGenerator[Pieces[Any], None]:
        """The pieces, told to the observer, and checked for the order that sinks rely on."""
        expected = self._resumed_at
        async for some in pieces:
            if some.places.start != expected:
                raise ContractBroken(
                    f"the processor gave piece {some.places.start} where {expected} comes next"
                )
            expected = some.places.stop
            yield some
            self._written += len(some)
            self.observe(PiecesWritten(self.ref.id, len(some)))
        if expected != max(self._total, self._resumed_at):
            raise ContractBroken(
                f"the processor gave {expected} of the {self._total} pieces that were planned"
            )


async def _released(
    chunks: AsyncGenerator[BigChunk, None],
) -> AsyncGenerator[BigChunk, None]:
    """Big chunks, each given back when the next is asked for."""
    async for chunk in chunks:
        yield chunk
        chunk.release()


async def _returned(lent: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
    """Batches, each given back when the next is asked for."""
    async for batch in lent:
        yield batch
        batch.release()


def _unwrapped(error: Exception) -> Exception:
    """The first exception of those that task groups have wrapped."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _described(ref: SlideRef, cause: Exception) -> str:
    return f"{ref.uri}: unexpected {type(cause).__name__}: {cause}"
