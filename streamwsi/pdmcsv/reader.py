"""Reads pdmcsv files, in batches and in bounded memory.

`streamwsi.pdmcsv` has the format. The reader is strict: a line that is not what that page says
is an error that names file, line and reason, or is left out, counted and reported. A file whose
last line has no LF was cut off there, so that its last number cannot be trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead, ConfigError
from .fields import Table, parse_lines, parts
from .rows import HEAD

__all__ = ["Lines", "OnError", "Reader", "Rows", "lines", "read"]

OnError = Literal["raise", "skip"]

_Int = npt.NDArray[np.int64]
_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

#: Bytes parsed at once: enough to hide Python.
_BLOCK = 1 << 19
_LONGEST_LINE = 1 << 26
_PROBLEMS_KEPT = 10
_INTEGERS = [i for i, name in enumerate(HEAD) if name != "downsample"]
_LEAST = np.array([-(2**53), -(2**53), 1, 1, 0, 1, 1, 1, 1])


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some lines with arrays of one shape.

    Attributes:
        line: ``(n,)`` int64: their numbers in the file, from 1.
        y, x: ``(n,)`` int64: top-left corners of the windows in level pixels.
        H, W: ``(n,)`` int64: the level's size.
        level: ``(n,)`` int64: index of the level.
        kernel: ``(n,)`` int64: size of the window in level pixels.
        downsample: ``(n,)`` float64: level-0 pixels per level pixel.
        values: ``(n, C, h, w)`` float64.
    """

    line: _Int
    y: _Int
    x: _Int
    H: _Int
    W: _Int
    level: _Int
    kernel: _Int
    downsample: _Float
    values: _Float

    def __len__(self) -> int:
        return len(self.line)


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines of a file.

    Attributes:
        text: the lines, each ended by LF.
        first: number of the first one in the file, from 1.
        count: how many they are.
        offset: where they begin in the file.
        torn: whether this is the last line, and its LF is missing in the file (here it is not).
    """

    text: bytes
    first: int
    count: int
    offset: int
    torn: bool

    @property
    def numbers(self) -> _Int:
        """Their numbers in the file."""
        return np.arange(self.first, self.first + self.count)


def lines(path: str | Path) -> Iterator[Lines]:
    """The lines of a file, some at a time.

    Raises:
        CannotRead: the file cannot be opened or read, or a line is longer than 64 MiB.
    """
    first, offset, filled = 1, 0, 0
    buffer = bytearray(_BLOCK)
    try:
        with open(path, "rb", buffering=0) as file:
            while n := file.readinto(memoryview(buffer)[filled : filled + _BLOCK]):
                cut = buffer.rfind(b"\n", filled, filled + n) + 1
                filled += n
                if cut:
                    text = bytes(memoryview(buffer)[:cut])
                    count = int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n")))
                    yield Lines(text, first, count, offset, torn=False)
                    first, offset, filled = first + count, offset + cut, filled - cut
                    buffer[:filled] = buffer[cut : cut + filled]
                if filled > _LONGEST_LINE:
                    raise CannotRead(f"{path}, line {first}: the line is longer than 64 MiB")
                if filled == len(buffer):
                    buffer += bytes(filled)
    except OSError as error:
        raise CannotRead(f"{path} cannot be read: {error.strerror or error}") from error
    if filled:
        yield Lines(bytes(buffer[:filled]) + b"\n", first, 1, offset, torn=True)


def read(path: str | Path, errors: OnError = "raise") -> Reader:
    """A pdmcsv file as batches of rows, in the order of the lines, in bounded memory.

    Args:
        path: the file.
        errors: ``"raise"`` ends at the first line that is not right; ``"skip"`` leaves such
            lines out, counts them in `Reader.skipped` and names some in `Reader.problems`.

    Raises:
        ConfigError: `errors` is something else.
    """
    return Reader(path, errors)


class Reader:
    """Iterating gives `Rows`.

    Attributes:
        path: the file.
        skipped: lines left out so far.
        problems: what was wrong with the first of them.

    Raises:
        CannotRead: while iterating, where the file cannot be read or a line is not right; the
            message names the file, the line and the reason.
    """

    def __init__(self, path: str | Path, errors: OnError = "raise") -> None:
        if errors not in ("raise", "skip"):
            raise ConfigError(f'errors must be "raise" or "skip", not {errors!r}')
        self.path = path
        self._strict = errors == "raise"
        self.restart()

    def restart(self) -> None:
        """Forget what was left out so far."""
        self.skipped = 0
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[Rows]:
        self.restart()
        for block in self.blocks():
            yield from self.rows(block.text, block.numbers)

    def blocks(self) -> Iterator[Lines]:
        """The lines of the file, without a torn last one, which is reported."""
        for block in lines(self.path):
            if block.torn:
                reason = "the file ends within the line; it was cut off, or is being written"
                self._report(block.first, reason)
            else:
                yield block

    def rows(self, text: bytes, numbers: _Int) -> Iterator[Rows]:
        """Lines of text with these numbers, parsed; those that are not right are reported."""
        table = parse_lines(text)
        good = _right(table)
        self.report(text, numbers, good)
        for run in _runs(table, good):
            yield _rows(numbers, table, run)

    def corners(self, text: bytes, numbers: _Int) -> tuple[_Int, _Bool]:
        """y and x, ``(2, m)``, of the lines that are right, and which lines these are.

        What the values are need not have been read.
        """
        table = parse_lines(text, heads=True)
        good = _right(table)
        self.report(text, numbers, good)
        return table.corner[:, good].astype(np.int64), good

    def report(self, text: bytes, numbers: _Int, good: _Bool) -> None:
        """Count lines that are not right, or raise at the first one."""
        wrong = np.flatnonzero(~good)
        if not len(wrong):
            return
        named = wrong[: max(0, _PROBLEMS_KEPT - len(self.problems))]
        self.skipped += len(wrong) - len(named)
        texts = text.split(b"\n")
        for i in named.tolist():
            self._report(int(numbers[i]), _reason(texts[i]))

    def _report(self, number: int, reason: str) -> None:
        message = f"{self.path}, line {number}: {reason}"
        if self._strict:
            raise CannotRead(message + ' (errors="skip" leaves such lines out)')
        self.skipped += 1
        if len(self.problems) < _PROBLEMS_KEPT:
            self.problems.append(message)


def _right(table: Table) -> _Bool:
    """Whether each line is as the format has it."""
    whole, downsample = np.delete(table.shared, 4, axis=0), table.shared[4]
    shared = _integers(whole, _LEAST[2:]) & (downsample > 0) & (downsample < np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = table.counts == len(HEAD) + table.shared[-3:].prod(axis=0)
    good: _Bool = sizes & shared & _integers(table.corner, _LEAST[:2]) & ~table.odd
    return good


def _runs(table: Table, good: _Bool) -> Iterator[slice]:
    """Consecutive lines that are right and have arrays of one shape."""
    n = len(good)
    if table.shared.shape[1] == 1 and good.all():
        yield slice(0, n)
        return
    shapes = np.broadcast_to(table.shared[-3:], (3, n))
    breaks = np.flatnonzero((np.diff(shapes) != 0).any(axis=0)) + 1
    bad = np.flatnonzero(~good)
    edges = np.unique(np.concatenate([[0], breaks, bad, bad + 1, [n]])).tolist()
    for start, stop in itertools.pairwise(edges):
        if good[start]:
            yield slice(start, stop)


def _integers(numbers: _Float, least: _Int) -> _Bool:
    """Which columns are integers that a double holds exactly, not below `least`."""
    good = (numbers == np.floor(numbers)) & (numbers >= least[:, None]) & (numbers <= 2**53)
    every: _Bool = good.all(axis=0)
    return every


def _rows(numbers: _Int, table: Table, lines: slice) -> Rows:
    """Lines that are right and have arrays of one shape."""
    head = table.head[:, lines]
    integers = head.astype(np.int64)
    y, x, H, W, level, kernel = integers[:6]
    values = table.values(lines).reshape(-1, *integers[-3:, 0].tolist())
    return Rows(numbers[lines], y, x, H, W, level, kernel, head[6], values)


def _reason(line: bytes) -> str:
    """What is wrong with a line that `Reader` does not accept."""
    if not line.strip():
        return "the line is blank"
    count, head = line.count(b",") + 1, line.split(b",", len(HEAD))[: len(HEAD)]
    if count < len(HEAD):
        return f"the line has {count} fields, but {len(HEAD)} come before the values"
    for i, (name, text) in enumerate(zip(HEAD, head, strict=True)):
        number, shown = _number(text), _shown(text)
        if number is None:
            return f"{name} is {shown!r}, which is not a number"
        if name == "downsample":
            if not 0 < number < float("inf"):
                return f"downsample is {shown}, which is not positive"
            continue
        least = int(_LEAST[_INTEGERS.index(i)])
        if not (least <= number <= 2**53 and number.is_integer()):
            return f"{name} is {shown}, but must be an integer from {least} to {2**53}"
    values = line.split(b",", len(HEAD))[len(HEAD) :]
    texts = itertools.chain.from_iterable(p.split(b",") for each in values for p in parts(each))
    for i, text in enumerate(texts):
        if _number(text) is None:
            return f"value {i} is {_shown(text)!r}, which is not a number"
    C, h, w = (int(float(text)) for text in head[7:])
    return f"there are {count - len(HEAD)} values, but C × h × w = {C} × {h} × {w}"


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(text: bytes) -> str:
    return text[:40].decode("utf-8", "replace").strip()
