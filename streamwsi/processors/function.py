"""FunctionProcessor: any Python function from a batch to its values, as a processor.

The shortest way to a processor of one's own, without a class::

    @processor(batch_size=64)
    def redness(batch):
        return batch.pixels[..., 0].mean(axis=(1, 2))

    Pipeline(..., processor=redness, ...)

Where it runs is said beside it, and does not change the results:

``thread``     in one thread beside the event loop, a batch at a time: numpy, an ordinary library.
``loop``       in the event loop, a batch at a time per slide: a function that is ``async`` (it
               asks a server, say; others go on while it waits), or one that takes no time.
``processes``  in the run's worker processes, several batches at a time: Python that holds the
               interpreter for milliseconds per window. The pixels are copied into the call and
               pickled, so that cheaper functions lose. The function is imported by its name.

All go the road of `RunningBatchProcessor` but for the loop's, which awaits the function in the
lane's own task, so that cancelling the run cancels the call. Worker processes are awaited by
threads: what has begun is waited for, and its loan of pixels lasts until then.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np

from ..chunks import Batch, Pieces
from ..errors import ConfigError
from ..stages import RunningProcessor
from ..workers import Workers
from .base import RunningBatchProcessor
from .callables import checked_config, described, name_of
from .function_calls import ByName, Call, Function, in_workers

__all__ = ["FunctionProcessor", "Where", "processor"]

V = TypeVar("V", covariant=True)
Where = Literal["thread", "loop", "processes"]

#: Batches in worker processes at the same time, at most ...
_AT_ONCE = 8
#: ... for each of them takes its pixels' memory so often: copied, pickled, and at the other end.
_COPIES = 4


@dataclass(frozen=True, slots=True)
class FunctionProcessor(Generic[V]):
    """A function that maps a batch to one value per window.

    Attributes:
        function: takes a `Batch` (where it runs in worker processes a
            `streamwsi.processors.function_calls.CopiedBatch`, which owns its pixels), and may use
            it until it returns. Returns one value per window: an array or a tensor
            ``(n, …)``, or any sequence. Values in floating arrays become NaN where the window
            has damaged pixels; an array's memory must not be written to later.
        batch_size: windows a call.
        where: ``"thread"``, ``"loop"`` or ``"processes"``, see the module; None means a thread,
            and the loop for functions that are ``async``.
        config: what else identifies the results, JSON-able: settings that the function reads
            from elsewhere. Its name and its source text count by themselves.

    Raises:
        ConfigError: a setting makes no sense.
    """

    function: Function = field(metadata={"role": "function"})
    _: KW_ONLY
    batch_size: int = 32
    where: Where | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.function, FunctionProcessor):
            self._undecorate(self.function)
        if not callable(self.function):
            raise ConfigError(f"{self.function!r} cannot be a processor: it is not a function")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")
        asynchronous = _is_async(self.function)
        where = self.where or ("loop" if asynchronous else "thread")
        if where not in ("thread", "loop", "processes"):
            raise ConfigError(f"where must be thread, loop or processes, not {where!r}")
        if asynchronous and where != "loop":
            raise ConfigError(
                f"{name_of(self.function)} is an async function and runs in the event loop: "
                f'leave out where="{where}", or make it an ordinary function'
            )
        object.__setattr__(self, "where", where)
        object.__setattr__(self, "config", checked_config(self.config))

    def _undecorate(self, decorated: FunctionProcessor[Any]) -> None:
        """Take the function of a processor that a decorator made; the settings must agree."""
        function = decorated.function
        mine: FunctionProcessor[Any] = FunctionProcessor(
            function, batch_size=self.batch_size, where=self.where, config=self.config
        )
        differing = [
            f"{name} = {getattr(decorated, name)!r}"
            for name in ("batch_size", "where", "config")
            if getattr(mine, name) != getattr(decorated, name)
        ]
        if differing:
            raise ConfigError(
                f"{name_of(function)} is decorated with {' and '.join(differing)}; give that here "
                "as well"
            )
        object.__setattr__(self, "function", function)

    def __reduce__(self) -> tuple[Any, ...]:
        # To its module a decorated function is this processor: pickle cannot find the function.
        function = ByName.of(self.function) or self.function
        return _restored, (function, self.batch_size, self.where, dict(self.config))

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[RunningProcessor[V]]:
        """Run until the context is left.

        Raises:
            ConfigError: worker processes cannot import the function.
        """
        config = {
            "function": described(self.function),
            "batch_size": self.batch_size,
            "config": self.config,
        }
        call = Call(self.function)
        if self.where == "loop":
            yield _RunningInLoop(call, self.batch_size, config)
            return
        at_once, copies = 1, 1
        compute: Callable[[Batch], Any] = call.compute
        if self.where == "processes":
            at_once, copies = min(workers.count, _AT_ONCE), _COPIES
            compute = in_workers(call, workers)
        threads = ThreadPoolExecutor(at_once, "streamwsi-function")
        try:
            yield RunningBatchProcessor(
                compute,
                self.batch_size,
                config,
                threads,
                at_once,
                lambda shape, dtype: copies * math.prod(shape) * dtype.itemsize,
            )
        finally:
            # Not in the loop: a thread that awaits a worker needs it to end.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(threads.shutdown)


def processor(
    *,
    batch_size: int = 32,
    where: Where | None = None,
    config: Mapping[str, Any] | None = None,
) -> Callable[[Function], FunctionProcessor[Any]]:
    """A decorator that makes a function a processor: see `FunctionProcessor`.

    The plain function stays at hand as the processor's attribute ``function``.

    Raises:
        ConfigError: a setting makes no sense.
    """

    def decorate(function: Function) -> FunctionProcessor[Any]:
        return FunctionProcessor(function, batch_size=batch_size, where=where, config=config or {})

    return decorate


def _is_async(function: Function) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004  an object's method may be async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class _RunningInLoop(Generic[V]):
    """A `RunningProcessor` whose function is called, or awaited, in the event loop."""

    def __init__(self, call: Call, batch_size: int, config: Mapping[str, Any]) -> None:
        self.batch_size = batch_size
        self.config = config
        self._call = call

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[V], None]:
        """One `Pieces` a batch, in order.

        Raises:
            CannotProcess: the function failed.
            ContractBroken: it did not return one value per window.
        """
        async for batch in batches:
            await anyio.lowlevel.checkpoint()
            yield Pieces(batch.places, await self._values(batch), batch.valid)

    async def _values(self, batch: Batch) -> Sequence[V]:
        try:
            values = self._call.function(batch)
            if inspect.isawaitable(values):
                values = await values
        except (Exception, SystemExit) as error:
            raise self._call.failure(batch, error) from error
        values = self._call.checked(batch, values)
        if isinstance(values, np.ndarray):
            values = values.copy()  # it may be a view of the batch, which is on loan
            if np.issubdtype(values.dtype, np.inexact):
                values[~batch.valid] = np.nan
        return cast(Sequence[V], values)


def _restored(
    function: ByName | Function, batch_size: int, where: Where, config: Mapping[str, Any]
) -> FunctionProcessor[Any]:
    """A processor that was pickled."""
    if isinstance(function, ByName):
        function = function.function()
    return FunctionProcessor(function, batch_size=batch_size, where=where, config=config)
