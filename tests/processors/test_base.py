"""Processors made of a function."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi.chunks import Batch
from streamwsi.errors import CannotProcess, ConfigError, ContractBroken
from streamwsi.limits import Limits
from streamwsi.processors import BatchProcessor
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class MeanRed(BatchProcessor[np.float32]):
    """Mean of the red channel times a factor."""

    factor: float = 1.0

    def compute(self, batch: Batch) -> Array:
        mean: Array = batch.pixels[..., 0].mean(axis=(1, 2))
        return self.factor * mean


@dataclass(frozen=True, slots=True)
class Brightest(BatchProcessor[str]):
    """A text per window, with a table that is loaded first."""

    names: tuple[str, ...] = ("red", "green", "blue")

    def load(self) -> Callable[[Batch], Sequence[str]]:
        table = dict(enumerate(self.names))
        return lambda batch: [table[int(i)] for i in batch.pixels.mean(axis=(1, 2)).argmax(1)]


@dataclass(frozen=True, slots=True)
class Of(BatchProcessor[Any]):
    """Any function, for these tests."""

    function: Callable[[Batch], Any] = len

    def compute(self, batch: Batch) -> Any:
        return self.function(batch)

    @property
    def config(self) -> dict[str, Any]:
        return {}


async def test_values_are_those_of_the_function(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(MeanRed(2.0, batch_size=4), windows)
    expected = [2.0 * window[..., 0].mean() for window in windows]
    np.testing.assert_allclose(values, expected, rtol=1e-12)


async def test_values_may_be_any_sequence(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(Brightest(batch_size=3), windows)
    names = np.array(["red", "green", "blue"])
    np.testing.assert_array_equal(values, names[windows.mean(axis=(1, 2)).argmax(1)])


async def test_damaged_windows_become_nan(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(MeanRed(batch_size=4), windows, damaged=(0, 5, 9))
    assert [*np.flatnonzero(np.isnan(values))] == [0, 5, 9]


async def test_places_and_valid_go_along(make_batches: Any, windows: Array) -> None:
    batches = make_batches(windows, 4, damaged=(5,))
    seen = []
    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        MeanRed(batch_size=4).open(workers) as running,
    ):
        async for pieces in running.pieces(_iterated(batches)):
            seen += [(piece.place.index, piece.valid) for piece in pieces]
    assert seen == [(i, i != 5) for i in range(10)]


async def _iterated(items: Sequence[Batch]) -> Any:
    for item in items:
        yield item


async def test_a_view_of_the_batch_is_copied(make_batches: Any, windows: Array) -> None:
    # The batch's memory is used again while the pieces are still on their way.
    pixels = np.zeros((4, 16, 24, 3), np.float32)
    batch = make_batches(windows[:4], 4)[0]
    lent = Batch(batch.places, (pixels,), np.array([True, True, False, True]))
    async with open_workers(Limits(worker_kind="inline")) as workers:
        whole = Of(function=lambda batch: batch.parts[0][:, 0, 0])
        async with whole.open(workers) as running:
            pieces = await anext(running.pieces(_iterated([lent])))
            pixels[:] = 7
    np.testing.assert_array_equal(np.array(pieces.values)[:, 0], [0, 0, np.nan, 0])
    assert not np.isnan(pixels).any()


async def test_lanes_take_turns_in_a_thread(make_batches: Any, windows: Array) -> None:
    inside = 0
    most = 0
    loop_thread = threading.get_ident()

    def busy(batch: Batch) -> Array:
        nonlocal inside, most
        assert threading.get_ident() != loop_thread
        inside += 1
        most = max(most, inside)
        time.sleep(0.005)
        inside -= 1
        return np.arange(batch.places.start, batch.places.stop, dtype=float)

    results: dict[int, list[float]] = {}

    async def lane(running: Any, number: int) -> None:
        results[number] = []
        async for pieces in running.pieces(_iterated(make_batches(windows, 2))):
            results[number] += [*pieces.values]

    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        Of(function=busy).open(workers) as running,
        anyio.create_task_group() as tasks,
    ):
        for number in range(3):
            tasks.start_soon(lane, running, number)
    assert most == 1
    assert all(values == [*range(10)] for values in results.values())


@pytest.mark.parametrize("damaged", [(), (1,)])
async def test_a_wrong_number_of_values_breaks_the_contract(
    run_processor: Any, windows: Array, damaged: tuple[int, ...]
) -> None:
    with pytest.raises(ContractBroken, match="3 values for 10 windows"):
        await run_processor(Of(function=lambda _: np.zeros(3)), windows, damaged)


@pytest.mark.parametrize("value", [1.5, np.float32(1), np.array(1.0), None])
async def test_one_value_is_no_sequence(run_processor: Any, windows: Array, value: object) -> None:
    with pytest.raises(ContractBroken, match="not one value per window"):
        await run_processor(Of(function=lambda _: value), windows)


async def test_an_exception_names_the_windows(run_processor: Any, windows: Array) -> None:
    def fails(batch: Batch) -> Array:
        if batch.places.start == 4:
            raise ZeroDivisionError("no light\nand a second line")
        return np.zeros(len(batch))

    with pytest.raises(CannotProcess, match=r"windows 4 to 7: ZeroDivisionError: no light$"):
        await run_processor(Of(function=fails, batch_size=4), windows)


async def test_neither_compute_nor_load(run_processor: Any, windows: Array) -> None:
    with pytest.raises(ContractBroken, match="neither compute nor load"):
        await run_processor(BatchProcessor(), windows)


async def test_batch_size_must_be_positive(run_processor: Any, windows: Array) -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        await run_processor(MeanRed(batch_size=0), windows)


def test_config_holds_the_fields() -> None:
    config = Brightest(names=("r", "g", "b")).config
    assert config["processor"].endswith(".Brightest")
    assert (config["names"], config["batch_size"]) == (["r", "g", "b"], 32)
    assert json.loads(json.dumps(config)) == config


def test_config_takes_paths_and_refuses_objects() -> None:
    @dataclass(frozen=True, slots=True)
    class WithField(BatchProcessor[float]):
        value: object = None

    assert WithField(Path("a") / "b").config["value"] == "a/b"
    with pytest.raises(ConfigError, match="override its property config"):
        WithField(object()).config  # noqa: B018


async def test_a_cancelled_lane_waits_for_its_thread(make_batches: Any, windows: Array) -> None:
    ended = False

    def slow(batch: Batch) -> Array:
        nonlocal ended
        time.sleep(0.05)
        ended = True
        return np.zeros(len(batch))

    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        Of(function=slow).open(workers) as running,
    ):
        with anyio.move_on_after(0.01) as scope:
            await anext(running.pieces(_iterated(make_batches(windows, 4))))
        assert scope.cancel_called
        assert ended


def test_importing_processors_does_not_load_torch() -> None:
    code = (
        "import sys; from streamwsi.processors import TorchModule; TorchModule('hematoxylin'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
