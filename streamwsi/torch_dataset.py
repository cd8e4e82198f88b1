"""PatchDataset: a training stream for plain loops and ``torch.utils.data.DataLoader``.

Each iteration is one epoch. The stream runs in a thread with an event loop of its own, some
batches ahead; the loop that trains only takes them. Slides are decoded by the worker processes
of the stream, so that a DataLoader needs no workers (and is refused them: each would read all
slides again).

When the iterator ends, is closed or is no longer referred to (a ``break``), reading is
cancelled and the thread and its processes are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anyio.from_thread import start_blocking_portal
from torch.utils.data import IterableDataset, get_worker_info

from .chunks import Pixels
from .errors import ConfigError
from .limits import Limits
from .slides import SlideRef
from .slots import OnError, SlideSkipped
from .stages import Sampler, Source
from .streams import TrainingBatch, TrainingStream, stream_batches

__all__ = ["PatchDataset"]


class PatchDataset(IterableDataset[TrainingBatch]):
    """Mixed batches of many slides; ``DataLoader(dataset, batch_size=None)`` or a plain loop.

    Items are `TrainingBatch`, their `pixels` a tensor ``(n, height, width, channels)`` in the
    slides' dtype, without a copy (or what the transform returned, if that is no array).

    The arguments are those of `stream_batches`. Each iteration is the next epoch, another
    shuffle of the same windows, from `set_epoch` on (at first 0).

    Attributes:
        skipped: slides that the latest iteration skipped.
        invalid: windows it left out because they touch damaged pixels.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler | Callable[[int], Sampler],
        slides: Iterable[str | Path | SlideRef],
        *,
        batch_size: int = 32,
        shuffle_buffer: int = 1024,
        seed: int = 0,
        limits: Limits | None = None,
        on_error: OnError = "raise",
        transform: Callable[[Pixels], Any] | None = None,
        prefetch: int = 2,
    ) -> None:
        super().__init__()
        self._source = source
        self._sampler = sampler
        self._slides = [SlideRef.of(slide) for slide in slides]
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle_buffer": shuffle_buffer,
            "seed": seed,
            "limits": limits,
            "on_error": on_error,
            "transform": transform,
            "prefetch": prefetch,
        }
        self._epoch = 0
        self.skipped: tuple[SlideSkipped, ...] = ()
        self.invalid = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next iteration's epoch."""
        if epoch < 0:
            raise ConfigError(f"an epoch's number must be 0 or more, not {epoch}")
        self._epoch = epoch

    def __iter__(self) -> Iterator[TrainingBatch]:
        """The batches of one epoch.

        Raises:
            ConfigError: a DataLoader asks from a worker process.
            Exception: from the iteration, as from `stream_batches`.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "PatchDataset decodes in processes of its own; use DataLoader(num_workers=0)"
            )
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[TrainingBatch]:
        stream = stream_batches(
            self._source, self._sampler, self._slides, epochs=[epoch], **self._settings
        )
        error: BaseException | None = None
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(stream) as batches,
        ):
            # Nothing may be raised through the stream's task group: it would come out in groups.
            try:
                while (batch := portal.call(_next, batches)) is not None:
                    self.skipped, self.invalid = batches.skipped, batches.invalid
                    yield replace(batch, pixels=_as_tensor(batch.pixels))
                self.skipped, self.invalid = batches.skipped, batches.invalid
            except GeneratorExit:
                return
            except BaseException as raised:
                error = raised
        if error is not None:
            raise error


def _as_tensor(pixels: Any) -> Any:
    return torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels


async def _next(stream: TrainingStream) -> TrainingBatch | None:
    return await anext(stream, None)
