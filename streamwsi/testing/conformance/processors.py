"""The kit for processors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from ...chunks import Batch, BigChunk, Pieces, Pixels, Places, Region
from ...geometry import Box, Grid, Size
from ...samplers.sliding_window import GridPlan
from ...slides import Pyramid, PyramidLevel, Slide, SlideRef
from ...stages import Processor, RunningProcessor
from ...workers import Workers, open_workers
from .rules import (
    LIMITS,
    POISON,
    StageRules,
    Upstream,
    cancelled_after,
    check_json,
    each_in_its_own_task,
    first_of,
    same,
)

__all__ = ["ProcessorCase", "ProcessorConformance"]


@dataclass(frozen=True)
class ProcessorCase:
    """A processor, and windows for it.

    Attributes:
        stage: the processor.
        windows: ``(n, height, width, channels)``; best some more than three batches, and not a
            multiple of them.
        timeout_s: how long all of them may take.
    """

    stage: Processor[Any]
    windows: Pixels
    timeout_s: float = 120.0

    def plan(self) -> GridPlan:
        """A plan with as many windows in a row."""
        n, height, width, channels = self.windows.shape
        level = PyramidLevel(0, Size(n * width, height), (1.0, 1.0), Size(width, height))
        slide = Slide(
            SlideRef("slide", "slide"), Pyramid((level,)), self.windows.dtype.name, channels
        )
        kernel = Size(width, height)
        return GridPlan(slide, level, Grid(level.size, kernel, kernel), 1, {})


class _Loans:
    """Batches as a lane lends them; their pixels are overwritten when nobody holds them."""

    def __init__(
        self, case: ProcessorCase, size: int, fail_at: int | None = None, poison: int = POISON
    ) -> None:
        self._case = case
        self._size = size
        self._fail_at = fail_at
        self._poison = poison
        self.out: set[int] = set()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        case, plan = self._case, self._case.plan()
        for start in range(0, plan.count, self._size):
            if start // self._size == self._fail_at:
                raise Upstream
            await anyio.lowlevel.checkpoint()
            stop = min(start + self._size, plan.count)
            batch = self._batch(start, Places(plan, start, stop), case.windows[start:stop].copy())
            yield batch
            batch.release()

    def _batch(self, start: int, places: Places, pixels: Pixels) -> Batch:
        def give_back() -> None:
            pixels[...] = self._poison
            self.out.discard(start)

        view = pixels[:]
        view.flags.writeable = False
        region = Region(0, 0, Box(0, 0, view.shape[2], view.shape[1]), start, len(places))
        chunk = BigChunk(region, view[0], (), give_back)
        self.out.add(start)
        valid = np.arange(start, start + len(places)) % 5 != 3
        half = len(view) // 2
        return Batch(
            places, tuple(p for p in (view[:half], view[half:]) if len(p)), valid, (chunk,)
        )


@asynccontextmanager
async def _running(case: ProcessorCase) -> AsyncIterator[RunningProcessor[Any]]:
    with anyio.fail_after(case.timeout_s):
        async with open_workers(LIMITS) as workers, case.stage.open(workers) as running:
            yield running


async def _all(running: RunningProcessor[Any], loans: _Loans) -> list[Pieces[Any]]:
    async with aclosing(loans.batches()) as batches:
        async with aclosing(running.pieces(batches)) as pieces:
            done = [some async for some in pieces]
        # What a lane does when the slide is done: the last batch's loan ends with the iteration.
        assert await anext(batches, None) is None, "the processor left batches unread"
    return done


class ProcessorConformance(StageRules):
    """Subclass it with a fixture `case` that returns a `ProcessorCase`."""

    role = "processor"

    async def test_it_says_what_identifies_its_results(self, case: ProcessorCase) -> None:
        configs = []
        for _ in range(2):
            async with _running(case) as running:
                assert isinstance(running.batch_size, int)
                assert running.batch_size >= 1
                check_json(running.config)
                configs.append(running.config)
        assert configs[0] == configs[1], "a resumed run would take it for another model"

    async def test_a_batch_gives_its_pieces_in_order(self, case: ProcessorCase) -> None:
        async with _running(case) as running:
            loans = _Loans(case, running.batch_size)
            done = await _all(running, loans)
        plan, following = case.plan(), 0
        for some in done:
            assert some.places.start == following, "the pieces are out of order"
            following = some.places.stop
            damaged = [i for i in range(some.places.start, following) if i % 5 == 3]
            lost = [i for i, v in zip(some.places, some.valid, strict=True) if not v]
            assert [place.index for place in lost] == damaged, "validity went astray"
        assert following == plan.count, f"{following} pieces came for {plan.count} windows"
        assert len(done) == -(-plan.count // running.batch_size), "not one `Pieces` a batch"
        assert not loans.out, f"the batches at {sorted(loans.out)} were never given back"

    async def test_the_same_windows_give_the_same_values(self, case: ProcessorCase) -> None:
        """Twice, and in two lanes at once: with pixels that are gone when their loan is over."""
        async with _running(case) as running:
            once = await _all(running, _Loans(case, running.batch_size))
            lanes: list[list[Pieces[Any]]] = []

            async def lane(poison: int) -> None:
                loans = _Loans(case, running.batch_size, poison=poison)
                lanes.append(await _all(running, loans))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lane, 0)
                tasks.start_soon(lane, 255)
        for again in lanes:
            for one, other in zip(once, again, strict=True):
                assert same(one.values, other.values), f"{one.places} differ"

    async def test_a_failure_before_it_is_not_the_end(self, case: ProcessorCase) -> None:
        async with _running(case) as running:
            loans = _Loans(case, running.batch_size, fail_at=1)
            with pytest.raises((Upstream, ExceptionGroup)):
                await _all(running, loans)

    async def test_no_batches_give_no_pieces(self, case: ProcessorCase) -> None:
        async def none() -> AsyncIterator[Batch]:
            return
            yield

        async with _running(case) as running:
            assert [some async for some in running.pieces(none())] == []

    async def test_leaving_early(self, case: ProcessorCase) -> None:
        async with _running(case) as running:
            loans = _Loans(case, running.batch_size)
            async with aclosing(loans.batches()) as batches:
                assert await first_of(running.pieces(batches), 1)

    async def test_nothing_is_held_across_a_yield(self, case: ProcessorCase) -> None:
        async with _running(case) as running:
            loans = _Loans(case, running.batch_size)
            async with aclosing(loans.batches()) as batches:
                assert await each_in_its_own_task(running.pieces(batches))

    @pytest.mark.parametrize("turns", [0, 2, 10])
    async def test_cancellation_is_not_swallowed(self, case: ProcessorCase, turns: int) -> None:
        async def work(workers: Workers) -> None:
            async with case.stage.open(workers) as running:
                await _all(running, _Loans(case, running.batch_size))

        await cancelled_after(turns, work)
