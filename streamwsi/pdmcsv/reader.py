"""Reads pdmcsv files, in batches and in bounded memory.

`streamwsi.pdmcsv` has the format. The reader is strict: a line that is not what that page says
is an error that names file, line and reason, or is left out, counted and reported. A file whose
last line has no LF was cut off there, so that its last number cannot be trusted.

Eight of the ten fields before the values are the same in each line that one run wrote, text and
all. So they are read once per block, compared as bytes and cut out (`_repeated`): that halves
the time where a window has one value. A block with any other line is read field by field.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import CannotRead, ConfigError
from .fields import Fields, parse_fields
from .rows import HEAD

__all__ = ["Lines", "OnError", "Reader", "Rows", "heads", "lines", "read"]

OnError = Literal["raise", "skip"]

_Int = npt.NDArray[np.int64]
_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

#: Bytes parsed at once: enough to hide Python, little enough for the cache.
_BLOCK = 1 << 17
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


class Lines(NamedTuple):
    """Whole lines of a file.

    Attributes:
        text: the lines, each ended by LF.
        first: number of the first one in the file, from 1.
        offset: where they begin in the file.
        torn: whether the last one's LF is missing in the file (here it is not).
    """

    text: bytes
    first: int
    offset: int
    torn: bool


def lines(path: str | Path) -> Iterator[Lines]:
    """The lines of a file, some at a time.

    Raises:
        CannotRead: the file cannot be opened or read, or a line is longer than 64 MiB.
    """
    first, offset, parts = 1, 0, list[bytes]()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                whole, newline, rest = block.rpartition(b"\n")
                if newline:
                    text = b"".join([*parts, whole, newline])
                    yield Lines(text, first, offset, torn=False)
                    first, offset = first + text.count(b"\n"), offset + len(text)
                    parts = []
                parts.append(rest)
                if sum(map(len, parts)) > _LONGEST_LINE:
                    raise CannotRead(f"{path}, line {first}: the line is longer than 64 MiB")
    except OSError as error:
        raise CannotRead(f"{path} cannot be read: {error.strerror or error}") from error
    if text := b"".join(parts):
        yield Lines(text + b"\n", first, offset, torn=True)


def heads(text: bytes) -> bytes:
    """The first ten fields of each line, or what there is of them."""
    data = np.frombuffer(text, np.uint8)
    commas, end = np.flatnonzero(data == ord(",")), np.flatnonzero(data == ord("\n"))
    start = np.concatenate([[0], end + 1])[:-1]
    tenth = np.searchsorted(commas, start) + len(HEAD) - 1
    stop = np.minimum(np.append(commas, len(data))[np.minimum(tenth, len(commas))], end)
    parts = [text[i:j] for i, j in zip(start.tolist(), stop.tolist(), strict=True)]
    return b"\n".join([*parts, b""])


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
        for block in lines(self.path):
            text = self.untorn(block)
            yield from self.rows(text, block.first + np.arange(text.count(b"\n")))

    def untorn(self, block: Lines) -> bytes:
        """The text without a torn last line, which is reported."""
        if not block.torn:
            return block.text
        whole = block.text[: block.text[:-1].rfind(b"\n") + 1]
        number = block.first + whole.count(b"\n")
        self._report(number, "the file ends within the line; it was cut off, or is being written")
        return whole

    def rows(self, text: bytes, numbers: _Int) -> Iterator[Rows]:
        """Lines of text with these numbers, parsed; those that are not right are reported."""
        if (alike := _repeated(text, numbers)) is not None:
            yield alike
            return
        fields = parse_fields(text)
        head, good = _checked(fields)
        good &= np.diff(fields.first) == len(HEAD) + head[:, -3:].prod(axis=1)
        self.report(text, numbers, good)
        breaks = np.flatnonzero((np.diff(head[:, -3:], axis=0) != 0).any(axis=1)) + 1
        bad = np.flatnonzero(~good)
        edges = np.unique(np.concatenate([[0], breaks, bad, bad + 1, [len(good)]])).tolist()
        for start, stop in itertools.pairwise(edges):
            if good[start]:
                flat = fields.numbers[fields.first[start] : fields.first[stop]]
                values = flat.reshape(stop - start, -1)[:, len(HEAD) :]
                yield _rows(numbers[start:stop], head[start:stop], values)

    def heads(self, text: bytes, numbers: _Int) -> tuple[_Float, _Bool]:
        """The ten fields of each line before the values, ``(n, 10)``, and which are right."""
        head, good = _checked(parse_fields(heads(text)))
        self.report(text, numbers, good)
        return head, good

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


def _checked(fields: Fields) -> tuple[_Float, _Bool]:
    """The first ten numbers of each line, and whether they and all others can be right."""
    start = fields.first[:-1]
    last = max(0, len(fields.numbers) - 1)
    head = fields.numbers[np.minimum(start[:, None] + np.arange(len(HEAD)), last)]
    integers = head[:, _INTEGERS]
    good = np.diff(fields.first) >= len(HEAD)
    good &= ((integers == np.floor(integers)) & (integers >= _LEAST)).all(axis=1)
    good &= (integers <= 2**53).all(axis=1)
    good &= (head[:, 6] > 0) & (head[:, 6] < np.inf)
    good[np.searchsorted(fields.first, fields.bad, "right") - 1] = False
    return head, good


def _repeated(text: bytes, numbers: _Int) -> Rows | None:
    """Lines that are all right and differ in y, x and values only; None where some are not so."""
    first = text[: text.find(b"\n")].split(b",", len(HEAD))[: len(HEAD)]
    head, good = _checked(parse_fields(b",".join(first) + b"\n"))
    if not good[0]:
        return None
    shared = b",".join([b"", *first[2:], b""])
    short = text.replace(shared, b"\n")
    # Each line is now two, "y, x" and the values, if each had the shared part once: then, and
    # only then, every second LF of `short` is one of `text`, moved by what was cut out before.
    ends, cuts = _line_ends(text), _line_ends(short)
    moved = ends - (len(shared) - 1) * np.arange(1, len(ends) + 1)
    if len(cuts) != 2 * len(ends) or (cuts[1::2] != moved).any():
        return None
    fields = parse_fields(short)
    counts, shape = np.diff(fields.first).reshape(-1, 2), head[0, -3:]
    if len(fields.bad) or (counts != (2, shape.prod())).any():
        return None
    corner, values = np.split(fields.numbers.reshape(len(ends), -1), [2], axis=1)
    if not ((corner == np.floor(corner)) & (np.abs(corner) <= 2**53)).all():
        return None
    heads = head.repeat(len(ends), axis=0)
    heads[:, :2] = corner
    return _rows(numbers, heads, values)


def _line_ends(text: bytes) -> _Int:
    return np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))


def _rows(numbers: _Int, head: _Float, values: _Float) -> Rows:
    """Lines with arrays of one shape: from heads ``(n, 10)`` and values ``(n, C · h · w)``."""
    integers = head.astype(np.int64)
    y, x, H, W, level, kernel = integers.T[:6]
    values = values.reshape(-1, *integers[0, -3:].tolist())
    return Rows(numbers, y, x, H, W, level, kernel, head[:, 6], values)


def _reason(line: bytes) -> str:
    """What is wrong with a line that `Reader` does not accept."""
    if not line.strip():
        return "the line is blank"
    texts = line.split(b",")
    if len(texts) < len(HEAD):
        return f"the line has {len(texts)} fields, but {len(HEAD)} come before the values"
    numbers = []
    for i, text in enumerate(texts):
        name = HEAD[i] if i < len(HEAD) else f"value {i - len(HEAD)}"
        shown = text[:40].decode("utf-8", "replace").strip()
        try:
            numbers.append(float(text))
        except ValueError:
            return f"{name} is {shown!r}, which is not a number"
        if name == "downsample" and not 0 < numbers[i] < float("inf"):
            return f"downsample is {shown}, which is not positive"
        if i in _INTEGERS:
            least = int(_LEAST[_INTEGERS.index(i)])
            if not (least <= numbers[i] <= 2**53 and numbers[i].is_integer()):
                return f"{name} is {shown}, but must be an integer from {least} to {2**53}"
    C, h, w = (int(number) for number in numbers[7:10])
    return f"there are {len(texts) - len(HEAD)} values, but C × h × w = {C} × {h} × {w}"
