"""Sinks that write no file."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch, ProcessedPiece
from streamwsi.errors import CannotWrite, ConfigError, ContractBroken, StageMismatch
from streamwsi.geometry import Grid, Size
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import FoldSink, MemorySink
from streamwsi.sources.memory import MemorySource
from streamwsi.testing.outputs import grid_plan, recipe, stream

GRID = Grid(Size(28, 20), Size(4, 4), Size(4, 4), 5)


async def write(sink: Any, values: Any, **kwargs: Any) -> Any:
    plan = grid_plan(GRID)
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        assert writer.resume_at == 0
        return await writer.write(stream(plan, values, **kwargs))


def arrays(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(GRID.count, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
async def test_arrays_are_stacked(shape: tuple[int, ...]) -> None:
    sink, values = MemorySink(), arrays(*shape)
    valid = np.arange(GRID.count) % 5 != 1
    receipt = await write(sink, values.copy(), valid=valid)
    kept = sink.values["slide"]
    assert isinstance(kept, np.ndarray)
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, values)
    np.testing.assert_array_equal(sink.valid["slide"], valid)
    places = sink.places["slide"]
    assert len(places) == GRID.count
    assert [place.index for place in places] == [*range(GRID.count)]
    assert places[7] == grid_plan(GRID).place(7)
    assert (receipt.pieces, receipt.invalid, receipt.outputs) == (35, 7, ())


async def test_other_values_are_listed() -> None:
    sink = MemorySink()
    values = [{"window": i} for i in range(GRID.count)]
    await write(sink, [*values])
    assert sink.values["slide"] == values


async def test_values_must_be_alike() -> None:
    class Changing:
        def __getitem__(self, item: slice) -> Any:
            return np.zeros((item.stop - item.start, 2 if item.start < 8 else 3))

    with pytest.raises(StageMismatch, match=r"float64 \(2,\) per window, and float64 \(3,\) .* 8"):
        await write(MemorySink(), Changing())


@pytest.mark.parametrize("sink", [MemorySink(), FoldSink(0, lambda sum, piece: sum + 1)])
async def test_half_a_slide_leaves_nothing(sink: Any) -> None:
    kept = sink.values if isinstance(sink, MemorySink) else sink.results
    with pytest.raises(ContractBroken, match="of slide slide ended at 12 of 35"):
        await write(sink, arrays(2), stop=12)
    with pytest.raises(ContractBroken, match="piece 4 of slide slide came where piece 0 was due"):
        await write(sink, arrays(2), start=4)

    def fail(piece: int) -> None:
        if piece == 16:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write(sink, arrays(2), between=fail)
    with anyio.CancelScope() as scope:
        await write(sink, arrays(2), between=lambda p: scope.cancel() if p == 32 else None)
    assert kept == {} or not scope.cancelled_caught
    await write(sink, arrays(2))
    assert [*kept] == ["slide"]


def test_they_are_stages() -> None:
    sink = MemorySink()
    assert repr(sink) == "MemorySink()"
    assert sink.config == {"type": "memory"}
    assert sink.outputs(grid_plan(GRID).slide.ref) == ()
    fold: FoldSink[int] = FoldSink(0, max)  # type: ignore[arg-type]
    assert fold.config == {"type": "fold"}
    assert fold.outputs(grid_plan(GRID).slide.ref) == ()


# Folding.


async def test_pieces_are_folded_in_order() -> None:
    def append(numbers: list[Any], piece: ProcessedPiece[Any]) -> list[Any]:
        return [*numbers, (piece.place.index, piece.valid, piece.value)]

    sink: FoldSink[list[Any]] = FoldSink([], append)
    values, valid = arrays(2), np.arange(GRID.count) % 5 != 1
    receipt = await write(sink, values.copy(), valid=valid)
    assert [index for index, _, _ in sink.results["slide"]] == [*range(GRID.count)]
    assert [good for _, good, _ in sink.results["slide"]] == valid.tolist()
    # What the step kept is not overwritten by later pieces.
    np.testing.assert_array_equal([value for _, _, value in sink.results["slide"]], values)
    assert (receipt.pieces, receipt.invalid) == (35, 7)


@pytest.mark.parametrize("initial", [{"seen": 0}, lambda: {"seen": 0}])
async def test_each_slide_begins_anew(initial: Any) -> None:
    def count(so_far: dict[str, int], piece: ProcessedPiece[Any]) -> dict[str, int]:
        so_far["seen"] += 1
        return so_far

    sink = FoldSink(initial, count)
    for name in ("a", "b"):
        plan = grid_plan(GRID, id=name)
        async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
            await writer.write(stream(plan, arrays(1)))
    assert sink.results == {"a": {"seen": 35}, "b": {"seen": 35}}


async def test_a_step_runs_beside_the_loop() -> None:
    threads = set()

    def note(so_far: int, piece: ProcessedPiece[Any]) -> int:
        threads.add(threading.get_ident())
        return so_far

    await write(FoldSink(0, note), arrays(1))
    assert threading.get_ident() not in threads


async def test_a_step_that_fails() -> None:
    def divide(so_far: float, piece: ProcessedPiece[Any]) -> float:
        return so_far / (piece.place.index - 9)

    with pytest.raises(CannotWrite, match=r"window 9 of /slides/slide\.svs: ZeroDivisionError"):
        await write(FoldSink(1.0, divide), arrays(1))
    with pytest.raises(ConfigError, match="must be a function, not 7"):
        FoldSink(0, 7)  # type: ignore[arg-type]


async def test_a_whole_run_of_two_slides() -> None:
    def brightest(batch: Batch) -> Any:
        return batch.pixels.max(axis=(1, 2, 3))

    def greatest(so_far: int, piece: ProcessedPiece[Any]) -> int:
        return max(so_far, int(piece.value))

    rng = np.random.default_rng(3)
    slides = {name: (rng.integers(0, 200, (50, 40, 3), np.uint8),) for name in ("a", "b")}
    slides["b"][0][30, 20, 1] = 255
    sink: FoldSink[int] = FoldSink(0, greatest)
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource(slides),
        sampler=SlidingWindow(kernel_size=10),
        processor=FunctionProcessor(brightest, batch_size=3),
        sink=sink,
    )
    report = await run(pipeline, slides, limits=Limits(worker_kind="inline", memory="64MiB"))
    report.raise_for_failures()
    assert sink.results == {"a": slides["a"][0].max(), "b": 255}
    assert [outcome.outputs for outcome in report.outcomes] == [(), ()]
