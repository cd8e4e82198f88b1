"""Pdmcsv: a text file per slide, a line per window, as PyDmed wrote them.

``OUT/<slide id>.csv`` holds nothing but lines (`streamwsi.pdmcsv` has the format), in the order
of the windows: line k is piece k. The record (`streamwsi.sinks.base`) is a file of its own,
``OUT/<slide id>.csv.json``; its state counts the bytes that hold the pieces below the
watermark. A run that goes on cuts the file there: a torn last line disappears, and the lines
past the watermark are computed again.

The format knows one kernel for both axes, and one downsample: that of the x axis.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiofiles
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from aiofiles.threadpool.binary import AsyncFileIO

from ..chunks import Pieces, Plan
from ..errors import ConfigError, StageMismatch
from ..pdmcsv import format_rows
from ..slides import SlideRef
from ..stages import Recipe
from ..values import ValueType
from .base import ResumableWriter, claimed
from .corners import Corners, Windows
from .durable import sync_folders
from .records import State
from .sidecars import FileOutput

__all__ = ["Pdmcsv"]

_BUFFER_BYTES = 1 << 20
#: Numbers that are being formatted, their text, and the buffer; less on small slides.
_OPEN_BYTES = 16 << 20
_WINDOW_BYTES = 64 << 10
#: A number as text, with its share of the line's head, thrice: in columns, joined, without gaps.
_NUMBER_BYTES = 256
_REPLACED = "the file was replaced by another one"
#: Numbers formatted at once: windows are collected up to the small one, and large batches cut
#: at the large one.
_FEW, _MANY = 1 << 12, 1 << 16


@dataclass(frozen=True, slots=True)
class Pdmcsv:
    """Writes ``OUT/<slide id>.csv`` in the pdmcsv format.

    Args:
        out: the output folder; it is made where it is missing.
    """

    out: str | Path

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the lines; not the folder."""
        return {"type": "pdmcsv"}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The file's path."""
        return (str(Path(self.out) / f"{slide.id}.csv"),)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        if values is None:
            return min(_OPEN_BYTES, plan.count * _WINDOW_BYTES)
        # Up to `_FEW` numbers wait for more, with the batch that makes them enough ...
        waiting = 2 * _FEW * values.dtype.itemsize + values.nbytes
        # ... and at most `_MANY` (or one window) are formatted at a time.
        numbers = min(plan.count * values.numbers, max(_MANY, values.numbers))
        return waiting + numbers * _NUMBER_BYTES + 3 * _BUFFER_BYTES

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[ResumableWriter]:
        """The output of one slide.

        Raises:
            ConfigError: the kernel is not square, or the output may not be overwritten.
            PlanChanged: the output was begun by another plan.
            CannotWrite: the output cannot be created.
        """
        if plan.grid is not None:
            _square(plan.grid.kernel)
        output = _File(Path(self.out), f"{plan.slide.ref.id}.csv", plan, recipe)
        async with claimed(output, overwrite=overwrite):
            writer = _Writer(output)
            try:
                yield writer
            finally:
                await writer.close()


def _square(kernel: tuple[int, int]) -> None:
    if kernel[0] != kernel[1]:
        raise ConfigError(
            f"pdmcsv has one kernel for both axes and cannot write windows of {kernel[0]}×"
            f"{kernel[1]}; choose a square kernel or another sink"
        )


class _File(FileOutput):
    kind = "Pdmcsv"

    def fresh_state(self) -> State:
        return State(self.plan.count, nbytes=0)

    def owns(self, state: State) -> bool:
        return state.nbytes is not None

    def begin(self) -> None:
        # The record first: a file without one would not be recognised as ours. A new file
        # rather than an emptied one: the old one may have another name too.
        self.save()
        self.path.unlink(missing_ok=True)
        os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))

    def repair(self) -> None:
        nbytes = self.state.nbytes or 0
        with open(self.path, "r+b") as file:
            file.seek(max(0, nbytes - 1))
            if nbytes and file.read(1) != b"\n":
                raise ConfigError(
                    f"{self.path} has lost lines that were written (its first {nbytes} bytes "
                    "should hold whole lines); --overwrite starts afresh"
                )
            file.truncate(nbytes)


class _Writer(ResumableWriter):
    def __init__(self, output: _File) -> None:
        super().__init__(output)
        self._path = output.path
        self._plan = output.plan
        self._size = output.state.nbytes or 0
        self._pending: list[tuple[Corners, npt.NDArray[Any]]] = []
        self._buffer = bytearray()
        self._file: AsyncFileIO | None = None
        self._windows = Windows()

    async def close(self) -> None:
        if self._file is not None:
            with anyio.CancelScope(shield=True):
                await self._file.close()

    async def _put(self, pieces: Pieces[Any]) -> None:
        values = _numbers(pieces.values)
        if self._pending and self._pending[0][1].shape[1:] != values.shape[1:]:
            await self._format()
        corners = self._windows.corners(pieces.places)
        _square(self._windows.kernel)
        self._pending.append((corners, values))
        if sum(some.size for _, some in self._pending) >= _FEW:
            await self._format()
        else:
            self._pending[-1] = corners, values.copy()  # they are on loan

    async def _format(self) -> None:
        """Turn the pending windows into lines."""
        if not self._pending:
            return
        corners, values = self._pending[0]
        if len(self._pending) > 1:
            corners = np.concatenate([some for some, _ in self._pending])
            values = np.concatenate([some for _, some in self._pending])
        self._pending.clear()
        step = max(1, _MANY // values[0].size)
        for i in range(0, len(values), step):
            part = slice(i, i + step)
            self._buffer += await anyio.to_thread.run_sync(self._lines, corners[part], values[part])
            if len(self._buffer) >= _BUFFER_BYTES:
                await self._drain()

    def _lines(self, corners: Corners, values: npt.NDArray[Any]) -> bytes:
        level = self._plan.level
        return format_rows(
            corners[:, 1],
            corners[:, 0],
            level.size.height,
            level.size.width,
            level.index,
            self._windows.kernel.width,
            float(level.downsample[0]),
            values,
        )

    async def _drain(self) -> None:
        """Append the buffered lines to the file, all of them or none."""
        if self._file is None:
            self._file = await aiofiles.open(self._path, "ab", buffering=0, opener=_no_link)
            if os.fstat(self._file.fileno()).st_size != self._size:
                raise OSError(errno.ESTALE, _REPLACED)
        data = bytes(self._buffer)
        self._buffer.clear()
        try:
            written = 0
            while written < len(data):
                written += await self._file.write(data[written:])
        except OSError:
            await self._file.truncate(self._size)
            raise
        self._size += len(data)

    async def _flush(self) -> int:
        await self._format()
        await self._drain()
        assert self._file is not None
        await anyio.to_thread.run_sync(self._sync, self._file.fileno())
        return self._size

    def _sync(self, fd: int) -> None:
        os.fsync(fd)
        # Somebody may have removed the file, or put another one in its place.
        if not os.path.samestat(self._path.stat(), os.fstat(fd)):
            raise OSError(errno.ESTALE, _REPLACED)
        sync_folders([self._path.parent])


def _numbers(values: Any) -> npt.NDArray[Any]:
    """The values as ``(n, C, h, w)``; a number per window is a vector of one."""
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values[:, None]
    if not isinstance(values, np.ndarray):
        what = type(values).__name__
    elif values.ndim not in (2, 4) or 0 in values.shape[1:]:
        what = f"shape {values.shape}"
    elif values.dtype.kind not in "fiu":
        what = f"{values.dtype} numbers"
    else:
        return values.reshape(*values.shape[:2], *(values.shape[2:] or (1, 1)))
    raise StageMismatch(
        "pdmcsv needs arrays of numbers of shape (n, C) or (n, C, h, w), but the processor "
        f"returned {what}"
    )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
