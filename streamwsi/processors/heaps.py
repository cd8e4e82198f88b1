"""Memory for a model's activations: kept between its calls, on a CPU with glibc.

A model takes the same memory with every call and gives it back. Up to 32 MiB glibc's malloc keeps
what was freed; anything larger it takes from the kernel and gives back each time, and the kernel
clears every page when it is first touched: two thirds of the time of a 1×1 convolution over 16
windows of 512×512, whose output is 33 MB (2.9 ms a window, 1.2 where it is kept; two threads on
two cores). The heap of a thread holds at most 64 MiB, so that larger tensors gain nothing.

The switch is one for the whole process (mallopt(3)). Who has set it by an environment variable
means it, and is left alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["activations_kept"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 63 << 20
_USUAL_BYTES = 32 << 20
"""The most that malloc keeps on its own, a limit that it grows to as such memory is freed."""

_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_open = 0


@contextmanager
def activations_kept() -> Iterator[None]:
    """Let malloc keep tensors of up to 63 MiB that were freed, inside the block; it does nothing
    where there is no glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim") or any(name in os.environ for name in _VARIABLES):
        yield
        return
    _count(libc, 1)
    try:
        yield
    finally:
        _count(libc, -1)


def _count(libc: Any, step: int) -> None:
    """Count the blocks that are open, in any thread; the first and the last turn the switch."""
    global _open
    with _lock:
        _open += step
        kept = _KEPT_BYTES if _open else _USUAL_BYTES
        libc.mallopt(_M_MMAP_THRESHOLD, kept)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * kept)
        if not _open:
            libc.malloc_trim(0)
