"""Training streams: mixed batches of windows of many slides.

::

    slides, shuffled ─┬─▶ slot 0 ──window──▶ ┐
                      ├─▶ slot 1 ──window──▶ ├ in turn ─▶ shuffle buffer ─▶ batch ─▶ transform
                      └─▶ …                  ┘

A slot is a task that reads one slide after another: slide i of the epoch's order is read in
slot ``i mod Limits.slides``. One window is taken from each slot in turn; one at its end is
passed over. So the windows' order depends on the seed, the epoch, the slides, the sampler, the
shuffle buffer's size and `Limits.slides`, but neither on the other limits nor on how long
anything takes.

Each window that comes into the shuffle buffer takes the place of a random one, which goes out;
at the end of the epoch the rest goes out in random order. Every window comes once per epoch,
and a batch has windows of one epoch only.

Memory: buffer, batches and windows under way are counted against `Limits.memory`; the slots'
readers share what is left. What a transform makes, and the caller keeps, is the caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .chunks import Pixels, Placement
from .errors import CannotProcess, CannotRead, ConfigError
from .limits import Limits
from .mixing import ShuffleBuffer, Window, in_turn
from .runs import grace_on_cancel
from .slides import Slide, SlideRef
from .slots import OnError, SlideSkipped, Slots, Tally
from .stages import Sampler, Source
from .workers import open_workers, worker_modules

__all__ = ["SlideSkipped", "TrainingBatch", "TrainingStream", "stream_batches"]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Windows of several slides; the caller owns them.

    Attributes:
        pixels: ``(n, height, width, channels)`` in the slides' dtype, writeable; or what the
            transform made of that.
        places: where each window lies; ``places[i].slide.id`` says on which slide.
        slides: the slide of each window.
        epoch: the epoch's number.
    """

    pixels: Any
    places: list[Placement]
    slides: list[Slide]
    epoch: int

    def __len__(self) -> int:
        return len(self.places)


class TrainingStream:
    """Batches as an asynchronous iterator; made by `stream_batches`.

    It reads ahead, and what was left out is counted as it is read.
    """

    def __init__(
        self, receive: MemoryObjectReceiveStream[TrainingBatch | Exception], tally: Tally
    ) -> None:
        self._receive = receive
        self._tally = tally

    @property
    def skipped(self) -> tuple[SlideSkipped, ...]:
        """Slides that were skipped up to now."""
        return tuple(self._tally.skipped)

    @property
    def invalid(self) -> int:
        """Windows left out up to now because they touch damaged pixels."""
        return self._tally.invalid

    def __aiter__(self) -> TrainingStream:
        return self

    async def __anext__(self) -> TrainingBatch:
        try:
            item = await self._receive.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None
        if isinstance(item, Exception):
            raise item
        return item


@asynccontextmanager
async def stream_batches(
    source: Source,
    sampler: Sampler | Callable[[int], Sampler],
    slides: Iterable[str | Path | SlideRef],
    *,
    batch_size: int = 32,
    shuffle_buffer: int = 1024,
    seed: int = 0,
    epochs: int | Iterable[int] = 1,
    limits: Limits | None = None,
    on_error: OnError = "raise",
    transform: Callable[[Pixels], Any] | None = None,
    prefetch: int = 2,
) -> AsyncIterator[TrainingStream]:
    """Read many slides at the same time and mix their windows::

        async with stream_batches(source, sampler, slides, seed=1) as stream:
            async for batch in stream:
                ...

    However the context is left, reading ends with it.

    Args:
        source: opens the slides.
        sampler: the same windows in each epoch; or a function of the epoch's number, such as
            ``lambda epoch: RandomPatches(100, seed=epoch)``.
        slides: paths or references, with different ids.
        batch_size: windows of a batch; an epoch's last one may hold fewer.
        shuffle_buffer: windows in the shuffle buffer; 1 does not shuffle them.
        seed: another seed is another order.
        epochs: how many, or their numbers.
        limits: what may be taken of the machine; `slides` of them are read at the same time.
        on_error: what a slide does that cannot be read: ``"raise"`` its error, or have its rest
            ``"skip"``-ped with a `SlideSkipped` warning, kept in ``stream.skipped``.
        transform: called with each batch's pixels, in a thread.
        prefetch: batches that are made ahead.

    Raises:
        ConfigError: a setting is out of range or ids clash; from the iteration, where the memory
            limit is too small.
        StageMismatch: from the iteration, where windows differ in shape or dtype.
        SlideError: from the iteration, where a slide cannot be read; `CannotRead` where every
            slide of an epoch was skipped, `CannotProcess` where the transform failed.
    """
    limits = limits or Limits()
    refs = [SlideRef.of(slide) for slide in slides]
    numbers = range(epochs) if isinstance(epochs, int) else epochs
    _check(
        refs,
        batch_size=batch_size,
        shuffle_buffer=shuffle_buffer,
        prefetch=prefetch,
        epochs=epochs if isinstance(epochs, int) else 1,
    )
    if seed < 0:
        raise ConfigError(f"the seed must be 0 or more, not {seed}")
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error must be raise or skip, not {on_error!r}")
    send, receive = anyio.create_memory_object_stream[TrainingBatch | Exception](prefetch)
    tally = Tally()
    # Beside the buffer: a batch gathered, one in the transform, one with the caller.
    held = shuffle_buffer + (prefetch + 3) * batch_size
    error: Exception | None = None
    with send, receive:
        async with (
            open_workers(limits, worker_modules(source)) as workers,
            grace_on_cancel(workers, limits),
            anyio.create_task_group() as tasks,
        ):
            count = min(limits.slides, len(refs))
            slots = Slots(source, workers, limits.memory_bytes, count, held, on_error, tally)
            work = _Epochs(refs, sampler, slots, tasks, batch_size, shuffle_buffer, seed, transform)
            tasks.start_soon(work.run, numbers, send)
            try:
                yield TrainingStream(receive, tally)
            except Exception as raised:
                error = raised  # else it would come out wrapped in a group
            finally:
                tasks.cancel_scope.cancel()
    if error is not None:
        raise error


def _check(refs: list[SlideRef], **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if not refs:
        raise ConfigError("there are no slides to stream; give at least one")
    for id_, times in Counter(ref.id for ref in refs).items():
        if times > 1:
            raise ConfigError(
                f"{times} slides have the id {id_!r}, and their windows could not be told apart; "
                "give SlideRef(id, uri)"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Epochs:
    """What fills a stream."""

    refs: list[SlideRef]
    sampler: Sampler | Callable[[int], Sampler]
    slots: Slots
    tasks: TaskGroup
    batch_size: int
    shuffle_buffer: int
    seed: int
    transform: Callable[[Pixels], Any] | None

    async def run(
        self, epochs: Iterable[int], send: MemoryObjectSendStream[TrainingBatch | Exception]
    ) -> None:
        """Send all batches and, behind them, the error that ended them."""
        with send:
            try:
                for epoch in epochs:
                    async with (
                        aclosing(self._windows(epoch)) as windows,
                        aclosing(self._batches(windows, epoch)) as batches,
                    ):
                        async for batch in batches:
                            await send.send(batch)
            except Exception as error:
                await send.send(error)

    async def _batches(
        self, windows: AsyncGenerator[Window, None], epoch: int
    ) -> AsyncGenerator[TrainingBatch, None]:
        gathered: list[Window] = []
        async for window in windows:
            gathered.append(window)
            if len(gathered) == self.batch_size:
                yield await self._batch(gathered, epoch)
                gathered = []
        if gathered:
            yield await self._batch(gathered, epoch)

    async def _windows(self, epoch: int) -> AsyncGenerator[Window, None]:
        """An epoch's windows, shuffled."""
        random = np.random.default_rng([self.seed, epoch])
        refs = [self.refs[i] for i in random.permutation(len(self.refs))]
        buffer = ShuffleBuffer(self.shuffle_buffer, random)
        skipped, some = len(self.slots.tally.skipped), False
        with ExitStack() as inlets:
            receives = [inlets.enter_context(inlet) for inlet in self._start(refs, epoch)]
            async with aclosing(in_turn(receives)) as windows:
                async for window in windows:
                    some = True
                    given = buffer.exchange(window)
                    if given is not None:
                        yield given
        for window in buffer.rest():
            yield window
        failures = self.slots.tally.skipped[skipped:]
        if failures and not some:
            raise CannotRead(f"no slide gave a window; {failures[0]}") from failures[0].__cause__

    def _start(
        self, refs: list[SlideRef], epoch: int
    ) -> list[MemoryObjectReceiveStream[Window | Exception]]:
        """Start the slots of an epoch."""
        sampler = self.sampler(epoch) if callable(self.sampler) else self.sampler
        receives = []
        for i in range(self.slots.count):
            send, receive = anyio.create_memory_object_stream[Window | Exception](2)
            mine = refs[i :: self.slots.count]
            self.tasks.start_soon(self.slots.run, mine, sampler, epoch, send)
            receives.append(receive)
        return receives

    async def _batch(self, windows: list[Window], epoch: int) -> TrainingBatch:
        pixels = await anyio.to_thread.run_sync(self._made, windows)
        places, slides = [w.place for w in windows], [w.slide for w in windows]
        return TrainingBatch(pixels, places, slides, epoch)

    def _made(self, windows: list[Window]) -> Any:
        """A batch's pixels; runs in a thread."""
        pixels = np.stack([window.pixels for window in windows])
        if self.transform is None:
            return pixels
        try:
            return self.transform(pixels)
        except Exception as error:
            ids = ", ".join(sorted({window.slide.ref.id for window in windows}))
            raise CannotProcess(
                f"the transform failed on a batch of windows of {ids}: "
                f"{type(error).__name__}: {error}"
            ) from error
