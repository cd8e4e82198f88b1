"""glibc's malloc, told what a run is like: one heap for all threads, and activations kept.

malloc gives each thread a heap of its own, up to 8 for each core, and each of them keeps what its
thread has freed. A run has a dozen threads that hand large arrays on to one another, so that a
dense map took 855 MiB where 560 were in use. With one heap what one thread frees the next one
takes; no run was slower for sharing it (arrays are few and large).

A model takes the same memory with every call and gives it back. malloc gives pieces of more than
32 MiB, and what lies free at a heap's end, back to the kernel, which clears each of their pages
anew when it is next touched. That was half of the time for a 1×1 convolution over 16 windows of
512×512 (its output is 33 MB), and a tenth with 256×256. ResNet-18 gained nothing.

The switches are those of the whole process (mallopt(3)). Who has set them by environment
variables means it, and is left alone. Threads that had a heap of their own before keep it, and
that there is one heap for all later ones cannot be undone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any, Self

__all__ = ["KeptHeap", "share_one_heap"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_KEPT_BYTES = 63 << 20
_USUAL_BYTES = 32 << 20
"""The most that malloc keeps on its own, a limit that it grows to as such memory is freed."""

_USUAL_PAD = 128 << 10

_VARIABLES = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_ARENA_MAX",
    "GLIBC_TUNABLES",
)

_lock = threading.Lock()
_kept = 0


def share_one_heap() -> None:
    """Let threads that begin from now on share one heap; nothing happens without glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, 1)


def _glibc() -> Any:
    """The C library, where it is glibc and nobody has told its malloc anything."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "malloc_trim") or any(name in os.environ for name in _VARIABLES):
        return None
    return libc


class KeptHeap:
    """Lets malloc keep what was freed, up to 63 MiB a piece, from `begin` until the block ends.

    It does nothing where there is no glibc.

    Attributes:
        thread_bytes: that a thread may keep then.
    """

    thread_bytes = _KEPT_BYTES

    def __init__(self) -> None:
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Begin; another call does nothing."""
        with _lock:
            if not self._begun:
                self._begun = True
                _count(1)

    def __exit__(self, *_: object) -> None:
        with _lock:
            if self._begun:
                _count(-1)


def _count(step: int) -> None:
    """Count who has begun, in any thread; the first and the last turn the switch."""
    global _kept
    _kept += step
    if (libc := _glibc()) is None:
        return
    most = _KEPT_BYTES if _kept else _USUAL_BYTES
    libc.mallopt(_M_MMAP_THRESHOLD, most)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * most)
    # Otherwise a heap that happens to be empty is given back as a whole.
    libc.mallopt(_M_TOP_PAD, most if _kept else _USUAL_PAD)
    if not _kept:
        libc.malloc_trim(0)
