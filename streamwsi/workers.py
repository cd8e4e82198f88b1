"""Workers: where decoding and other heavy functions run.

``await workers.call(function, *args)`` runs a module-level function in a worker process (or a
thread, or right here) and returns what it returns. Arguments that are `ArrayRef` arrive as
numpy arrays over the shared arena; pixels never travel through the pipe.

A worker that dies in the middle of a call, or takes longer than ``read_timeout_s``, is
replaced and the call is made once more; then it fails with `WorkerDied`. Cancelling a call
waits for the worker to be done with it: a job that has begun owns its memory until its end.

Processes rather than a pool of the standard library: that one loses every job in flight when
one worker dies, cannot kill a single hung worker, and imports the user's main module.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread

from . import worker_child
from .blocks import Arena, ArrayRef
from .errors import ConfigError, WorkerDied
from .limits import Limits, WorkerKind
from .paces import Pace

__all__ = ["Workers", "open_workers"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Child:
    """The parent's side of one worker process."""

    def __init__(self, arena: Arena, nice: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            pipe = theirs.fileno()
            self._process = subprocess.Popen(
                worker_child.command(pipe, arena.fd, arena.nbytes, nice),
                pass_fds=(pipe, arena.fd),
                stdin=subprocess.DEVNULL,
                # Its own group: Ctrl-C in the terminal is the parent's business.
                process_group=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, request: bytes, timeout_s: float) -> Any:
        """Run one call; blocks.

        Raises:
            WorkerDied: the process ended or took too long; it is dead now.
        """
        try:
            self._connection.send_bytes(request)
            if not self._connection.poll(timeout_s):
                raise WorkerDied(f"a worker was killed because a job took over {timeout_s:g} s")
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.kill()
            code = self._process.returncode
            how = f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"
            raise WorkerDied(f"a worker process ended {how} in the middle of a job") from error

    def kill(self) -> None:
        """End the process now, from any thread: who waits for its answer finds the pipe closed."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and the pipe; only while nobody waits for an answer."""
        self.kill()
        self._connection.close()


class Workers:
    """The workers of a run; made by `open_workers`.

    Attributes:
        kind: where calls run.
        count: how many run at the same time.
        arena: the shared memory that calls read and write.
        pace: what readers ask before they read and decode tiles.
    """

    def __init__(self, limits: Limits, arena: Arena) -> None:
        self.kind: WorkerKind = limits.worker_kind
        self.count = limits.worker_count
        self.arena = arena
        self.pace = Pace(limits.reads_per_second)
        self._timeout_s = limits.read_timeout_s
        self._nice = limits.nice or 0
        self._limiter = anyio.CapacityLimiter(self.count)
        self._closed = False
        # The most recently used worker is taken first: its open files and caches are warm.
        self._children: set[_Child] = set()
        self._idle = (
            [self._started() for _ in range(self.count)] if self.kind == "processes" else []
        )

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers (none for threads and inline)."""
        return tuple(sorted(child.pid for child in tuple(self._children)))

    async def call(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a module-level function in a worker and return what it returns.

        Raises:
            WorkerDied: the worker died, and so did the one that took the call again.
            ConfigError: the function cannot be imported by a worker process.
            Exception: whatever the function raises.
        """
        if self.kind == "processes":
            request = _request(function, args)
            answer = await anyio.to_thread.run_sync(self._call, request, limiter=self._limiter)
            done, result = pickle.loads(answer)
            if not done:
                raise result
            return result  # type: ignore[no-any-return]
        local = [self.arena.resolve(a) if isinstance(a, ArrayRef) else a for a in args]
        if self.kind == "threads":
            return await anyio.to_thread.run_sync(
                lambda: function(*local),  # type: ignore[arg-type]
                limiter=self._limiter,
            )
        await anyio.lowlevel.checkpoint()
        return function(*local)  # type: ignore[arg-type]

    def _call(self, request: bytes) -> bytes:
        """One call in a worker process, made once more if the worker dies."""
        try:
            return self._attempt(request)
        except WorkerDied:
            if self._closed:
                raise
            return self._attempt(request)

    def _attempt(self, request: bytes) -> bytes:
        if self._closed:
            raise WorkerDied("the workers have ended, and with them the run")
        try:
            child = self._idle.pop()
        except IndexError:  # in place of one that died
            child = self._started()
        try:
            answer: bytes = child.call(request, self._timeout_s)
        except WorkerDied:
            self._children.discard(child)
            child.close()
            raise
        self._idle.append(child)
        return answer

    def _started(self) -> _Child:
        child = _Child(self.arena, self._nice)
        self._children.add(child)
        return child

    def kill(self) -> None:
        """End all worker processes now; calls in flight fail with `WorkerDied`."""
        self._closed = True
        for child in tuple(self._children):
            child.kill()

    def close(self) -> None:
        """End all worker processes, once no call is in flight."""
        self.kill()
        for child in self._children:
            child.close()


def _request(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    if function.__module__ == "__main__" or "<" in getattr(function, "__qualname__", "<"):
        raise ConfigError(
            f"{worker_child.describe(function)} cannot run in worker processes: define it at the "
            "top level of an importable module, or run it in threads"
        )
    return pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)


@asynccontextmanager
async def open_workers(limits: Limits) -> AsyncIterator[Workers]:
    """Start the workers and their arena; they end with the context, however it is left.

    Starting returns at once: processes come up while models load.
    """
    # Readers keep to the limit together, but not with blocks of one size: twice the room has a
    # gap for each of them, whatever blocks the others hold. Pages that are not used cost nothing.
    arena = Arena(2 * limits.memory_bytes)
    try:
        workers = Workers(limits, arena)
        try:
            yield workers
        finally:
            workers.close()
    finally:
        arena.close()
