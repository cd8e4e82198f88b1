"""Functions as processors: in a thread, in the loop, in worker processes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch, Pieces
from streamwsi.errors import CannotProcess, ConfigError, ContractBroken
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor, callables, processor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import MemorySink
from streamwsi.sources.memory import MemorySource
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]

MODULE = """
import os
import numpy as np
from streamwsi.processors import processor

@processor(batch_size=4, where="processes", config={"offset": 1})
def mean(batch):
    assert len(batch) == len(batch.places) == len(batch.pixels)
    return batch.pixels.mean(axis=(1, 2)) + [place.index for place in batch.places][0] * 0

def where(batch):
    return [os.getpid()] * len(batch)

def fails(batch):
    if batch.places[0].index >= 4:
        raise ZeroDivisionError("no light\\nand more")
    return np.zeros(len(batch))

def dies(batch):
    os._exit(3)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that worker processes can import, too."""
    (tmp_path / "functions_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("functions_of_a_user")
    del sys.modules["functions_of_a_user"]


def red(batch: Batch) -> Array:
    """Mean of the red channel."""
    mean: Array = batch.pixels[..., 0].mean(axis=(1, 2))
    return mean


async def slow_red(batch: Batch) -> Array:
    """The same, as if a server were asked."""
    await anyio.sleep(0.001)
    return red(batch)


def expected_red(windows: Array) -> list[float]:
    return [float(window[..., 0].astype(float).mean()) for window in windows]


async def iterated(batches: list[Batch]) -> Any:
    for batch in batches:
        yield batch


async def in_processes(stage: FunctionProcessor[Any], batches: list[Batch]) -> list[Pieces[Any]]:
    async with (
        open_workers(Limits(workers=2, memory="4MiB")) as workers,
        stage.open(workers) as running,
    ):
        return [pieces async for pieces in running.pieces(iterated(batches))]


@pytest.mark.parametrize(
    ("function", "where"), [(red, None), (red, "thread"), (red, "loop"), (slow_red, None)]
)
async def test_values_are_those_of_the_function(
    function: Any, where: Any, run_processor: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(function, batch_size=4, where=where)
    values, _ = await run_processor(stage, windows, damaged=(5,))
    expected = np.array(expected_red(windows))
    expected[5] = np.nan
    np.testing.assert_allclose(values, expected, rtol=1e-12)


async def test_values_from_worker_processes_come_in_order(
    module: Any, make_batches: Any, windows: Array
) -> None:
    pieces = await in_processes(module.mean, make_batches(windows, 4, damaged=(9,)))
    assert [some.places.start for some in pieces] == [0, 4, 8]
    expected = windows.mean(axis=(1, 2))
    expected[9] = np.nan
    np.testing.assert_allclose(np.concatenate([s.values for s in pieces]), expected, rtol=1e-12)


async def test_worker_processes_are_other_processes(
    module: Any, make_batches: Any, windows: Array
) -> None:
    stage: FunctionProcessor[int] = FunctionProcessor(module.where, where="processes")
    async with (
        open_workers(Limits(workers=2, memory="4MiB")) as workers,
        stage.open(workers) as running,
    ):
        pieces = [some async for some in running.pieces(iterated(make_batches(windows, 2)))]
        pids = workers.pids
    assert {pid for some in pieces for pid in some.values} <= {*pids}


@pytest.mark.parametrize("kind", ["threads", "inline"])
async def test_processes_may_be_threads(
    kind: Any, module: Any, make_batches: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(lambda b: b.pixels, where="processes")
    async with (
        open_workers(Limits(workers=2, worker_kind=kind, memory="4MiB")) as workers,
        stage.open(workers) as running,
    ):
        values = [p.values async for p in running.pieces(iterated(make_batches(windows, 3)))]
    np.testing.assert_array_equal(np.concatenate(values), windows)


async def test_an_ordinary_function_runs_beside_the_loop(
    run_processor: Any, windows: Array
) -> None:
    threads = set()

    def note(batch: Batch) -> Array:
        threads.add(threading.get_ident())
        return np.zeros(len(batch))

    await run_processor(FunctionProcessor(note), windows)
    assert threading.get_ident() not in threads
    threads.clear()
    await run_processor(FunctionProcessor(note, where="loop"), windows)
    assert threads == {threading.get_ident()}


async def test_the_loop_goes_on_while_a_function_waits(make_batches: Any, windows: Array) -> None:
    inside = most = 0

    async def waits(batch: Batch) -> list[int]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await anyio.sleep(0.01)
        inside -= 1
        return [0] * len(batch)

    stage: FunctionProcessor[int] = FunctionProcessor(waits)

    async def lane(running: Any) -> None:
        async for _ in running.pieces(iterated(make_batches(windows, 4))):
            pass

    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        stage.open(workers) as one,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(3):
            tasks.start_soon(lane, one)
    assert most == 3


async def test_cancelling_cancels_an_async_function(make_batches: Any, windows: Array) -> None:
    cancelled = False

    async def hangs(batch: Batch) -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        finally:
            cancelled = True

    stage: FunctionProcessor[Any] = FunctionProcessor(hangs)
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        with anyio.move_on_after(0.01) as scope:
            await anext(one.pieces(iterated(make_batches(windows, 4))))
    assert scope.cancelled_caught
    assert cancelled


async def test_a_view_of_the_batch_is_copied(make_batches: Any, windows: Array) -> None:
    batch = make_batches(windows, 4)[0]
    stage: FunctionProcessor[Any] = FunctionProcessor(lambda b: b.parts[1], where="loop")
    lent = Batch(batch.places, (windows[:0], windows[:4].copy()), batch.valid)
    async with open_workers(Limits(worker_kind="inline")) as workers, stage.open(workers) as one:
        pieces = await anext(one.pieces(iterated([lent])))
    lent.parts[1][:] = 7
    np.testing.assert_array_equal(np.array(pieces.values), windows[:4])


async def test_tensors_become_arrays(run_processor: Any, windows: Array) -> None:
    torch = pytest.importorskip("torch")

    def brightness(batch: Batch) -> Any:
        return torch.from_numpy(batch.pixels).float().mean(dim=(1, 2)).requires_grad_()

    values, _ = await run_processor(FunctionProcessor(brightness), windows)
    assert isinstance(values, np.ndarray)
    np.testing.assert_allclose(values, windows.mean(axis=(1, 2)), rtol=1e-5)


# Errors.


def fails(batch: Batch) -> Array:
    """Fails from the second batch of four on."""
    if batch.places.start >= 4:
        raise ZeroDivisionError("no light\nand a second line")
    return np.zeros(len(batch))


async def fails_later(batch: Batch) -> Array:
    """The same, async."""
    return fails(batch)


@pytest.mark.parametrize(("function", "where"), [(fails, "thread"), (fails_later, "loop")])
async def test_an_exception_names_function_and_windows(
    function: Any, where: Any, run_processor: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(function, batch_size=4, where=where)
    message = (
        rf"\.{function.__name__} failed on windows 4 to 7 of row: ZeroDivisionError: no light$"
    )
    with pytest.raises(CannotProcess, match=message):
        await run_processor(stage, windows)


async def test_an_exception_in_a_worker_names_function_and_windows(
    module: Any, make_batches: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(module.fails, batch_size=4, where="processes")
    message = r"user\.fails failed on windows 4 to 7 of row: ZeroDivisionError: no light$"
    with pytest.raises(CannotProcess, match=message):
        await in_processes(stage, make_batches(windows, 4))


async def test_a_worker_that_dies_fails_the_batch(
    module: Any, make_batches: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(module.dies, where="processes")
    with pytest.raises(CannotProcess, match=r"user\.dies failed on windows 0 to 9 .*WorkerDied"):
        await in_processes(stage, make_batches(windows, 10))


@pytest.mark.parametrize("where", ["thread", "loop"])
@pytest.mark.parametrize("value", [1.5, np.float32(1), np.array(1.0), None, np.zeros(3), "x" * 10])
async def test_not_one_value_per_window(
    value: object, where: Any, run_processor: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(lambda _: value, where=where)
    with pytest.raises(ContractBroken, match=r"<lambda> returned .* one value per window, 10 here"):
        await run_processor(stage, windows)


async def test_worker_processes_need_a_function_that_can_be_imported(module: Any) -> None:
    for function in (lambda b: b, functools.partial(module.where)):
        stage: FunctionProcessor[Any] = FunctionProcessor(function, where="processes")
        async with open_workers(Limits(workers=1, memory="1MiB")) as workers:
            with pytest.raises(ConfigError, match="cannot run in worker processes: define it at"):
                await stage.open(workers).__aenter__()


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (red, {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (red, {"where": "gpu"}, "where must be thread, loop or processes, not 'gpu'"),
        (slow_red, {"where": "thread"}, "slow_red is an async function and runs in the event loop"),
        (red, {"config": {"a": object()}}, "config must go to JSON"),
        (7, {}, "7 cannot be a processor: it is not a function"),
    ],
)
def test_settings_that_make_no_sense(function: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FunctionProcessor(function, **settings)


# What identifies a function.


async def test_config_tells_function_batch_size_and_settings(
    run_processor: Any, windows: Array
) -> None:
    stage: FunctionProcessor[Any] = FunctionProcessor(red, batch_size=4, config={"lamp": (1, 2)})
    _, config = await run_processor(stage, windows)
    assert json.loads(json.dumps(config)) == config
    assert config["function"]["name"].endswith("test_function.red")
    assert len(config["function"]["sha256"]) == 64
    assert (config["batch_size"], config["config"]) == (4, {"lamp": [1, 2]})
    elsewhere: FunctionProcessor[Any] = FunctionProcessor(
        red, batch_size=4, where="loop", config={"lamp": [1, 2]}
    )
    assert (await run_processor(elsewhere, windows))[1] == config


def test_another_source_text_is_another_function(tmp_path: Path) -> None:
    digests = []
    for i, body in enumerate(("return 1", "return 1", "return 2")):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = folder / "changing.py"
        path.write_text(f"def f(batch):\n    {body}\n")
        spec = importlib.util.spec_from_file_location("changing", path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        digests.append(callables.described(found.f))
    assert digests[0] == digests[1] != digests[2]


def test_partials_count_their_arguments_and_objects_their_class() -> None:
    def power(batch: Any, exponent: int) -> Any:
        return batch**exponent

    class Called:
        def __call__(self, batch: Any) -> Any:
            return batch

    two, three = (functools.partial(power, exponent=n) for n in (2, 3))
    assert callables.described(two) == callables.described(functools.partial(power, exponent=2))
    assert callables.described(two) != callables.described(three)
    assert callables.name_of(two).endswith("power")
    assert callables.described(Called())["name"].endswith("Called")
    assert callables.described(Called()) == callables.described(Called())
    assert callables.described(len) == {"name": "builtins.len", "sha256": None}


def test_a_decorated_function_is_a_stage_that_pickles(module: Any) -> None:
    stage = module.mean
    assert isinstance(stage, FunctionProcessor)
    assert (stage.batch_size, stage.where, stage.config) == (4, "processes", {"offset": 1})
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert hash(stage) == hash(pickle.loads(pickle.dumps(stage)))


# From end to end.


@processor(batch_size=7)
def extremes(batch: Batch) -> Array:
    """Least and greatest value per window."""
    pixels = batch.pixels
    return np.stack([pixels.min(axis=(1, 2, 3)), pixels.max(axis=(1, 2, 3))], axis=1)


async def test_a_whole_run_equals_the_slow_reference() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)
    sink = MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (pixels,)}),
        sampler=SlidingWindow(kernel_size=20, stride=9),
        processor=extremes,
        sink=sink,
    )
    report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="64MiB"))
    report.raise_for_failures()
    expected = [
        [pixels[y : y + 20, x : x + 20].min(), pixels[y : y + 20, x : x + 20].max()]
        for y in range(0, 81, 9)
        for x in range(0, 71, 9)
    ]
    np.testing.assert_array_equal(np.array(sink.values["a"]), expected)
