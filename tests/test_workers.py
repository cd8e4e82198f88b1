"""Workers: deaths, hangs, errors, cancellation, and nothing left behind."""

from __future__ import annotations

import functools
import operator
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamwsi.blocks import ArrayRef
from streamwsi.errors import CannotRead, ConfigError, WorkerDied
from streamwsi.limits import Limits, WorkerKind
from streamwsi.testing.worker_faults import (
    alive,
    all_started,
    die_once,
    fill_slowly,
    loaded,
    raise_one_way,
    raise_unpicklable,
)
from streamwsi.workers import open_workers

KINDS: tuple[WorkerKind, ...] = ("processes", "threads", "inline")
TARGET = ArrayRef(64, (4, 5), (5, 1), "uint8")


def limits(workers: int = 1, kind: WorkerKind = "processes", timeout_s: float = 60.0) -> Limits:
    return Limits(
        workers=workers, worker_kind=kind, memory=2**20, read_timeout_s=timeout_s, grace_s=1.0
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_returns_what_the_function_returns(kind: WorkerKind) -> None:
    async with open_workers(limits(kind=kind)) as workers:
        assert await workers.call(operator.add, 2, 3) == 5
        pid = await workers.call(os.getpid)
    assert (pid == os.getpid()) == (kind != "processes")


@pytest.mark.parametrize("kind", KINDS)
async def test_arrays_are_written_in_place(kind: WorkerKind) -> None:
    async with open_workers(limits(kind=kind)) as workers:
        await workers.call(fill_slowly, TARGET, 9, 0.0)  # type: ignore[arg-type]
        whole = workers.arena.resolve(ArrayRef(0, (128,), (1,), "uint8"))
        assert np.flatnonzero(whole).tolist() == [*range(64, 84)]
        assert (whole[64:84] == 9).all()
        del whole


@pytest.mark.parametrize("kind", KINDS)
async def test_exceptions_come_back_as_themselves(kind: WorkerKind) -> None:
    async with open_workers(limits(kind=kind)) as workers:
        with pytest.raises(FileNotFoundError) as caught:
            await workers.call(os.stat, "/no/such/file")
        assert caught.value.filename == "/no/such/file"
        assert await workers.call(operator.neg, 1) == -1


async def test_exceptions_that_cannot_travel_are_told_in_words() -> None:
    async with open_workers(limits()) as workers:
        with pytest.raises(RuntimeError, match="ValueError: it holds a function"):
            await workers.call(raise_unpicklable)
        with pytest.raises(RuntimeError, match="OneWayError: lost at sea"):
            await workers.call(raise_one_way)
        # Nor can this result.
        with pytest.raises(TypeError, match="pickle"):
            await workers.call(compile, "1", "x", "eval")
        assert await workers.call(operator.neg, 1) == -1


@pytest.mark.parametrize(
    "function",
    [lambda: 1, functools.partial(operator.add, 1)],
    ids=["lambda", "partial"],
)
async def test_functions_that_a_worker_cannot_import_are_refused(
    function: Callable[[], Any],
) -> None:
    async with open_workers(limits()) as workers:
        with pytest.raises(ConfigError, match="cannot run in worker processes: define it at the"):
            await workers.call(function)


async def test_functions_of_the_main_module_are_refused() -> None:
    def function() -> None: ...

    function.__module__, function.__qualname__ = "__main__", "function"
    async with open_workers(limits()) as workers:
        with pytest.raises(ConfigError, match=r"__main__\.function cannot run in worker"):
            await workers.call(function)


async def test_threads_run_any_function() -> None:
    async with open_workers(limits(kind="threads")) as workers:
        assert await workers.call(lambda: 7) == 7


async def test_a_job_that_kills_its_worker_is_made_once_more(tmp_path: Path) -> None:
    async with open_workers(limits(workers=2)) as workers:
        before = {*await all_started(workers)}
        async with anyio.create_task_group() as tasks:
            # The other worker's job is not touched by the death beside it.
            tasks.start_soon(workers.call, fill_slowly, TARGET, 3, 0.3)  # type: ignore[arg-type]
            assert await workers.call(die_once, tmp_path / "marker") == "survived"
        assert (workers.arena.resolve(TARGET) == 3).all()
        assert len(before & {*workers.pids}) == 1


async def test_a_job_that_always_kills_its_worker_fails() -> None:
    async with open_workers(limits(workers=1)) as workers:
        with pytest.raises(WorkerDied, match="ended by signal 9 in the middle of a job"):
            await workers.call(signal.raise_signal, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="ended with status 3"):
            await workers.call(os._exit, 3)
        assert await workers.call(operator.neg, 1) == -1
        assert len(workers.pids) == 1


async def test_a_job_that_hangs_is_ended() -> None:
    async with open_workers(limits(timeout_s=1.5)) as workers:
        before = await workers.call(os.getpid)
        with anyio.fail_after(10), pytest.raises(WorkerDied, match=r"a job took over 1\.5 s"):
            await workers.call(time.sleep, 600.0)
        assert not alive(before)
        assert await workers.call(operator.neg, 1) == -1


@pytest.mark.parametrize("kind", ["processes", "threads"])
async def test_no_more_calls_run_than_there_are_workers(kind: WorkerKind) -> None:
    async with open_workers(limits(workers=2, kind=kind)) as workers:
        await workers.call(operator.neg, 1)
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(workers.call, time.sleep, 0.1)
        assert time.perf_counter() - began >= 0.2
        assert len(workers.pids) == (2 if kind == "processes" else 0)


@pytest.mark.parametrize("kind", ["processes", "threads"])
async def test_a_cancelled_call_waits_for_its_job(kind: WorkerKind) -> None:
    """The job writes into shared memory until it ends, whoever waits for it."""
    async with open_workers(limits(kind=kind)) as workers:
        await workers.call(operator.neg, 1)
        with anyio.move_on_after(0.05) as scope:
            await workers.call(fill_slowly, TARGET, 4, 0.4)  # type: ignore[arg-type]
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert (workers.arena.resolve(TARGET) == 4).all()
        assert await workers.call(operator.neg, 1) == -1


async def test_killing_the_workers_ends_their_calls() -> None:
    async with open_workers(limits(workers=2)) as workers:
        pids = await all_started(workers)
        failed = []

        async def call() -> None:
            try:
                await workers.call(time.sleep, 600.0)
            except WorkerDied as error:
                failed.append(str(error))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(call)
                await anyio.sleep(0.2)
                await anyio.to_thread.run_sync(workers.kill)
        assert len(failed) == 4
        assert len(pids) == 2
        assert not any(alive(pid) for pid in pids)
        with pytest.raises(WorkerDied, match="the workers have ended"):
            await workers.call(operator.neg, 1)


async def test_nothing_is_left_when_the_context_is_left_by_an_error() -> None:
    async def use() -> None:
        async with open_workers(limits(workers=2)) as workers:
            pids.extend([*await all_started(workers), await workers.call(os.getppid)])
            raise CannotRead("x")

    pids: list[int] = []
    with pytest.raises(CannotRead):
        await use()
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)


async def test_workers_carry_no_heavy_modules() -> None:
    async with open_workers(limits()) as workers:
        heavy = await workers.call(loaded, ("torch", "zarr", "tifffile", "numpy", "pytest"))
    assert heavy == ("numpy",)


async def test_the_interrupt_key_is_not_for_workers() -> None:
    async with open_workers(limits()) as workers:
        pid, zygote = await workers.call(os.getpid), await workers.call(os.getppid)
        os.kill(zygote, signal.SIGINT)
        os.kill(pid, signal.SIGINT)
        assert await workers.call(os.getpid) == pid
        assert await workers.call(os.getpgrp) != os.getpgrp()
