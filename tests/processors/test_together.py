"""Several processors on the same windows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch, BigChunk, Pieces, Region
from streamwsi.errors import CannotProcess, ConfigError, ContractBroken, StageMismatch
from streamwsi.geometry import Box
from streamwsi.limits import Limits
from streamwsi.processors import BatchProcessor, FunctionProcessor, Together, TorchModule
from streamwsi.processors.base import RunningBatchProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import MemorySink
from streamwsi.sources.memory import MemorySource
from streamwsi.workers import Workers, open_workers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Of(BatchProcessor[Any]):
    """Any function, in any number of threads at a time."""

    function: Callable[[Batch], Any] = len
    at_once: int = 1

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[RunningBatchProcessor[Any]]:
        with ThreadPoolExecutor(self.at_once) as threads:
            yield RunningBatchProcessor(
                self.function, self.batch_size, {"of": 1}, threads, self.at_once
            )


def means(batch: Batch) -> Array:
    """``(n, 3)``."""
    return np.asarray(batch.pixels.mean(axis=(1, 2)), np.float32)


def least(batch: Batch) -> Array:
    """``(n,)``."""
    return np.asarray(batch.pixels.min(axis=(1, 2, 3)), np.float32)


def maps(batch: Batch) -> Array:
    """``(n, 3, 4, 6)``."""
    return np.asarray(batch.pixels[:, ::4, ::4].transpose(0, 3, 1, 2), np.float32)


@pytest.mark.parametrize("threads", [(1, 1), (3, 1), (1, 4)])
async def test_vectors_side_by_side(
    threads: tuple[int, int], run_processor: Any, windows: Array
) -> None:
    first = Of(batch_size=2, function=means, at_once=threads[0])
    second = Of(batch_size=2, function=least, at_once=threads[1])
    values, _ = await run_processor(Together(first, second), windows, damaged=(3,))
    expected = np.array([[*one.mean(axis=(0, 1)), one.min()] for one in windows], np.float32)
    expected[3] = np.nan
    np.testing.assert_allclose(values, expected, rtol=1e-6)


async def test_maps_side_by_side(run_processor: Any, windows: Array) -> None:
    twice = Of(batch_size=4, function=lambda batch: 2 * maps(batch))
    values, _ = await run_processor(Together(Of(batch_size=4, function=maps), twice), windows)
    expected = windows[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(values, np.concatenate([expected, 2 * expected], axis=1))


async def test_one_three_and_nested(run_processor: Any, windows: Array) -> None:
    parts = [Of(batch_size=3, function=f) for f in (means, least, means)]
    alone, _ = await run_processor(Together(parts[0]), windows)
    flat, _ = await run_processor(Together(*parts), windows)
    nested, _ = await run_processor(Together(parts[0], Together(*parts[1:])), windows)
    np.testing.assert_array_equal(alone, windows.mean(axis=(1, 2)).astype(np.float32))
    np.testing.assert_array_equal(flat, nested)
    np.testing.assert_array_equal(flat[:, 4:], alone)


async def iterated(batches: list[Batch]) -> AsyncGenerator[Batch, None]:
    for batch in batches:
        yield batch


async def test_they_work_at_the_same_time(make_batches: Any, windows: Array) -> None:
    meet = threading.Barrier(2, timeout=5)

    def waits(batch: Batch) -> Array:
        meet.wait()
        return least(batch)

    stage = Together(Of(batch_size=5, function=waits), Of(batch_size=5, function=waits))
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        pieces = [some async for some in one.pieces(iterated(make_batches(windows, 5)))]
    assert [len(some) for some in pieces] == [5, 5]


@pytest.mark.parametrize("threads", [(1, 1), (4, 1), (1, 3)])
async def test_pixels_are_lent_until_the_slowest_is_done(
    threads: tuple[int, int], make_batches: Any, windows: Array
) -> None:
    # The memory of a batch is spoilt when it is given back, and one batch fits at a time: the
    # next is cut only after that.
    free = anyio.Event()
    free.set()
    memory = np.zeros((2, 16, 24, 3), np.uint8)

    async def batches(made: list[Batch]) -> AsyncGenerator[Batch, None]:
        nonlocal free
        for batch in made:
            await free.wait()
            free = anyio.Event()
            memory[:] = batch.pixels
            lent = free

            def spoil(lent: anyio.Event = lent) -> None:
                memory[:] = 7
                lent.set()

            region = Region(0, 0, Box(0, 0, 24, 32), 0, 2)
            chunk = BigChunk(region, memory.reshape(32, 24, 3), (), spoil)
            yield Batch(batch.places, (memory,), batch.valid, (chunk,))
            chunk.release()

    slow = Of(batch_size=2, function=_slowly, at_once=threads[0])
    stage = Together(slow, Of(batch_size=2, function=means, at_once=threads[1]))
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        with anyio.fail_after(5):
            values = [some.values async for some in one.pieces(batches(make_batches(windows, 2)))]
    expected = windows.mean(axis=(1, 2)).astype(np.float32)
    got = np.concatenate([np.asarray(v) for v in values])
    np.testing.assert_array_equal(got, np.concatenate([expected, expected], axis=1))


def _slowly(batch: Batch) -> Array:
    time.sleep(0.01)
    return means(batch)


async def test_configs_nest_and_channels_line_up(run_processor: Any, windows: Array) -> None:
    model = TorchModule("hematoxylin", batch_size=4)
    _, plain = await run_processor(model, windows)
    _, config = await run_processor(Together(model, model), windows)
    assert config["processors"] == [plain, plain]
    assert config["channels"] == plain["channels"] * 2
    assert json.loads(json.dumps(config)) == config
    function: FunctionProcessor[Any] = FunctionProcessor(least, batch_size=4)
    _, config = await run_processor(Together(model, function), windows)
    assert config["channels"] is None


# Errors.


async def test_batch_sizes_must_agree(run_processor: Any, windows: Array) -> None:
    stage = Together(Of(batch_size=4), Of(batch_size=8), Of(batch_size=4))
    with pytest.raises(ConfigError, match="need one batch size, but have 4, 8, 4"):
        await run_processor(stage, windows)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (means, maps, r"all give vectors, or maps of one size.* \(3,\), \(3, 4, 6\)"),
        (maps, lambda b: maps(b)[..., :2], r"the shapes \(3, 4, 6\), \(3, 4, 2\)"),
        (means, lambda b: ["a"] * len(b), "but one returned list"),
        (means, lambda b: b.pixels[..., 0], "but one returned shape"),
    ],
)
async def test_values_that_do_not_fit(
    first: Any, second: Any, message: str, run_processor: Any, windows: Array
) -> None:
    stage = Together(Of(batch_size=4, function=first), Of(batch_size=4, function=second))
    with pytest.raises(StageMismatch, match=message):
        await run_processor(stage, windows)


async def test_a_failure_is_the_processors_own(run_processor: Any, windows: Array) -> None:
    def fails(batch: Batch) -> Array:
        if batch.places.start == 4:
            raise ZeroDivisionError("no light")
        return least(batch)

    stage = Together(Of(batch_size=2, function=means, at_once=3), Of(batch_size=2, function=fails))
    with pytest.raises(CannotProcess, match="windows 4 to 5: ZeroDivisionError: no light"):
        await run_processor(stage, windows)


async def test_a_failure_upstream_is_passed_on(make_batches: Any, windows: Array) -> None:
    async def broken() -> AsyncGenerator[Batch, None]:
        yield make_batches(windows, 4)[0]
        raise KeyError("upstream")

    stage = Together(Of(batch_size=4, function=means), Of(batch_size=4, function=least))
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        with pytest.raises(KeyError, match="upstream"):
            async for _ in one.pieces(broken()):
                pass


class EndsEarly:
    """A processor that gives one piece, whatever comes."""

    batch_size = 4
    config: ClassVar[dict[str, Any]] = {}

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[Any]:
        yield self

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Any], None]:
        async for batch in batches:
            yield Pieces(batch.places, means(batch)[:, 0], batch.valid)
            return


async def test_a_processor_that_ends_early(run_processor: Any, windows: Array) -> None:
    stage = Together(Of(batch_size=4, function=means), EndsEarly())
    with pytest.raises(ContractBroken, match="ended before its batches did"):
        await run_processor(stage, windows)


async def test_a_cancelled_lane_waits_for_its_threads(make_batches: Any, windows: Array) -> None:
    running = 0

    def slow(batch: Batch) -> Array:
        nonlocal running
        running += 1
        time.sleep(0.03)
        running -= 1
        return means(batch)

    stage = Together(Of(batch_size=4, function=slow), Of(batch_size=4, function=slow))
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        with anyio.move_on_after(0.01) as scope:
            async with aclosing(one.pieces(iterated(make_batches(windows, 4)))) as pieces:
                await anext(pieces)
        assert scope.cancelled_caught
        assert running == 0


def test_a_recipe_of_its_own() -> None:
    with pytest.raises(ConfigError, match="at least one processor"):
        Together()
    one = TorchModule("hematoxylin")
    assert Together(one, one) == Together(one, one) != Together(one)
    assert repr(Together(one)) == f"Together({one!r})"


async def test_a_whole_run_equals_the_slow_reference() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)
    sink = MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (pixels,), "b": (pixels[::-1],)}),
        sampler=SlidingWindow(kernel_size=20, stride=9),
        processor=Together(
            Of(batch_size=7, function=means, at_once=2), Of(batch_size=7, function=least)
        ),
        sink=sink,
    )
    report = await run(pipeline, ["a", "b"], limits=Limits(worker_kind="inline", memory="64MiB"))
    report.raise_for_failures()
    for name, slide in (("a", pixels), ("b", pixels[::-1])):
        cuts = [slide[y : y + 20, x : x + 20] for y in range(0, 81, 9) for x in range(0, 71, 9)]
        expected = [[*cut.mean(axis=(0, 1)), cut.min()] for cut in cuts]
        np.testing.assert_allclose(np.array(sink.values[name]), expected, rtol=1e-6)
