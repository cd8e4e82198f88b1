"""Lines of comma-separated numbers to arrays, many at a time, with the values of ``float()``.

A JSON parser reads the numbers of a block: orjson makes the doubles that ``float()`` makes, in
a fraction of the time. It gets nothing but texts that mean the same to both; a block with any
other (``inf``, ``.5``, ``-0``, garbage) goes through ``float()`` text by text. What ``float()``
refuses is no number.

Eight of the ten fields before the values are the same in each line that one run wrote, text and
all. So they are read once per block, compared as bytes and cut out (`_alike`): of the eleven
numbers of a line with one value that leaves three. A block with any other line is read in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from .rows import HEAD

__all__ = ["Table", "parse_lines", "parts"]

_Int = npt.NDArray[np.int64]
_Float = npt.NDArray[np.float64]
_Bool = npt.NDArray[np.bool_]

#: What finite numbers, nan and inf are made of. Nothing else in JSON is made of these only.
_NUMERIC = b"0123456789.+-eE nanif"
#: So few values are read sooner than skipped.
_FEW = 4
#: Bytes that become Python objects at once: a line may be long.
_PART = 1 << 20


class Table(NamedTuple):
    """Lines as numbers, NaN where a text is no number.

    Attributes:
        corner: ``(2, n)`` float64: y and x.
        shared: ``(8, k)`` float64: H to w, of each line or, where all lines have the same, once.
        counts: ``(n,)`` int64: fields of each line. Where they are fewer than ten, those above
            may be anything.
        odd: ``(n,)`` bool: lines with a text that is no number, as far as they were read.
        flat: float64: the values line by line, after the last `lead` fields before them.
        stop: ``(n,)`` int64: where each line ends in `flat`.
        lead: 0 … 10.
    """

    corner: _Float
    shared: _Float
    counts: _Int
    odd: _Bool
    flat: _Float
    stop: _Int
    lead: int

    @property
    def head(self) -> _Float:
        """``(10, n)``: y to w of each line."""
        shared = np.broadcast_to(self.shared, (len(self.shared), len(self.counts)))
        return np.concatenate([self.corner, shared])

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        arrays = (self.corner, self.shared, self.counts, self.odd, self.flat, self.stop)
        return sum(array.nbytes for array in arrays)

    def values(self, lines: slice) -> _Float:
        """The values, ``(k, m)``, of consecutive lines that have equally many."""
        width = int(self.counts[lines.start]) - len(HEAD) + self.lead
        start = int(self.stop[lines.start]) - width
        flat = self.flat[start : int(self.stop[lines.stop - 1])]
        return flat.reshape(-1, width)[:, self.lead :]


def parse_lines(text: bytes, *, heads: bool = False) -> Table:
    """Read lines of numbers.

    Args:
        text: whole lines, one at least, the last one ended by LF too.
        heads: that the values are not needed: they may be left unread, and cannot be asked for.
    """
    table = _alike(text, heads)
    return _any(text) if table is None else table


def _any(text: bytes) -> Table:
    """Lines of any kind."""
    rest = text.translate(None, _NUMERIC)
    clean = not rest.translate(None, b",\n")
    numbers, bad = _numbers(text[:-1].replace(b"\n", b","), clean)
    marks = np.frombuffer(rest, np.uint8)
    marks = marks[(marks == ord(",")) | (marks == ord("\n"))]
    stop = np.flatnonzero(marks == ord("\n")) + 1
    counts = np.diff(stop, prepend=0)
    odd = np.zeros(len(stop), np.bool_)
    odd[np.searchsorted(stop, bad, "right")] = True
    fields = stop - counts + np.arange(len(HEAD))[:, None]
    head = numbers[np.minimum(fields, len(numbers) - 1)]
    return Table(head[:2], head[2:], counts, odd, numbers, stop, len(HEAD))


def _alike(text: bytes, heads: bool) -> Table | None:
    """Lines that differ in y, x and values only; None where some are not so."""
    first = text[: text.find(b"\n")].split(b",", len(HEAD))
    if len(first) <= len(HEAD) or b";" in text:
        return None
    values = first.pop().count(b",") + 1
    # Each line becomes "y, x;values" if it has the shared part once, behind its second field.
    short = text.replace(b",".join([b"", *first[2:], b""]), b";")
    marks = short.translate(None, _NUMERIC)
    n = marks.count(b"\n")
    if marks != (b",;" + b"," * (values - 1) + b"\n") * n:
        return None
    if heads and values > _FEW:
        short = b";".join(part.rpartition(b"\n")[2] for part in short.split(b";")[:-1]) + b"\n"
    numbers, bad = _numbers(short[:-1].replace(b";", b",").replace(b"\n", b","), clean=True)
    shared, wrong = _by_float(b",".join(first[2:]))
    if len(bad) or wrong:
        return None
    width = len(numbers) // n
    counts = np.full(n, len(HEAD) + values, np.int64)
    stop = np.arange(width, width * n + 1, width)
    corner = numbers.reshape(n, width)[:, :2].T.copy()
    return Table(corner, shared[:, None], counts, np.zeros(n, np.bool_), numbers, stop, 2)


def _numbers(text: bytes, clean: bool) -> tuple[_Float, _Int]:
    """The fields between commas as numbers, and which of them are none.

    Args:
        clean: that there are no bytes but commas and those of `_NUMERIC`.
    """
    numbers: list[_Float] = []
    bad: list[int] = []
    first = 0
    for part in parts(text):
        some = _by_json(part) if clean else None
        if some is None:
            some, wrong = _by_float(part)
            bad += [first + i for i in wrong]
        numbers.append(some)
        first += len(some)
    return np.concatenate(numbers), np.array(bad, np.int64)


def parts(text: bytes) -> Iterator[bytes]:
    """The text cut at some of its commas: it may have millions of fields."""
    start, stop = 0, 0
    while stop < len(text) or not start:
        stop = text.find(b",", start + _PART)
        stop = len(text) if stop < 0 else stop
        yield text[start:stop]
        start = stop + 1


def _by_json(text: bytes) -> _Float | None:
    """Clean fields, where they are sure to be what ``float()`` makes of them."""
    maybe_nan = b"n" in text
    document = b"[%b]" % (text.replace(b"nan", b"null") if maybe_nan else text)
    try:
        fields = orjson.loads(document)
    except orjson.JSONDecodeError:
        return None
    if not fields:
        return None  # a blank line
    if maybe_nan:
        numbers = np.array(fields, np.float64)  # None becomes NaN
    else:
        numbers = np.fromiter(fields, np.float64, len(fields))
    return None if _has_negative_zero(document) else numbers


def _has_negative_zero(document: bytes) -> bool:
    """Whether there is a ``-0`` without a point, of which JSON makes a 0."""
    text = np.frombuffer(document, np.uint8)
    sign = np.flatnonzero(text == ord("-"))
    after = text[sign[text[sign + 1] == ord("0")] + 2]
    return any((after == end).any() for end in b",] ")


def _by_float(text: bytes) -> tuple[_Float, list[int]]:
    numbers, bad = [], []
    for i, field in enumerate(text.split(b",")):
        try:
            numbers.append(float(field))
        except ValueError:
            numbers.append(np.nan)
            bad.append(i)
    return np.array(numbers), bad
