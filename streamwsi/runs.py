"""Runs: a pipeline over many slides.

Workers, their memory and the processor are opened once; `limits.slides` lanes go at a time.
What is raised inside a lane stays in the lane and becomes that slide's outcome; what is raised
outside (a model that cannot be loaded, two slides with one id) ends the run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from .budgets import Budget
from .errors import ConfigError
from .heaps import share_one_heap
from .lanes import Lane
from .limits import Limits
from .pipelines import Pipeline
from .reports import Event, Observer, RunReport, SlideEnded, SlideOutcome
from .slides import SlideRef
from .stages import RunningProcessor
from .workers import Workers, open_workers, worker_modules

__all__ = ["grace_on_cancel", "run", "run_sync"]


async def run(
    pipeline: Pipeline[Any],
    slides: Iterable[str | Path | SlideRef],
    *,
    limits: Limits | None = None,
    overwrite: bool = False,
    observers: Sequence[Observer] = (),
) -> RunReport:
    """Run a pipeline over slides; one that fails is reported, and the others finish.

    Args:
        pipeline: the four stages.
        slides: paths or references; the ids must differ, for they name the outputs.
        limits: what may be taken of the machine.
        overwrite: whether existing outputs are begun anew. Without it an output of the same
            plan is completed, and any other is left alone and reported.
        observers: get the run's events.

    Returns:
        One outcome per slide, in the order given. Where the run is cancelled, nothing is
        returned, but every `SlideEnded` was observed.

    Raises:
        ConfigError: the model cannot be had, ids clash, or there are no slides.
    """
    limits = limits or Limits()
    refs = [SlideRef.of(slide) for slide in slides]
    _check_ids(refs)
    share_one_heap()
    began = time.perf_counter()
    async with (
        open_workers(limits, worker_modules(pipeline.source)) as workers,
        grace_on_cancel(workers, limits),
        pipeline.processor.open(workers) as processor,
    ):
        lanes = _Lanes(pipeline, workers, processor, limits, overwrite, tuple(observers))
        await lanes.run(refs)
    return RunReport(tuple(lanes.outcomes[ref.id] for ref in refs), time.perf_counter() - began)


def run_sync(
    pipeline: Pipeline[Any],
    slides: Iterable[str | Path | SlideRef],
    *,
    limits: Limits | None = None,
    overwrite: bool = False,
    observers: Sequence[Observer] = (),
) -> RunReport:
    """`run`, for code that is not asynchronous."""

    async def main() -> RunReport:
        return await run(pipeline, slides, limits=limits, overwrite=overwrite, observers=observers)

    return anyio.run(main)


def _check_ids(refs: list[SlideRef]) -> None:
    if not refs:
        raise ConfigError("there are no slides to work on; give at least one")
    for id_, count in Counter(ref.id for ref in refs).items():
        if count > 1:
            uris = ", ".join(ref.uri for ref in refs if ref.id == id_)
            raise ConfigError(
                f"{count} slides have the id {id_!r} and would write the same output: {uris}; "
                "rename one, or give SlideRef(id, uri)"
            )


@asynccontextmanager
async def grace_on_cancel(workers: Workers, limits: Limits) -> AsyncIterator[None]:
    """Where the run is cancelled, kill workers that are not done within the time of grace.

    A job in a worker is waited for even then, for it writes into shared memory: a hung one
    would hold up the end for as long as it hangs.
    """
    timer = threading.Timer(limits.grace_s, workers.kill)
    timer.daemon = True

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            timer.start()

    error: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                yield
            except Exception as raised:
                error = raised  # else it would come out wrapped in a group
            finally:
                tasks.cancel_scope.cancel()
    finally:
        timer.cancel()
    if error is not None:
        raise error


@dataclass(slots=True)
class _Lanes:
    """The lanes of a run, some at a time."""

    pipeline: Pipeline[Any]
    workers: Workers
    processor: RunningProcessor[Any]
    limits: Limits
    overwrite: bool
    observers: tuple[Observer, ...]
    outcomes: dict[str, SlideOutcome] = field(default_factory=dict)

    async def run(self, refs: list[SlideRef]) -> None:
        at_once = min(self.limits.slides, len(refs))
        budget = Budget(self.limits.memory_bytes, at_once)
        slots = anyio.CapacityLimiter(at_once)
        async with anyio.create_task_group() as tasks:
            for ref in refs:
                tasks.start_soon(self._lane, ref, budget, slots)

    async def _lane(self, ref: SlideRef, budget: Budget, slots: anyio.CapacityLimiter) -> None:
        pipeline = self.pipeline
        async with slots:
            lane = Lane(
                ref,
                pipeline.source,
                pipeline.sampler,
                self.processor,
                pipeline.sink,
                self.workers,
                budget,
                self.overwrite,
                self._observe,
            )
            try:
                self._end(await lane.run())
            except anyio.get_cancelled_exc_class():
                self._end(lane.outcome("interrupted"))
                raise

    def _end(self, outcome: SlideOutcome) -> None:
        self.outcomes[outcome.slide] = outcome
        self._observe(SlideEnded(outcome))

    def _observe(self, event: Event) -> None:
        for observer in self.observers:
            # An observer is a guest: a broken progress bar must not cost a night's work.
            with contextlib.suppress(Exception):
                observer(event)
