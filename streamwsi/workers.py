"""Workers: where decoding and other heavy functions run.

``await workers.call(function, *args)`` runs a module-level function in a worker process (or a
thread, or right here) and returns what it returns. Arguments that are `ArrayRef` arrive as
numpy arrays over the shared arena; pixels never travel through the pipe.

A worker that dies in the middle of a call, or takes longer than ``read_timeout_s``, is
replaced and the call is made once more; then it fails with `WorkerDied`. Cancelling a call
waits for the worker to be done with it: a job that has begun owns its memory until its end.

Worker processes are forked by a zygote (`streamwsi.zygote`) when they are first needed. Not a
pool of the standard library: that one loses every job in flight when one worker dies, cannot
kill a single hung worker, and imports the user's main module.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, TypeVarTuple, runtime_checkable

import anyio
import anyio.to_thread

from .blocks import Arena, ArrayRef
from .errors import ConfigError, WorkerDied
from .limits import Limits, WorkerKind
from .paces import Pace
from .worker_child import describe
from .zygote import Child, NotTaken, Zygote

__all__ = ["DecodesInWorkers", "Workers", "open_workers", "worker_modules"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@runtime_checkable
class DecodesInWorkers(Protocol):
    """A source whose functions run in worker processes and need libraries there."""

    @property
    def worker_modules(self) -> tuple[str, ...]:
        """Modules to import once, before worker processes are forked; a name that cannot be
        imported is passed over. Importing them starts no thread."""


def worker_modules(source: object) -> tuple[str, ...]:
    """What worker processes need for a source, as far as it says so."""
    return source.worker_modules if isinstance(source, DecodesInWorkers) else ()


class Workers:
    """The workers of a run; made by `open_workers`.

    Attributes:
        kind: where calls run.
        count: how many run at the same time.
        arena: the shared memory that calls read and write.
        pace: what readers ask before they read and decode tiles.
    """

    def __init__(self, limits: Limits, arena: Arena, modules: tuple[str, ...] = ()) -> None:
        self.kind: WorkerKind = limits.worker_kind
        self.count = limits.worker_count
        self.arena = arena
        self.pace = Pace(limits.reads_per_second)
        self._timeout_s = limits.read_timeout_s
        self._zygote_args = (arena, limits.nice or 0, modules)
        self._limiter = anyio.CapacityLimiter(self.count)
        self._closed = False
        self._children: set[Child] = set()
        # The most recently used worker is taken first: its open files and caches are warm.
        self._idle: list[Child] = []
        self._zygote = Zygote(*self._zygote_args) if self.kind == "processes" else None
        self._changing = threading.Lock()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that were needed so far (none for threads and inline)."""
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
        # Each idle worker may turn out to be dead, and a new one as well; but not for ever.
        for last in (*(False for _ in range(self.count + 1)), True):
            child = self._taken()
            try:
                answer = child.call(request, self._timeout_s)
            except WorkerDied as error:
                self._children.discard(child)
                if last or self._closed or not isinstance(error, NotTaken):
                    raise
            else:
                self._idle.append(child)
                return answer
        raise AssertionError("the last turn returns or raises")

    def _taken(self) -> Child:
        """An idle worker, or a new one; those that died while idle are forgotten."""
        while True:
            try:
                child = self._idle.pop()
            except IndexError:
                return self._started()
            if child.alive:
                return child
            self._children.discard(child)
            child.end()

    def _started(self) -> Child:
        """A new worker; if the zygote dies over it, of a new zygote."""
        child = self._serving_zygote().start() or self._serving_zygote().start()
        if child is None:
            raise ConfigError(
                "no worker process can be started, for the one that forks them is killed each "
                "time; see that there is memory left, or run with worker_kind='threads'"
            )
        self._children.add(child)
        return child

    def _serving_zygote(self) -> Zygote:
        with self._changing:
            if self._closed or self._zygote is None:
                raise WorkerDied("the workers have ended, and with them the run")
            if not self._zygote.alive:
                self._zygote.close()
                self._zygote = Zygote(*self._zygote_args)
            return self._zygote

    def kill(self) -> None:
        """End all worker processes now; calls in flight fail with `WorkerDied`."""
        self._closed = True
        with self._changing:
            if self._zygote is not None:
                self._zygote.kill()

    def close(self) -> None:
        """End all worker processes, once no call is in flight."""
        self.kill()
        for child in self._children:
            child.close()
        if self._zygote is not None:
            self._zygote.close()


def _request(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    if function.__module__ == "__main__" or "<" in getattr(function, "__qualname__", "<"):
        raise ConfigError(
            f"{describe(function)} cannot run in worker processes: define it at the "
            "top level of an importable module, or run it in threads"
        )
    return pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)


@asynccontextmanager
async def open_workers(limits: Limits, modules: tuple[str, ...] = ()) -> AsyncIterator[Workers]:
    """Start the workers and their arena; they end with the context, however it is left.

    Starting returns at once: what workers need is imported while models load.

    Args:
        limits: how many, of which kind, and how much memory.
        modules: what worker processes will need, to be imported once for all of them.
    """
    # Readers keep to the limit together, but not with blocks of one size: twice the room has a
    # gap for each of them, whatever blocks the others hold. Pages that are not used cost nothing.
    arena = Arena(2 * limits.memory_bytes)
    try:
        workers = Workers(limits, arena, modules)
        try:
            yield workers
        finally:
            workers.close()
    finally:
        arena.close()
