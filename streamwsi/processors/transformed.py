"""Transformed: what is done to windows before a processor gets them.

Stain normalisation, another colour space, resizing, a filter: functions of one window or of a
whole batch, in front of any processor::

    Transformed(TorchModule("model.pt"), window=normalised, batch=resized)

`Transformed` is itself a processor: it hands the inner one batches whose pixels are the
transformed ones. Places, order and boundaries stay what they were. While the inner processor
computes, the next batch is transformed, in a thread.

Transformed pixels are memory of their own, which no reader accounts for. So they are lent, too:
the inner processor gives each batch back, and only so many are out at a time as the memory limit
allows.

A window with damaged pixels is not shown to the functions of windows, which need not cope with
pixels that mean nothing: it is zero, and its value will be NaN.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from ..chunks import Batch, BigChunk, Pieces, Pixels, Placement, Plan, Region
from ..errors import CannotProcess, ConfigError, StreamwsiError, first_line
from ..geometry import Box
from ..stages import HoldsBuffers, Processor, RunningProcessor, TellsValues
from ..values import ValueType
from ..workers import Workers
from .callables import as_array, described, name_of
from .model_outputs import each_output

__all__ = ["Transformed"]

V = TypeVar("V", covariant=True)
Transform = Callable[[Any], Any]

#: Transformed batches at a time, at most: more than any processor works on at once.
_LENT = 64


@dataclass(frozen=True, slots=True)
class Transformed(Generic[V]):
    """A processor that gets transformed windows.

    The functions run in threads, for several slides at the same time. They take read-only
    arrays and return arrays or tensors of any dtype that the inner processor takes (for a
    `TorchModule`: uint8, uint16 or floating), which they must not write to later. Their names
    and source texts identify the results: a resume notices that they changed.

    Attributes:
        processor: gets what the functions return.
        window: ``(h, w, c)`` to ``(h', w', c')``, called for one window after the other; all
            results have one shape and dtype.
        batch: ``(n, h, w, c)`` to ``(n, h', w', c')``, called after that.

    Raises:
        ConfigError: neither function is given, or one cannot be called.
    """

    processor: Processor[V] = field(metadata={"role": "processor"})
    window: Transform | None = field(default=None, metadata={"role": "function"})
    batch: Transform | None = field(default=None, metadata={"role": "function"})

    def __post_init__(self) -> None:
        if self.window is None and self.batch is None:
            raise ConfigError("Transformed needs a function of a window, of a batch, or both")
        for role, function in (("window", self.window), ("batch", self.batch)):
            if function is not None and not callable(function):
                raise ConfigError(f"the {role} transform {function!r} is not a function")

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[RunningProcessor[V]]:
        """Open the inner processor, behind the transforms.

        Raises:
            ConfigError: on entering, where the inner processor cannot be had.
        """
        async with self.processor.open(workers) as running:
            yield _Running(running, self.window, self.batch)


class _Running(Generic[V]):
    def __init__(
        self, inner: RunningProcessor[V], window: Transform | None, batch: Transform | None
    ) -> None:
        self._inner = inner
        self._window = window
        self._batch = batch
        self._results: dict[Any, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        #: Bytes of a transformed window, by shape and dtype of the window.
        self._bytes: dict[tuple[tuple[int, ...], np.dtype[Any]], int] = {}
        self._lent = anyio.CapacityLimiter(_LENT)
        own = {"window": window and described(window), "batch": batch and described(batch)}
        # The rest stays where it is: sinks look for the names of the channels.
        self.config = each_output(
            inner.config,
            lambda config: {**config, "transforms": [own, *config.get("transforms", [])]},
        )

    @property
    def batch_size(self) -> int:
        """The inner processor's."""
        return self._inner.batch_size

    def value_type(self, blank: Batch) -> ValueType | None:
        """See `streamwsi.stages.TellsValues`: of what the transforms make of blank windows."""
        if not isinstance(self._inner, TellsValues):
            return None
        pixels = self._apply(blank)
        self._bytes[blank.shape[1:], blank.dtype] = pixels[0].nbytes
        return self._inner.value_type(Batch(blank.places, (pixels,), blank.valid))

    def fit(self, plan: Plan, room: int) -> int:
        """See `streamwsi.stages.HoldsBuffers`: half of it for the inner processor."""
        box, slide = plan.place(0).box, plan.slide
        inner = self._inner.fit(plan, room // 2) if isinstance(self._inner, HoldsBuffers) else 0
        shape, dtype = (box.height, box.width, slide.channels), np.dtype(slide.dtype)
        # What nobody has tried is taken to be as large as the window, of float32.
        each = self.batch_size * self._bytes.get((shape, dtype), 4 * math.prod(shape))
        most = max(1, min(int(self._lent.total_tokens), (room - inner) // each))
        self._lent.total_tokens = most
        return inner + most * each

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[V], None]:
        """The inner processor's pieces.

        Raises:
            CannotProcess: a transform failed, or the inner processor.
        """
        async with (
            aclosing(self._transformed(batches)) as transformed,
            aclosing(self._inner.pieces(transformed)) as pieces,
        ):
            async for some in pieces:
                yield some

    async def _transformed(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Batch, None]:
        async for batch in batches:
            lease = object()
            await self._lent.acquire_on_behalf_of(lease)
            try:
                # Cancelling waits for the thread, which reads pixels that are on loan.
                pixels = await anyio.to_thread.run_sync(self._apply, batch)
            except BaseException:
                self._lent.release_on_behalf_of(lease)
                raise
            chunk = self._chunk(batch, pixels, lease)
            try:
                yield Batch(batch.places, (pixels,), batch.valid, (chunk,))
            finally:
                chunk.release()

    def _chunk(self, batch: Batch, pixels: Pixels, lease: object) -> BigChunk:
        """What counts who has the pixels, and ends the lease."""
        n, height, width, channels = pixels.shape
        first = batch.places[0]
        # One window above the other: nothing overlaps, so that nobody takes them for a crop.
        region = Region(0, first.level, Box(0, 0, width, n * height), first.index, n)
        column = pixels.reshape(n * height, width, channels)
        return BigChunk(region, column, on_release=lambda: self._lent.release_on_behalf_of(lease))

    def _apply(self, batch: Batch) -> Pixels:
        pixels = batch.pixels if self._window is None else self._by_window(batch, self._window)
        if self._batch is not None:
            pixels = _by_batch(batch, pixels, self._batch)
        pixels = np.ascontiguousarray(pixels).view()
        pixels.flags.writeable = False
        return pixels

    def _by_window(self, batch: Batch, transform: Transform) -> Pixels:
        key = batch.shape[1:], batch.dtype
        if key not in self._results and not batch.valid.any():
            # Nothing has told yet what the function returns: the damaged pixels must do.
            self._remember(key, _called(transform, batch.parts[0][0], batch.places[0]))
        out: Pixels | None = None
        windows = (window for part in batch.parts for window in part)
        for i, window in enumerate(windows):
            if not batch.valid[i]:
                continue
            result = _called(transform, window, batch.places[i])
            shape, dtype = self._remember(key, result)
            if (result.shape, result.dtype) != (shape, dtype):
                raise CannotProcess(
                    f"transform {name_of(transform)} returned {result.dtype} {result.shape} for "
                    f"{_where(batch.places[i])}, and {dtype} {shape} for earlier windows; all "
                    "must have one shape and dtype"
                )
            if out is None:
                out = np.zeros((len(batch), *shape), dtype)
            out[i] = result
        if out is None:
            shape, dtype = self._results[key]
            out = np.zeros((len(batch), *shape), dtype)
        return out

    def _remember(self, key: Any, result: Pixels) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._results.setdefault(key, (result.shape, result.dtype))


def _called(transform: Transform, window: Pixels, place: Placement) -> Pixels:
    """The transform of one window."""
    try:
        result = as_array(transform(window))
    except StreamwsiError:
        raise
    except (Exception, SystemExit) as error:
        raise CannotProcess(
            f"transform {name_of(transform)} failed on {_where(place)}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if result is None or result.ndim != 3 or 0 in result.shape:
        what = "something that is no array" if result is None else f"the shape {result.shape}"
        raise CannotProcess(
            f"transform {name_of(transform)} returned {what} for {_where(place)}; expected is "
            "an array (height, width, channels)"
        )
    return result


def _by_batch(batch: Batch, pixels: Pixels, transform: Transform) -> Pixels:
    """The transform of a whole batch."""
    places = batch.places
    where = f"windows {places.start} to {places.stop - 1} of {places.plan.slide.ref.uri}"
    try:
        result = as_array(transform(pixels))
    except StreamwsiError:
        raise
    except (Exception, SystemExit) as error:
        raise CannotProcess(
            f"transform {name_of(transform)} failed on {where}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if result is None or result.ndim != 4 or len(result) != len(batch) or 0 in result.shape:
        what = "something that is no array" if result is None else f"the shape {result.shape}"
        raise CannotProcess(
            f"transform {name_of(transform)} returned {what} for {where}; expected is an array "
            f"({len(batch)}, height, width, channels)"
        )
    return result


def _where(place: Placement) -> str:
    box = place.box
    return (
        f"window {place.index} ({box.width}×{box.height} at x {box.x}, y {box.y} of level "
        f"{place.level}) of {place.slide.uri}"
    )
