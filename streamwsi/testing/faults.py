"""Scripted stages: they fail, pause, hang and report damage where a test says so.

A fault that is part of the script needs no luck and no mock: the engine runs as it does in
earnest, over arrays in memory. `ScriptedSource` decodes its arrays through the scroll reader,
`Checksums` is a processor whose values show every wrong pixel, and `RecordingSink` keeps what
it is given. What goes wrong in worker processes is in `streamwsi.testing.worker_faults`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import anyio.lowlevel
import numpy as np

from ..blocks import ArrayRef
from ..chunks import Batch, Damage, Pieces, Pixels, Plan, Receipt
from ..errors import CannotProcess, CannotRead, CannotWrite, WorkerDied
from ..geometry import Box
from ..slides import PyramidLevel, SlideRef
from ..sources.base import ScrollReader, scroll_reader
from ..sources.memory import MemorySource
from ..stages import Recipe
from ..workers import Workers

__all__ = [
    "Checksums",
    "Fault",
    "Recorded",
    "RecordingSink",
    "ScriptedSource",
]

GARBAGE = 0xA5
"""What lies in the bytes of damaged tiles: nothing may depend on it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the tiles of one level that touch a box.

    Attributes:
        box: pixels of the level.
        kind: ``"fail"`` raises `CannotRead`, ``"die"`` raises `WorkerDied`, ``"damage"``
            reports each tile and fills it with garbage, ``"pause"`` waits, ``"hang"`` waits
            until it is cancelled.
        level: index of the level.
        seconds: how long ``"pause"`` waits.
    """

    box: Box
    kind: Literal["fail", "die", "damage", "pause", "hang"]
    level: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ScriptedSource:
    """Slides in memory, as in `MemorySource`, whose tiles are decoded by jobs, with faults.

    Attributes:
        slides: the pyramids by slide id, arrays ``(height, width, channels)``.
        tile: size of a tile, or ``(width, height)``.
        faults: what goes wrong, and where.
        jitter: turns of the event loop that a job takes at most; with some, jobs end in
            another order than they began.
        seed: makes the jitter repeatable.
    """

    slides: Mapping[str, tuple[Pixels, ...]]
    tile: int | tuple[int, int] = 256
    faults: tuple[Fault, ...] = ()
    jitter: int = 0
    seed: int = 0

    def accepts(self, ref: SlideRef) -> bool:
        """See `streamwsi.stages.Source`."""
        return ref.id in self.slides

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[ScrollReader]:
        """See `streamwsi.stages.Source`."""
        return self._scripted(ref, workers)

    @asynccontextmanager
    async def _scripted(self, ref: SlideRef, workers: Workers) -> AsyncIterator[ScrollReader]:
        chance = random.Random(self.seed)

        async def fill(level: PyramidLevel, box: Box, target: ArrayRef) -> tuple[Damage, ...]:
            for _ in range(chance.randint(0, self.jitter)):
                await anyio.lowlevel.checkpoint()
            out = workers.arena.resolve(target)
            out[...] = self.slides[ref.id][level.index][box.y : box.bottom, box.x : box.right]
            damage: tuple[Damage, ...] = ()
            for fault in self.faults:
                if fault.level == level.index and not fault.box.intersection(box).empty:
                    damage += await self._meet(fault, level, box, out)
            return damage

        plain = MemorySource(self.slides, tile=self.tile)
        async with (
            plain.open(ref, workers) as memory,
            scroll_reader(memory.slide, fill, workers) as reader,
        ):
            yield reader

    async def _meet(
        self, fault: Fault, level: PyramidLevel, box: Box, out: Pixels
    ) -> tuple[Damage, ...]:
        if fault.kind == "fail":
            raise CannotRead(f"the script fails at {fault.box}")
        if fault.kind == "die":
            raise WorkerDied(f"the script kills the worker at {fault.box}")
        if fault.kind == "damage":
            touched = fault.box.intersection(box).snapped(level.tile, level.size)
            damage = tuple(_tile_damage(level, touched.intersection(box)))
            for tile in (d.box.shifted(-box.x, -box.y) for d in damage):
                out[tile.y : tile.bottom, tile.x : tile.right] = GARBAGE
            return damage
        await anyio.sleep(fault.seconds if fault.kind == "pause" else float("inf"))
        return ()


def _tile_damage(level: PyramidLevel, box: Box) -> list[Damage]:
    columns = -(-level.size.width // level.tile.width)
    return [
        Damage(
            level.index,
            y // level.tile.height * columns + x // level.tile.width,
            Box(x, y, *level.tile).intersection(Box(0, 0, *level.size)),
            "scripted damage",
        )
        for y in range(box.y, box.bottom, level.tile.height)
        for x in range(box.x, box.right, level.tile.width)
    ]


@dataclass(frozen=True, slots=True)
class Checksums:
    """A processor whose value for a window is the CRC-32 of its pixels, a float64; NaN where
    the window is damaged.

    Attributes:
        batch_size: windows per batch.
        fail_at: number of the batch, counted from the slide's first window, that fails.
        delay_s: how long a batch takes.
    """

    batch_size: int = 8
    fail_at: int | None = None
    delay_s: float = 0.0

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[_RunningChecksums]:
        """See `streamwsi.stages.Processor`."""
        yield _RunningChecksums(self)


class _RunningChecksums:
    def __init__(self, stage: Checksums) -> None:
        self._stage = stage
        self.batch_size = stage.batch_size
        self.config: Mapping[str, Any] = {"type": "checksums", "batch_size": stage.batch_size}

    async def pieces(
        self, batches: AsyncIterator[Batch]
    ) -> AsyncGenerator[Pieces[np.float64], None]:
        async for batch in batches:
            if self._stage.delay_s:
                await anyio.sleep(self._stage.delay_s)
            number = batch.places.start // self.batch_size
            if number == self._stage.fail_at:
                raise CannotProcess(f"the script fails at batch {number}")
            values = np.array([zlib.crc32(window.tobytes()) for window in batch.pixels], float)
            values[~batch.valid] = np.nan
            yield Pieces(batch.places, values, batch.valid)


@dataclass(slots=True)
class Recorded:
    """What a `RecordingSink` was given for a slide.

    Attributes:
        starts: number of the first piece of each `Pieces`.
        values: by number of the piece.
        valid: likewise.
        complete: whether the sink reached the end of the pieces.
    """

    starts: list[int] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)
    valid: dict[int, bool] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RecordingSink:
    """A sink that keeps what it is given.

    Attributes:
        records: by slide id, filled while the run goes on.
        resume_at: what it says is already there.
        fail_at: number of the piece at which writing fails.
        delay_s: how long it takes for each `Pieces`.
    """

    records: dict[str, Recorded] = field(default_factory=dict)
    resume_at: int = 0
    fail_at: int | None = None
    delay_s: float = 0.0

    @property
    def config(self) -> Mapping[str, Any]:
        """See `streamwsi.stages.Sink`."""
        return {"type": "recording"}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """See `streamwsi.stages.Sink`."""
        return (f"recording:{slide.id}",)

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[_RecordingWriter]:
        """See `streamwsi.stages.Sink`."""
        record = self.records[plan.slide.ref.id] = Recorded()
        yield _RecordingWriter(self, plan, record)


class _RecordingWriter:
    def __init__(self, sink: RecordingSink, plan: Plan, record: Recorded) -> None:
        self._sink = sink
        self._plan = plan
        self._record = record
        self.resume_at = min(sink.resume_at, plan.count)

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        record = self._record
        async for some in pieces:
            await anyio.sleep(self._sink.delay_s)
            record.starts.append(some.places.start)
            for piece in some:
                if piece.place.index == self._sink.fail_at:
                    raise CannotWrite(f"the script fails at piece {piece.place.index}")
                record.values[piece.place.index] = piece.value
                record.valid[piece.place.index] = piece.valid
        record.complete = True
        ref = self._plan.slide.ref
        invalid = sum(not valid for valid in record.valid.values())
        return Receipt(ref.id, len(record.values), self._sink.outputs(ref), invalid)
