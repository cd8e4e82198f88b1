"""The kit for sources."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from ...chunks import BigChunk, Pixels
from ...errors import CannotOpen, ConfigError
from ...geometry import Grid, Size
from ...limits import WorkerKind
from ...samplers.sliding_window import GridPlan
from ...slides import Slide, SlideRef
from ...stages import SlideReader, Source
from ...workers import Workers, open_workers
from .rules import (
    LIMITS,
    StageRules,
    cancelled_after,
    each_in_its_own_task,
    no_files_in_the_loop,
    whole_arena,
)

__all__ = ["SourceCase", "SourceConformance"]


@dataclass(frozen=True)
class SourceCase:
    """A source, and a slide that it reads.

    Attributes:
        stage: the source.
        ref: an undamaged slide, small: some hundred pixels a side.
        levels: its pixels, ``(height, width, channels)`` each, finest first.
        tolerance: by how much a pixel may differ (another decoder of a lossy codec).
        kinds: the kinds of workers to read with; no processes where a test's own functions
            decode.
        timeout_s: how long reading the slide may take.
    """

    stage: Source
    ref: SlideRef
    levels: tuple[Pixels, ...]
    tolerance: int = 0
    kinds: tuple[WorkerKind, ...] = ("threads", "processes")
    timeout_s: float = 60.0

    def plan(self, slide: Slide, level: int = 0) -> GridPlan:
        """Odd windows that overlap, in many regions and two panels."""
        size = slide.level(level).size
        kernel = Size(max(1, size.width // 3 | 1), max(1, size.height // 5 | 1))
        stride = Size(max(1, kernel.width // 2), max(1, kernel.height // 3))
        grid = Grid(size, kernel, stride)
        grid = Grid(size, kernel, stride, -(-grid.columns // 2))
        return GridPlan(slide, slide.level(level), grid, 2, {})

    def check(self, chunk: BigChunk) -> None:
        """The pixels are those of the reference.

        Raises:
            AssertionError: they are not.
        """
        region, box = chunk.region, chunk.region.box
        expected = self.levels[region.level][box.y : box.bottom, box.x : box.right]
        assert chunk.damage == (), f"{region} is damaged: {chunk.damage[:3]}"
        assert not chunk.pixels.flags.writeable, "the pixels of a big chunk can be written"
        assert (chunk.pixels.shape, chunk.pixels.dtype) == (expected.shape, expected.dtype)
        off = np.abs(chunk.pixels.astype(np.float64) - expected.astype(np.float64))
        assert not off.size or off.max() <= self.tolerance, f"{region} is off by {off.max():g}"


@asynccontextmanager
async def _opened(
    case: SourceCase, kind: WorkerKind = "threads"
) -> AsyncIterator[tuple[SlideReader, Workers]]:
    with anyio.fail_after(case.timeout_s):
        async with open_workers(replace(LIMITS, worker_kind=kind)) as workers:
            async with case.stage.open(case.ref, workers) as reader:
                yield reader, workers
            await whole_arena(workers)


class SourceConformance(StageRules):
    """Subclass it with a fixture `case` that returns a `SourceCase`."""

    role = "source"

    def test_it_accepts_its_slide_and_never_raises(self, case: SourceCase, tmp_path: Path) -> None:
        assert case.stage.accepts(case.ref) is True
        (tmp_path / "empty.svs").touch()
        for uri in (tmp_path, tmp_path / "empty.svs", tmp_path / "no" / "such.svs"):
            assert case.stage.accepts(SlideRef("x", str(uri))) in (True, False)

    async def test_what_is_not_there_cannot_be_opened(
        self, case: SourceCase, tmp_path: Path
    ) -> None:
        absent = SlideRef("absent", str(tmp_path / "absent.svs"))
        async with open_workers(LIMITS) as workers:
            with pytest.raises(CannotOpen, match="absent"):
                async with case.stage.open(absent, workers):
                    pass

    async def test_the_slide_says_what_it_is(self, case: SourceCase) -> None:
        async with _opened(case) as (reader, _):
            slide = reader.slide
        assert slide.ref == case.ref
        assert pickle.loads(pickle.dumps(slide)) == slide, "the slide does not pickle"
        assert len(slide.pyramid.levels) == len(case.levels)
        for level, array in zip(slide.pyramid.levels, case.levels, strict=True):
            assert (level.size.height, level.size.width) == array.shape[:2]
            assert (slide.channels, slide.dtype) == (array.shape[2], array.dtype.name)

    async def test_the_same_slide_is_the_same_slide(self, case: SourceCase) -> None:
        slides = []
        for _ in range(2):
            async with _opened(case) as (reader, _):
                slides.append(reader.slide)
        assert slides[0] == slides[1], "a resumed run would take it for another slide"

    async def test_pixels_are_those_of_the_reference(self, case: SourceCase) -> None:
        for kind in case.kinds:
            for index in range(len(case.levels)):
                async with _opened(case, kind) as (reader, _):
                    plan = case.plan(reader.slide, index)
                    read = []
                    async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                        async for chunk in chunks:
                            case.check(chunk)
                            read.append(chunk.region)
                            chunk.release()
                    assert read == [*plan.regions()], "the regions did not come in order"

    async def test_pixels_stay_while_they_are_held(self, case: SourceCase) -> None:
        async with _opened(case) as (reader, _):
            held: list[BigChunk] = []
            plan = case.plan(reader.slide)
            async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                async for chunk in chunks:
                    held.append(chunk)
                    if len(held) > 3:
                        case.check(held[0])
                        held.pop(0).release()
                for chunk in held:
                    case.check(chunk)
                    chunk.release()

    async def test_it_works_in_the_least_memory_that_it_names(self, case: SourceCase) -> None:
        async with _opened(case) as (reader, _):
            plan = case.plan(reader.slide)
            least = reader.needs(next(plan.regions()))
            async with aclosing(reader.bigchunks(plan.regions(), max(1, least))) as chunks:
                async for chunk in chunks:
                    case.check(chunk)
                    chunk.release()
        if least > 1:
            async with _opened(case) as (reader, _):
                with pytest.raises(ConfigError):
                    await anext(reader.bigchunks(plan.regions(), least - 1))
                assert reader.tally.tiles_decoded == 0, "something was read before the error"

    async def test_two_lanes_do_not_disturb_each_other(self, case: SourceCase) -> None:
        async with open_workers(LIMITS) as workers:

            async def lane() -> None:
                async with case.stage.open(case.ref, workers) as reader:
                    plan = case.plan(reader.slide)
                    async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                        async for chunk in chunks:
                            case.check(chunk)
                            chunk.release()

            with anyio.fail_after(case.timeout_s):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lane)
                    tasks.start_soon(lane)

    async def test_leaving_early_leaves_nothing(self, case: SourceCase) -> None:
        async with _opened(case) as (reader, _):
            plan = case.plan(reader.slide)
            async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                case.check(await anext(chunks))

    async def test_nothing_is_held_across_a_yield(self, case: SourceCase) -> None:
        async with _opened(case) as (reader, _):
            plan = case.plan(reader.slide)
            read = await each_in_its_own_task(reader.bigchunks(plan.regions(), 2**26))
        assert len(read) == len([*plan.regions()])

    @pytest.mark.parametrize("turns", [0, 1, 3, 10, 50])
    async def test_cancellation_is_not_swallowed(self, case: SourceCase, turns: int) -> None:
        async def work(workers: Workers) -> None:
            async with case.stage.open(case.ref, workers) as reader:
                plan = case.plan(reader.slide)
                async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                    async for chunk in chunks:
                        chunk.release()

        await cancelled_after(turns, work)

    async def test_the_loop_opens_no_files(self, case: SourceCase) -> None:
        with no_files_in_the_loop(Path(case.ref.uri)):
            async with _opened(case) as (reader, _):
                plan: Any = case.plan(reader.slide)
                async with aclosing(reader.bigchunks(plan.regions(), 2**26)) as chunks:
                    async for chunk in chunks:
                        chunk.release()
