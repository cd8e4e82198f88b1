"""The tensor that a model is given: one buffer, filled in place from a batch's windows.

Windows arrive as strided uint8 views, and a model wants float32 ``(n, channels, h, w)``. The
buffer lies in memory as ``(n, h, w, channels)``: torch calls that channels_last, convolutions
like it, and filling it is one vectorised pass over whole rows of interleaved channels. It is
allocated once: fresh memory for every batch costs more in page faults than all the arithmetic.

Then come division and normalisation, in place. Mean and standard deviation are spread over a
row first: taken per channel, torch broadcasts along an axis of length 3 and does not
vectorise. Windows of 256×256 uint8 RGB a second, batches of 8, one thread (two threads):

====================================================  ================
converted in memory order of the views, ``x / 255``   1 300 (47 000)
copied into the buffer (the pass that nothing avoids) 66 000 (120 000)
copied, divided by 255 (this module)                  27 000 (50 000)
copied by numpy, divided                              22 000 (28 000)
``torch.div`` from uint8 into the buffer              22 000 (7 000)
copied, normalised per channel                        2 200 (4 800)
copied, normalised by rows (this module)              13 000 (25 000)
====================================================  ================

Multiplying by 1/255 would be a third faster than dividing, but not the same number in the
last bit: as it is, input equals ``(x / 255 - mean) / std`` of the usual pipelines exactly.

On a GPU the raw pixels are gathered into pinned memory, cross the bus as they are (a quarter
of the bytes), and are converted there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..chunks import Batch
from ..errors import CannotProcess, ConfigError
from .device_chunks import DeviceChunks
from .tensor_views import tensor_over

__all__ = ["InputBuffer"]

_WHITE = {"uint8": 255.0, "uint16": 65535.0, "float16": None, "float32": None, "float64": None}


class InputBuffer:
    """The input of a model for batches of one window shape and dtype.

    Args:
        batch: the first of them.
        capacity: windows that the buffer holds.
        device: where the model is.
        mean: subtracted per channel, after uint8 is divided by 255 (uint16 by 65535).
        std: what the difference is divided by, per channel.
        staged: whether raw pixels go to the device and are converted there.
        chunks: big chunks on the device, for windows that overlap.

    Raises:
        CannotProcess: the pixels' dtype or number of channels does not fit.
    """

    def __init__(
        self,
        batch: Batch,
        capacity: int,
        device: torch.device,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        staged: bool,
        chunks: DeviceChunks | None = None,
    ) -> None:
        _, height, width, channels = batch.shape
        self._key = (batch.shape[1:], batch.dtype)
        name = batch.dtype.name
        if name not in _WHITE:
            raise CannotProcess(f"a model takes uint8, uint16 or float pixels; these are {name}")
        self._white = _WHITE[name]
        self._floats = torch.empty((capacity, height, width, channels), device=device)
        self._rows = self._floats.view(capacity, height, width * channels)
        self._mean = _row("mean", mean, width, channels, device)
        self._std = _row("std", std, width, channels, device)
        self._chunks = chunks
        self._stage: Tensor | None = None
        if staged:
            raw = torch.from_numpy(np.empty(self._floats.shape, batch.dtype))
            self._stage = raw.pin_memory() if device.type == "cuda" else raw

    def takes(self, batch: Batch) -> bool:
        """Whether the batch's windows are of the buffer's shape and dtype, and find room in it."""
        return self._key == (batch.shape[1:], batch.dtype) and len(batch) <= len(self._floats)

    def fill(self, batch: Batch, at_least: int = 1) -> Tensor:
        """The batch as ``(n, channels, h, w)`` in the model's range, valid until the next call.

        Args:
            batch: of the buffer's window shape and dtype.
            at_least: windows that the tensor has at least; those behind the batch's are zero.
        """
        n = len(batch)
        self._copy(batch)
        rows = self._rows[:n]
        if self._white is not None:
            rows.div_(self._white)
        if self._mean is not None:
            rows.sub_(self._mean)
        if self._std is not None:
            rows.div_(self._std)
        self._floats[n:at_least].zero_()
        return self._floats[: max(n, at_least)].permute(0, 3, 1, 2)

    def _copy(self, batch: Batch) -> None:
        if self._stage is not None:
            self._copy_staged(batch, self._stage)
            return
        done = 0
        for part in batch.parts:
            self._floats[done : done + len(part)].copy_(tensor_over(part))
            done += len(part)

    def _copy_staged(self, batch: Batch, stage: Tensor) -> None:
        """Raw pixels cross the bus: chunks whole where windows overlap, else window by window."""
        done = 0
        for part in batch.parts:
            floats = self._floats[done : done + len(part)]
            windows = self._chunks.windows(batch, part) if self._chunks else None
            if windows is None:
                # The last batch's copy has ended: its results were waited for.
                staged = stage[done : done + len(part)]
                staged.copy_(tensor_over(part))
                windows = staged.to(floats.device, non_blocking=True)
            floats.copy_(windows)
            done += len(part)


def _row(
    name: str, values: tuple[float, ...] | None, width: int, channels: int, device: torch.device
) -> Tensor | None:
    """A value per channel, repeated along a row of pixels."""
    if values is None:
        return None
    if len(values) != channels:
        raise ConfigError(
            f"{name} has {len(values)} value(s), but the windows have {channels} channel(s)"
        )
    return torch.tensor(values, dtype=torch.float32, device=device).repeat(width)
