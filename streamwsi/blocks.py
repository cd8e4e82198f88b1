"""One arena of shared memory per run, and the blocks that readers reserve in it.

The arena is an anonymous file (memfd on Linux, an unlinked temporary file elsewhere) that
worker processes inherit when they start: it has no name, so that nothing is left behind
however the run ends, it does not depend on the size of /dev/shm, and no resource tracker can
unlink it. Its pages take memory only once they are written, and until their block is given
back.

An `ArrayRef` is an array in the arena as a value: it pickles, and each side of a call turns it
into a numpy array over its own mapping.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError

__all__ = ["Arena", "ArrayRef", "Block"]

_ALIGNMENT = max(4096, mmap.PAGESIZE)


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """An array in an arena: `offset` and `strides` in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def resolve(self, buffer: Any) -> npt.NDArray[Any]:
        """The array over a mapping of the arena.

        ``np.frombuffer`` holds the buffer, so that closing the mapping under a living array
        raises BufferError instead of leaving an array that crashes on access.
        """
        flat = np.frombuffer(buffer, np.uint8)
        dtype = np.dtype(self.dtype)
        extent = dtype.itemsize + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        if self.offset < 0 or min(self.strides) < 0 or self.offset + extent > len(flat):
            raise ValueError(f"{self} reaches beyond the arena of {len(flat)} bytes")
        return np.ndarray(self.shape, dtype, flat.data, self.offset, self.strides)


@dataclass(frozen=True, slots=True)
class Block:
    """A range of the arena's bytes."""

    offset: int
    nbytes: int

    def array(self, shape: tuple[int, ...], dtype: str, at: int = 0) -> ArrayRef:
        """A C-contiguous array that begins `at` bytes into the block."""
        strides = [np.dtype(dtype).itemsize]
        for n in reversed(shape[1:]):
            strides.insert(0, strides[0] * n)
        return ArrayRef(self.offset + at, shape, tuple(strides), dtype)


class Arena:
    """The shared memory of a run.

    Args:
        nbytes: its size; pages are taken only as they are written.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("streamwsi", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, self.nbytes)
        self.buffer = mmap.mmap(self.fd, self.nbytes)
        self._free = [Block(0, self.nbytes)]

    def resolve(self, ref: ArrayRef) -> npt.NDArray[Any]:
        """The array over this process's mapping."""
        return ref.resolve(self.buffer)

    def reference(self, array: npt.NDArray[Any]) -> ArrayRef | None:
        """The value that resolves to this array; None where it lies elsewhere."""
        begin = np.frombuffer(self.buffer, np.uint8).ctypes.data
        low, high = np.lib.array_utils.byte_bounds(array)
        if min(array.strides, default=0) < 0 or low < begin or high > begin + self.nbytes:
            return None
        return ArrayRef(low - begin, array.shape, array.strides, array.dtype.str)

    @contextmanager
    def reserved(self, nbytes: int) -> Iterator[Block]:
        """A block for the length of a with statement.

        Raises:
            ConfigError: the arena has no such block free.
        """
        pages = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        for i, free in enumerate(self._free):
            if free.nbytes >= pages:
                taken = Block(free.offset, pages)
                self._free[i] = Block(free.offset + pages, free.nbytes - pages)
                break
        else:
            raise ConfigError(
                f"{nbytes} bytes of shared memory are needed and not free; raise the memory limit"
            )
        try:
            yield Block(taken.offset, nbytes)
        finally:
            if taken.nbytes and hasattr(mmap, "MADV_REMOVE"):
                self.buffer.madvise(mmap.MADV_REMOVE, taken.offset, taken.nbytes)
            self._give_back(taken)

    def _give_back(self, block: Block) -> None:
        merged: list[Block] = []
        for free in sorted([*self._free, block], key=lambda b: b.offset):
            if merged and merged[-1].offset + merged[-1].nbytes == free.offset:
                merged[-1] = Block(merged[-1].offset, merged[-1].nbytes + free.nbytes)
            else:
                merged.append(free)
        self._free = merged

    def close(self) -> None:
        """Unmap and close; arrays that are still alive keep their mapping until they die."""
        os.close(self.fd)
        try:
            self.buffer.close()
        except BufferError:
            # Somebody still holds a view (a traceback's frames, say): the mapping goes with it.
            del self.buffer
