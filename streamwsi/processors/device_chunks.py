"""Big chunks on a GPU: overlapping windows cross the bus once, and are cut over there.

A batch's parts are strided views of a big chunk. Where they overlap (stride below kernel),
gathering them would send every pixel several times; instead the chunk is uploaded whole, the
first time that a batch shows it, and the windows are the same strided views of the device's
copy. That is kept as long as the chunk is held: by its lane, and by the batches in flight.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from ..chunks import Batch, BigChunk, Pixels
from .tensor_views import tensor_over

__all__ = ["DeviceChunks"]


class DeviceChunks:
    """The uploaded chunks of one device; to be used from several threads.

    Args:
        device: where the windows are wanted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._kept: dict[int, tuple[BigChunk, Tensor]] = {}
        self.uploads = 0

    def windows(self, batch: Batch, part: Pixels) -> Tensor | None:
        """A part of a batch as a strided view ``(n, height, width, channels)`` on the device.

        None where uploading the chunk would send more than gathering the windows: they do not
        overlap, or the part is no view of a chunk of the batch, or the chunk has gaps within its
        rows or their pixels.
        """
        for chunk in batch.chunks:
            if _dense(chunk, part) and np.may_share_memory(part, chunk.pixels):
                uploaded = self._uploaded(chunk)
                if self._device.type == "cuda":
                    # What is queued on this thread's stream may run after the chunk is let go.
                    uploaded.record_stream(torch.cuda.current_stream(self._device))
                return _view(uploaded, chunk, part)
        return None

    def _uploaded(self, chunk: BigChunk) -> Tensor:
        with self._lock:
            kept = self._kept.get(id(chunk))
            if kept is None:
                self._kept = {id_: one for id_, one in self._kept.items() if not one[0].released}
                # From pageable memory: when this returns, the chunk's memory may be used again.
                kept = (chunk, tensor_over(chunk.pixels).to(self._device, copy=True).contiguous())
                if self._device.type == "cuda":
                    # Threads have streams of their own; all of them may use it from here on.
                    torch.cuda.current_stream(self._device).synchronize()
                self.uploads += 1
                self._kept[id(chunk)] = kept
            return kept[1]


def _dense(chunk: BigChunk, part: Pixels) -> bool:
    """Whether the windows of the chunk's region hold more samples than the chunk, whose pixels
    follow each other in memory row by row."""
    pixels = chunk.pixels
    close = pixels.strides[1:] == (pixels.shape[2] * pixels.itemsize, pixels.itemsize)
    return close and chunk.region.count * int(np.prod(part.shape[1:])) > pixels.size


def _view(uploaded: Tensor, chunk: BigChunk, part: Pixels) -> Tensor:
    """The view of the device's copy that `part` is of the chunk."""
    item, pitch = part.itemsize, chunk.pixels.strides[0]
    start = part.__array_interface__["data"][0] - chunk.pixels.__array_interface__["data"][0]
    y, rest = divmod(start, pitch)
    across = chunk.pixels.shape[1] * chunk.pixels.shape[2]
    # The copy has no gaps between its rows; within a row the strides are the chunk's.
    n, row, column, channel = (stride // item for stride in part.strides)
    strides = (n, across * (row * item // pitch), column, channel)
    return uploaded.as_strided(part.shape, strides, y * across + rest // item)
