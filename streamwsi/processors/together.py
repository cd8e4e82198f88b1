"""Together: several processors on the same windows, in one pass over the slide.

Reading and decoding are done once, and the values are laid side by side along the channels::

    Together(TorchModule("tumour.pt"), TorchModule("stroma.pt"))

or, where they have names, become several outputs, each for a sink of its own
(`streamwsi.sinks.Select`)::

    Together(tumour=TorchModule("tumour.pt"), features=TorchModule("encoder.pt"))

Each processor runs in a task of its own, a *branch*, for it decides for itself how many batches
it works on at a time. Batches are dealt in lock-step: all branches get batch k, and only when
all of them ask for more is the next one asked for. Asking says that they are done with it or
have kept it, so that a batch is lent as long as the slowest needs it, and no longer.

The branches are joined in the lane's own task, which alone touches what lies upstream. They are
no task group of anyio's: a generator may not hold one while it yields.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt

from ..chunks import Batch, Pieces, Plan
from ..errors import ConfigError, ContractBroken, StageMismatch
from ..stages import HoldsBuffers, Processor, RunningProcessor, TellsValues
from ..values import ValueType
from ..workers import Workers
from .model_outputs import records

__all__ = ["Together"]

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, init=False)
class Together:
    """Processors that work on the same windows; their values become channels of one.

    All give vectors (``(n,)`` counts as one channel), or all give maps of one size. Their batch
    sizes are equal. Names of the channels go along where all processors have them.

    Processors with names give several outputs, of any shapes: records, with a field for each.

    Attributes:
        processors: in the order of their channels.
        names: their names; none where the values become channels.

    Raises:
        ConfigError: no processor is given, or only some have names.
    """

    processors: tuple[Processor[Any], ...] = field(
        metadata={"role": "processor", "several": "named"}
    )
    names: tuple[str, ...] = field(init=False, repr=False)

    def __init__(self, *processors: Processor[Any], **named: Processor[Any]) -> None:
        if not processors and not named:
            raise ConfigError("Together needs at least one processor")
        if processors and named:
            raise ConfigError("of processors that work together, all have names or none has")
        object.__setattr__(self, "processors", processors or tuple(named.values()))
        object.__setattr__(self, "names", tuple(named))

    def __repr__(self) -> str:
        names = [f"{name}=" for name in self.names] or [""] * len(self.processors)
        texts = [f"{n}{p!r}" for n, p in zip(names, self.processors, strict=True)]
        return f"Together({', '.join(texts)})"

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[RunningProcessor[Values]]:
        """All of them, ready to run.

        Raises:
            ConfigError: on entering, where one cannot be had, or the batch sizes differ, or
                one gives several outputs itself.
        """
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(p.open(workers)) for p in self.processors]
            sizes = [processor.batch_size for processor in running]
            if len({*sizes}) > 1:
                raise ConfigError(
                    "processors that work together need one batch size, but have "
                    f"{', '.join(map(str, sizes))}"
                )
            if any("outputs" in processor.config for processor in running):
                raise ConfigError(
                    "one of the processors that work together gives several outputs: choose one "
                    "of them, as in TorchModule(model, output=…), or use its model twice"
                )
            yield _Running(running, self.names)


class _Running:
    def __init__(self, processors: Sequence[RunningProcessor[Any]], names: Sequence[str]) -> None:
        self._processors = processors
        self._names = names
        self.batch_size = processors[0].batch_size
        configs = [dict(processor.config) for processor in processors]
        self.config: Mapping[str, Any] = {
            "type": "together",
            "batch_size": self.batch_size,
            "processors": configs,
            "channels": _channels(configs),
        }
        if names:
            self.config = {"outputs": dict(zip(names, configs, strict=True))}

    def value_type(self, blank: Batch) -> ValueType | None:
        """See `streamwsi.stages.TellsValues`: their channels side by side, or a record."""
        types = [
            p.value_type(blank) if isinstance(p, TellsValues) else None for p in self._processors
        ]
        told = [t for t in types if t is not None and len(t.shape) in (0, 1, 3)]
        shapes = [t.shape or (1,) for t in told]
        if len(told) == len(types) and self._names:
            fields = zip(self._names, (t.dtype for t in told), shapes, strict=True)
            return ValueType((), np.dtype([*fields]))
        if len(told) < len(types) or len({shape[1:] for shape in shapes}) > 1:
            return None
        channels = sum(shape[0] for shape in shapes)
        return ValueType((channels, *shapes[0][1:]), np.result_type(*(t.dtype for t in told)))

    def fit(self, plan: Plan, room: int) -> int:
        """See `streamwsi.stages.HoldsBuffers`: equal shares."""
        holders = [p for p in self._processors if isinstance(p, HoldsBuffers)]
        return sum(holder.fit(plan, room // len(holders)) for holder in holders)

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Values], None]:
        """One `Pieces` a batch, in order.

        Raises:
            CannotProcess: one of the processors failed.
            StageMismatch: their values cannot be laid side by side.
        """
        branches = [_Branch(processor) for processor in self._processors]
        try:
            for branch in branches:
                await branch.asked()
            async for batch in batches:
                for branch in branches:
                    branch.give(batch)
                for branch in branches:
                    await branch.asked()
                while all(branch.done for branch in branches):
                    yield self._joined([branch.done.popleft() for branch in branches])
            for branch in branches:
                branch.give(None)
            for branch in branches:
                await branch.ended()
            while any(branch.done for branch in branches):
                if not all(branch.done for branch in branches):
                    raise ContractBroken("one of the processors gave fewer pieces than another")
                yield self._joined([branch.done.popleft() for branch in branches])
        finally:
            for branch in branches:
                branch.cancel()
            with anyio.CancelScope(shield=True):
                for branch in branches:
                    await branch.gone()

    def _joined(self, parts: Sequence[Pieces[Any]]) -> Pieces[Values]:
        arrays = [_array(part.values) for part in parts]
        values: Any
        if self._names:
            values = records(dict(zip(self._names, arrays, strict=True)))
        else:
            values = _side_by_side(arrays)
        return Pieces(parts[0].places, values, _valid(parts))


class _Asked:
    """A branch is done with its batch, and asks for another."""


class _Ended:
    """A branch has given all its pieces."""


class _Branch:
    """A processor in a task of its own, from its first batch to its last piece."""

    def __init__(self, processor: RunningProcessor[Any]) -> None:
        self.done: deque[Pieces[Any]] = deque()
        self._processor = processor
        self._inbox: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._news: asyncio.Queue[Pieces[Any] | _Asked | _Ended | Exception] = asyncio.Queue()
        self._scope = anyio.CancelScope()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        with self._scope:
            try:
                async with (
                    aclosing(self._batches()) as batches,
                    aclosing(self._processor.pieces(batches)) as pieces,
                ):
                    async for some in pieces:
                        self._news.put_nowait(some)
                self._news.put_nowait(_Ended())
            except Exception as error:
                self._news.put_nowait(error)

    async def _batches(self) -> AsyncGenerator[Batch, None]:
        while True:
            self._news.put_nowait(_Asked())
            batch = await self._inbox.get()
            if batch is None:
                return
            yield batch

    def give(self, batch: Batch | None) -> None:
        """Hand over the batch that was asked for; None after the last one."""
        self._inbox.put_nowait(batch)

    async def asked(self) -> None:
        """Wait until the branch asks for a batch; collects its pieces.

        Raises:
            Exception: what the processor raised.
        """
        await self._until(_Asked)

    async def ended(self) -> None:
        """Wait until the branch has given all its pieces; collects them."""
        await self._until(_Ended)

    async def _until(self, mark: type[_Asked | _Ended]) -> None:
        while not isinstance(news := await self._news.get(), mark):
            if isinstance(news, Exception):
                raise news
            if not isinstance(news, Pieces):
                raise ContractBroken("a processor ended before its batches did")
            self.done.append(news)

    def cancel(self) -> None:
        """End the task, if it has not ended."""
        self._scope.cancel()

    async def gone(self) -> None:
        """Wait until the task has ended."""
        await asyncio.wait([self._task])


def _valid(parts: Sequence[Pieces[Any]]) -> npt.NDArray[np.bool_]:
    """Which windows are valid for all processors.

    Raises:
        ContractBroken: the processors are not at the same windows.
    """
    first = parts[0].places
    for part in parts:
        if (part.places.start, part.places.stop) != (first.start, first.stop):
            raise ContractBroken(
                f"processors gave windows from {first.start} and from "
                f"{part.places.start} on at the same time"
            )
    valid: npt.NDArray[np.bool_] = np.logical_and.reduce([part.valid for part in parts])
    return valid


def _side_by_side(arrays: Sequence[Values]) -> Values:
    """The values of one batch along the channels.

    Raises:
        StageMismatch: they do not fit.
    """
    if len({array.shape[2:] for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape[1:]) for array in arrays)
        raise StageMismatch(
            "processors that work together must all give vectors, or maps of one size, but their "
            f"windows' values have the shapes {shapes}; with names they may differ: "
            "Together(a=…, b=…)"
        )
    return np.concatenate(arrays, axis=1)


def _array(values: Any) -> Values:
    if not isinstance(values, np.ndarray) or values.ndim not in (1, 2, 4):
        what = f"shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise StageMismatch(
            "processors that work together must give arrays of shape (n, C) or (n, C, h, w), "
            f"but one returned {what}"
        )
    return values[:, None] if values.ndim == 1 else values


def _channels(configs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The names of all channels, where all processors have them."""
    names: list[str] = []
    for config in configs:
        own = config.get("channels")
        if not isinstance(own, list):
            return None
        names += own
    return names
