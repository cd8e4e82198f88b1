"""Processors made of an ordinary, blocking function from a batch to its values.

A model, a numpy expression or a classifier of another library is a function that takes a
batch and gives a value per window. `RunningBatchProcessor` turns such a function into a stage
that keeps the rules: it runs in threads, so that reading and writing go on; no more batches at a
time than there are threads, however many slides are in work; in order; and with NaN for windows
whose pixels could not be had.

`BatchProcessor` is the short way to a processor of one's own::

    @dataclass(frozen=True, slots=True)
    class MeanRed(BatchProcessor[np.float32]):
        def compute(self, batch):
            return batch.pixels[..., 0].mean(axis=(1, 2), dtype=np.float32)
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Generic, TypeVar, cast

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..chunks import Batch, Pieces, Plan
from ..errors import CannotProcess, ConfigError, ContractBroken, StreamwsiError, first_line
from ..values import ValueType
from ..workers import Workers

__all__ = ["BatchProcessor", "RunningBatchProcessor"]

V = TypeVar("V", covariant=True)
WindowBytes = Callable[[tuple[int, ...], np.dtype[Any]], int]


class RunningBatchProcessor(Generic[V]):
    """A `RunningProcessor` around a blocking function.

    Args:
        compute: gives one value per window of a batch, for arrays one array ``(n, …)``. It is
            called in one of `threads`, and may use the batch until it returns; what it returns
            must not be memory that it writes to later.
        batch_size: windows a batch holds.
        config: what identifies the results, JSON-able.
        threads: where it runs; one thread means never twice at the same time.
        at_once: how many threads these are.
        window_bytes: memory that `compute` takes per window; asked with shape
            ``(height, width, channels)`` and dtype. None stands for a copy of the pixels.
        held: bytes that it holds all the time.
        value_type: see `streamwsi.stages.TellsValues`; called in one of `threads`. None where
            it cannot tell.
        use_rest: memory that it takes to be faster, of a room that is left; called with the shape
            and dtype that `window_bytes` is, and the room.

    Raises:
        ConfigError: `batch_size` is below 1.
    """

    def __init__(
        self,
        compute: Callable[[Batch], Sequence[V] | npt.NDArray[Any]],
        batch_size: int,
        config: Mapping[str, Any],
        threads: ThreadPoolExecutor,
        at_once: int = 1,
        window_bytes: WindowBytes | None = None,
        held: int = 0,
        value_type: Callable[[Batch], ValueType] | None = None,
        use_rest: Callable[[tuple[int, ...], np.dtype[Any], int], int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self.config = config
        self._compute = compute
        self._threads = threads
        self._at_once = at_once
        self._window_bytes = window_bytes or _pixel_bytes
        self._held = held
        self._value_type = value_type
        self._use_rest = use_rest
        self._turns = _Turns(at_once)

    def value_type(self, blank: Batch) -> ValueType | None:
        """See `streamwsi.stages.TellsValues`."""
        if self._value_type is None:
            return None
        return self._threads.submit(self._value_type, blank).result()

    def fit(self, plan: Plan, room: int) -> int:
        """See `streamwsi.stages.HoldsBuffers`."""
        box, slide = plan.place(0).box, plan.slide
        shape, dtype = (box.height, box.width, slide.channels), np.dtype(slide.dtype)
        each = self.batch_size * self._window_bytes(shape, dtype)
        count = max(1, min(self._at_once, (room - self._held) // each))
        self._turns.most = min(self._turns.most, count)
        taken = self._held + count * each
        return taken + (self._use_rest(shape, dtype, room - taken) if self._use_rest else 0)

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[V], None]:
        """One `Pieces` a batch, in order.

        Raises:
            CannotProcess: the function failed.
            ContractBroken: it did not return one value per window.
        """
        pending: deque[tuple[Batch, Future[Sequence[V]]]] = deque()
        try:
            async for batch in batches:
                pending.append((batch, self._submit(batch)))
                # One more than there are threads: none waits for the loop between two batches.
                if len(pending) > self._at_once:
                    yield await _piece(*pending[0])
                    pending.popleft()
            while pending:
                yield await _piece(*pending[0])
                pending.popleft()
        finally:
            await _abandon([future for _, future in pending])

    def _submit(self, batch: Batch) -> Future[Sequence[V]]:
        loop = asyncio.get_running_loop()
        batch.keep()
        future = self._threads.submit(self._values, batch)
        # Given back as soon as it is done, not when its turn in the order comes: reading may be
        # waiting for just that memory, and the next batch for reading.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(batch.release))
        return future

    def _values(self, batch: Batch) -> Sequence[V]:
        try:
            with self._turns:
                values = self._compute(batch)
        except StreamwsiError:
            raise
        except (Exception, SystemExit) as error:
            places = batch.places
            raise CannotProcess(
                f"the processor failed on windows {places.start} to {places.stop - 1}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        if not hasattr(values, "__len__") or (isinstance(values, np.ndarray) and not values.ndim):
            raise ContractBroken(
                f"a processor returned a {type(values).__qualname__}, not one value per window"
            )
        if isinstance(values, np.ndarray):
            values = _owned(values, batch.valid)
        return cast(Sequence[V], values)


class _Turns:
    """Lets at most so many threads in at a time.

    Attributes:
        most: how many; it may be lowered at any time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside = 0
        self._change = threading.Condition()

    def __enter__(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._inside < self.most)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._inside -= 1
            self._change.notify()


def _pixel_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize


async def _piece(batch: Batch, future: Future[Sequence[V]]) -> Pieces[V]:
    values = await asyncio.wrap_future(future)
    return Pieces(batch.places, values, batch.valid)


async def _abandon(futures: list[Future[Any]]) -> None:
    """Take back what has not begun, and wait for the rest: its batches are on loan."""
    running = [future for future in futures if not future.cancel()]
    if running:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(wait, running)


def _owned(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The values in memory of their own, NaN where the pixels were not valid."""
    if values.base is not None or not values.flags.writeable:
        # It may be a view of the batch's pixels, which are on loan.
        values = values.copy()
    if len(values) == len(valid):
        # Records have a field for each of several outputs.
        for name in values.dtype.names or (...,):
            field = values[name]
            if np.issubdtype(field.dtype, np.inexact):
                field[~valid] = np.nan
    return values


@dataclass(frozen=True, slots=True)
class BatchProcessor(Generic[V]):
    """Base of processors of one's own: a frozen dataclass that overrides `compute`.

    Its fields are its configuration. A processor that has something to load first overrides
    `load` instead, and returns the function that uses what was loaded.

    Attributes:
        batch_size: windows a batch holds.
    """

    batch_size: int = dataclasses.field(default=32, kw_only=True)

    def compute(self, batch: Batch) -> Sequence[V] | npt.NDArray[Any]:
        """One value per window; for arrays one array ``(n, …)``, floating where NaN should
        mark damaged windows. Runs in a thread, one batch at a time; the batch is on loan."""
        raise ContractBroken(f"{type(self).__qualname__} overrides neither compute nor load")

    def load(self) -> Callable[[Batch], Sequence[V] | npt.NDArray[Any]]:
        """The function that maps the batches; called once per run, in a thread.

        Raises:
            ConfigError: what is needed cannot be loaded.
        """
        return self.compute

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the results, JSON-able: the class and its fields.

        A processor that reads a file adds the file's digest here: a resume compares this.

        Raises:
            ConfigError: a field is not JSON-able.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        try:
            config = json.loads(json.dumps({"processor": name, **fields}, default=_plain))
        except TypeError as error:
            raise ConfigError(
                f"the fields of {name} do not go to JSON ({first_line(error)}); "
                "override its property config"
            ) from error
        return cast(Mapping[str, Any], config)

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[RunningBatchProcessor[V]]:
        """Load, and run until the context is left."""
        config = self.config
        compute = await anyio.to_thread.run_sync(self.load)
        with ThreadPoolExecutor(1, "streamwsi-processor") as threads:
            yield RunningBatchProcessor(compute, self.batch_size, config, threads)


def _plain(value: object) -> object:
    if isinstance(value, PathLike):
        return fspath(value)
    raise TypeError(f"{type(value).__qualname__} is not a number, text, list or mapping")
