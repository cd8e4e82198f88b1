"""The process that forks workers: it may die, and never stays behind."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamwsi import zygote_child
from streamwsi.blocks import ArrayRef
from streamwsi.errors import ConfigError, WorkerDied
from streamwsi.limits import Limits
from streamwsi.sources import FirstOf, MemorySource, Strict, TiffSource
from streamwsi.testing.worker_faults import (
    alive,
    all_started,
    children,
    die_once,
    fill_slowly,
    loaded,
)
from streamwsi.workers import open_workers, worker_modules

TARGET = ArrayRef(64, (4, 5), (5, 1), "uint8")


def limits(workers: int = 1) -> Limits:
    return Limits(workers=workers, memory=2**20)


def threads_of(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/task").iterdir()])


def with_code(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let zygotes run this first; ``z`` is their module."""
    command = zygote_child.command

    def changed(*args: Any) -> list[str]:
        *words, main = command(*args)
        return [
            *words,
            main.replace("; main(", f"; import streamwsi.zygote_child as z; {code}; main("),
        ]

    monkeypatch.setattr(zygote_child, "command", changed)


def wait_for_the_end_of(*pids: int, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its time"
        time.sleep(0.02)


async def test_modules_are_imported_once_and_by_one_thread() -> None:
    """Forking a process of several threads could leave a lock locked for good."""
    modules = worker_modules(TiffSource())
    names = ("tifffile", "imagecodecs", "simplejpeg", "torch", "zarr", "numpy.random", "pytest")
    async with open_workers(limits(workers=2), modules) as workers:
        await all_started(workers)
        assert threads_of(await workers.call(os.getppid)) == 1
        # numpy's generators would be the same in all workers.
        assert await workers.call(loaded, names) == ("tifffile", "imagecodecs", "simplejpeg")


def test_sources_made_of_others_ask_for_their_modules() -> None:
    (module,) = worker_modules(TiffSource())
    assert worker_modules(FirstOf((MemorySource({}), TiffSource()))) == (module,)
    assert worker_modules(Strict(TiffSource())) == (module,)
    assert worker_modules(MemorySource({})) == ()


async def test_modules_that_cannot_be_imported_are_passed_over() -> None:
    async with open_workers(limits(), ("no.such.module", "wave")) as workers:
        assert await workers.call(loaded, ("no.such.module", "wave")) == ("wave",)


async def test_workers_that_die_while_idle_cost_a_job_nothing(tmp_path: Path) -> None:
    async with open_workers(limits(workers=2)) as workers:
        for pid in await all_started(workers):
            os.kill(pid, signal.SIGKILL)
            wait_for_the_end_of(pid)
        # It has both of its attempts.
        assert await workers.call(die_once, tmp_path / "marker") == "survived"
        assert len(workers.pids) == 1


async def test_a_zygote_that_dies_while_idle_costs_a_job_nothing(tmp_path: Path) -> None:
    async with open_workers(limits(workers=2)) as workers:
        before = await all_started(workers)
        zygote = await workers.call(os.getppid)
        os.kill(zygote, signal.SIGKILL)
        wait_for_the_end_of(zygote)
        assert await workers.call(die_once, tmp_path / "marker") == "survived"
        # They do not go on beside those of the new one.
        assert not any(alive(pid) for pid in before)
        assert await workers.call(os.getppid) != zygote


async def test_a_zygote_that_dies_takes_its_workers_and_their_jobs_are_made_again(
    tmp_path: Path,
) -> None:
    async with open_workers(limits(workers=2)) as workers:
        before = await all_started(workers)
        zygote = await workers.call(os.getppid)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(workers.call, fill_slowly, TARGET, 6, 3.0)  # type: ignore[arg-type]
                await anyio.sleep(0.2)
                os.kill(zygote, signal.SIGKILL)
        assert (workers.arena.resolve(TARGET) == 6).all()
        assert not any(alive(pid) for pid in before)


async def test_a_zygote_that_is_killed_each_time_is_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_code(monkeypatch, "z.os.kill(z.os.getpid(), 9)")
    async with open_workers(limits()) as workers:
        with pytest.raises(ConfigError, match="no worker process can be started, for the one"):
            await workers.call(operator.neg, 1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("z.os.fork = lambda: z.os.open('/', z.os.O_WRONLY)", "Is a directory"),
        ("f = z.socket.recv_fds; z.socket.recv_fds = lambda *a: (f(*a)[0], [])", "Too many open"),
    ],
    ids=["processes", "files"],
)
async def test_a_system_that_allows_no_more_is_said_so(
    monkeypatch: pytest.MonkeyPatch, code: str, why: str
) -> None:
    with_code(monkeypatch, code)
    async with open_workers(limits()) as workers:
        for _ in range(2):  # and goes on to be said
            with pytest.raises(ConfigError, match=rf"no worker process can be started \({why}"):
                await workers.call(operator.neg, 1)


async def test_a_zygote_that_hangs_is_killed_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with_code(monkeypatch, "z.gc.freeze = lambda: z.time.sleep(600)")
    with anyio.fail_after(10):
        async with open_workers(limits()) as workers, anyio.create_task_group() as tasks:

            async def call() -> None:
                with pytest.raises(WorkerDied, match="the workers have ended"):
                    await workers.call(operator.neg, 1)

            tasks.start_soon(call)
            await anyio.sleep(0.5)
            await anyio.to_thread.run_sync(workers.kill)


async def test_where_forking_is_not_safe_workers_are_new_interpreters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_code(monkeypatch, "z.FORKS = False")
    async with open_workers(limits(workers=2), ("wave",)) as workers:
        before = await all_started(workers)
        assert await workers.call(loaded, ("wave", "numpy")) == ("numpy",)
        await workers.call(fill_slowly, TARGET, 8, 0.0)  # type: ignore[arg-type]
        assert (workers.arena.resolve(TARGET) == 8).all()
        assert await workers.call(die_once, tmp_path / "marker") == "survived"
        with pytest.raises(WorkerDied, match="ended with status 3"):
            await workers.call(os._exit, 3)
        after = await all_started(workers)
    assert not any(alive(pid) for pid in (*before, *after))


def run_in_threads(functions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_runs_in_threads_do_not_meet() -> None:
    """The workers of one go on when the thread that started the other's has ended."""
    found: list[int] = []

    def run(seconds: float) -> Callable[[], None]:
        async def main() -> None:
            async with open_workers(Limits(workers=1, memory=4096)) as workers:
                before = await workers.call(os.getpid)
                await workers.call(time.sleep, seconds)
                assert await workers.call(os.getpid) == before
                found.append(await workers.call(os.getppid))

        return lambda: anyio.run(main)

    run_in_threads([run(0.0), run(0.5), run(1.0)])
    assert len({*found}) == 3


SCRIPT = """
import operator, os, time
import anyio
from streamwsi.limits import Limits
from streamwsi.workers import open_workers, worker_modules
print("imported", flush=True)
async def main():
    async with open_workers(Limits(workers=2, memory=4096)) as workers:
        async with anyio.create_task_group() as tasks:
            print(await workers.call(operator.add, 1, 2), flush=True)
            {more}
anyio.run(main)
"""

HANGS = """
            {first}
            tasks.start_soon(workers.call, time.sleep, 600.0)
            tasks.start_soon(workers.call, time.sleep, 600.0)
            while len(workers.pids) < 2:
                await anyio.sleep(0.01)
            print(*workers.pids, flush=True)
"""


def start(script: str, path: Path | None) -> subprocess.Popen[str]:
    """Run it from a file, or as what an interactive interpreter reads."""
    text = textwrap.dedent(script)
    if path is None:
        process = subprocess.Popen(
            [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process
    path.write_text(text)
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["script.py", None])
def test_a_script_needs_no_guard(name: str | None, tmp_path: Path) -> None:
    """Workers do not import what starts them, and it may be no file."""
    script = start(SCRIPT.format(more=""), tmp_path / name if name else None)
    out, _ = script.communicate(timeout=60)
    assert (script.returncode, out.split()) == (0, ["imported", "3"])


@pytest.mark.parametrize(
    ("first", "also"),
    [
        ("", "nobody"),
        ("", "zygote"),
        # A copy of the socket lives on: its end does not say that the parent is gone.
        ("if os.fork() == 0: time.sleep(20); os._exit(0)", "nobody"),
    ],
    ids=["parent", "parent-and-zygote", "parent-that-forked"],
)
def test_nothing_outlives_a_parent_that_is_killed(first: str, also: str, tmp_path: Path) -> None:
    """Not workers that hang in a job, nor the process that forked them."""
    script = start(SCRIPT.format(more=HANGS.format(first=first).strip()), tmp_path / "script.py")
    assert script.stdout is not None
    with script:
        pids = [int(pid) for pid in [script.stdout.readline() for _ in range(3)][-1].split()]
        zygote = next(child for child in children(script.pid) if children(child))
        assert sorted(children(zygote)) == sorted(pids)
        script.kill()
        if also == "zygote":
            os.kill(zygote, signal.SIGKILL)
        wait_for_the_end_of(zygote, *pids)
        script.stdout.close()


def test_the_arena_is_shared_by_forked_workers() -> None:
    async def main() -> list[int]:
        async with open_workers(limits(workers=2)) as workers:
            await all_started(workers)
            async with anyio.create_task_group() as tasks:
                for i in range(2):
                    row = ArrayRef(64 + i, (4,), (2,), "uint8")
                    tasks.start_soon(workers.call, fill_slowly, row, 7 + i, 0.2)  # type: ignore[arg-type]
            both: list[int] = np.array(
                workers.arena.resolve(ArrayRef(64, (8,), (1,), "uint8"))
            ).tolist()
            return both

    assert anyio.run(main) == [7, 8] * 4
