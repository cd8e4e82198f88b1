"""Lines of comma-separated numbers to arrays, many at a time, with the values of ``float()``.

Most fields are plain decimals such as ``-0.10000000149011612``. They are found and read with
whole-array operations: the digits before and behind the point become an integer m, and
``m · 10^q`` becomes a double

- by one division or multiplication where m and the power of ten are exact as doubles
  (W. D. Clinger, "How to read floating point numbers accurately", 1990), else
- by the upper 128 bits of m times a power of ten (D. Lemire, "Number parsing at a gigabyte per
  second", 2021), where these decide the rounding.

All other fields, about one of 250 among the plain ones, go through ``float()`` one by one. So
each number is what ``float()`` makes of its text, and what ``float()`` refuses is refused.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .powers_of_ten import high_product, power_of_ten

__all__ = ["Fields", "parse_fields"]

_U64 = npt.NDArray[np.uint64]
_Int = npt.NDArray[np.int64]
_Bool = npt.NDArray[np.bool_]
_Bytes = npt.NDArray[np.uint8]

_MARGIN = 24
_Q_MIN, _Q_MAX = -342, 308
_SMALL_POWERS = np.array([10**i for i in range(9)], np.uint32)
_LARGE_POWERS = np.array([10**i if i < 20 else 0 for i in range(25)], np.uint64)
_EXACT_POWERS = np.array([10.0**i for i in range(23)])


class Fields(NamedTuple):
    """The numbers of some lines.

    Attributes:
        numbers: ``(m,)`` float64: all fields, line by line; NaN where the text is no number.
        bad: ``(k,)`` int64: which fields are no numbers, ascending.
        first: ``(n + 1,)`` int64: the first field of each line, and m.
    """

    numbers: npt.NDArray[np.float64]
    bad: _Int
    first: _Int


class _Tokens(NamedTuple):
    """Where the parts of each field lie in the bytes.

    Attributes:
        start, end: the field, without the space and the sign before it.
        negative: whether there is a minus sign.
        plain: whether it is made of at most 8 digits, a point, at most 24 digits, exponent.
        whole, fraction: number of digits before and behind the point; 0 where not plain.
        point: where the digits before the point end.
        stop: where the digits behind it end.
        power: the exponent behind ``e``, or 0.
    """

    start: _Int
    end: _Int
    negative: _Bool
    plain: _Bool
    whole: _Int
    fraction: _Int
    point: _Int
    stop: _Int
    power: _Int


def parse_fields(text: bytes) -> Fields:
    """Read lines of numbers.

    Args:
        text: whole lines, the last one ended by LF too; empty text has no lines.
    """
    data = np.zeros(len(text) + 2 * _MARGIN, np.uint8)
    data[_MARGIN:-_MARGIN] = np.frombuffer(text, np.uint8)
    digits = data - np.uint8(48)
    is_digit = digits <= 9
    marks = np.flatnonzero(
        ~(is_digit | (data == ord(" ")) | (data == ord("-")) | (data == ord("+")))[:-_MARGIN]
    )[_MARGIN:]
    separators = np.flatnonzero((data[marks] == ord(",")) | (data[marks] == ord("\n")))
    eights = _eights(digits * is_digit)
    tokens = _tokens(data, eights, marks, separators)
    numbers, sure = _plain_numbers(eights, tokens)
    bad = _read_others(text, data, tokens, numbers, np.flatnonzero(~sure))
    last = np.flatnonzero(data[tokens.end] == ord("\n"))
    return Fields(numbers, bad, np.concatenate([[0], last + 1]))


def _eights(digits: _Bytes) -> npt.NDArray[np.uint32]:
    """The number that the eight digits from each byte on make; other bytes count as zeros."""
    two = digits[:-1] * np.uint8(10) + digits[1:]
    four = two[:-2] * np.uint16(100) + two[2:]
    return four[:-4] * np.uint32(10000) + four[4:]


def _tokens(data: _Bytes, eights: npt.NDArray[np.uint32], marks: _Int, separators: _Int) -> _Tokens:
    end = marks[separators]
    start = np.concatenate([[_MARGIN], end + 1])[: len(end)]
    spaced = data[start] == ord(" ")
    start += spaced
    negative = data[start] == ord("-")
    start += negative

    between = np.diff(separators, prepend=-1) - 1
    last, last_but_one = marks[separators - 1], marks[np.maximum(separators - 2, 0)]
    has_power = (between > 0) & (between < 3) & (data[last] == ord("e"))
    one_point = (between == 1) & (data[last] == ord("."))
    has_point = one_point | ((between == 2) & has_power & (data[last_but_one] == ord(".")))
    stop = np.where(has_power, last, end)
    point = np.where(has_point, np.where(has_power, last_but_one, last), stop)
    power, signs, valid = _exponents(data, eights, last, end, has_power)

    whole, fraction = point - start, stop - point - has_point
    plain = (between == has_power.astype(np.int64) + has_point) & valid
    plain &= (whole <= 8) & (fraction <= 24) & (whole + fraction > 0)
    if signs + np.count_nonzero(spaced) + np.count_nonzero(negative) != _spaces_and_signs(data):
        plain[:] = False  # some are where they should not be: leave it to float()
    return _Tokens(start, end, negative, plain, whole * plain, fraction * plain, point, stop, power)


def _spaces_and_signs(data: _Bytes) -> int:
    return sum(int(np.count_nonzero(data == ord(sign))) for sign in " +-")


def _exponents(
    data: _Bytes, eights: npt.NDArray[np.uint32], e: _Int, end: _Int, has_power: _Bool
) -> tuple[_Int, int, _Bool]:
    """Exponents behind ``e``, how many of them have a sign, and which fields are valid so far."""
    power, valid = np.zeros(len(end), np.int64), np.ones(len(end), np.bool_)
    at = np.flatnonzero(has_power)
    if not len(at):
        return power, 0, valid
    sign = data[e[at] + 1]
    signed = (sign == ord("-")) | (sign == ord("+"))
    length = end[at] - e[at] - 1 - signed
    valid[at] = (length > 0) & (length <= 4)
    number = eights[end[at] - 8] % _SMALL_POWERS[np.clip(length, 0, 4)]
    power[at] = np.where(sign == ord("-"), -1, 1) * number.astype(np.int64)
    return power, int(np.count_nonzero(signed)), valid


def _plain_numbers(
    eights: npt.NDArray[np.uint32], tokens: _Tokens
) -> tuple[npt.NDArray[np.float64], _Bool]:
    """The numbers, and which of them are surely right."""

    def read(stop: _Int, digits: _Int) -> _U64:
        return (eights[stop - 8] % _SMALL_POWERS[digits]).astype(np.uint64)

    fraction = tokens.fraction
    whole = read(tokens.point, tokens.whole)
    m = read(tokens.stop, np.minimum(fraction, 8))
    fits = tokens.plain & ((tokens.whole + fraction <= 19) | (whole == 0))
    if fraction.max(initial=0) > 8:
        m += read(tokens.stop - 8, np.clip(fraction - 8, 0, 8)) * 10**8
    if fraction.max(initial=0) > 16:
        top = read(tokens.stop - 16, np.maximum(fraction - 16, 0))
        fits &= top < 1000
        m += top * 10**16
    m += whole * _LARGE_POWERS[fraction]
    numbers, sure = _doubles(m, tokens.power - fraction)
    return np.where(tokens.negative, -numbers, numbers), sure & fits


@cache
def _powers() -> tuple[_U64, _Int]:
    """``10^q`` from `_Q_MIN` on as ``top · 2^(b - 63)``, top cut to 64 bits."""
    tens = [power_of_ten(q) for q in range(_Q_MIN, _Q_MAX + 1)]
    # Rounded up to 128 bits, which cutting to 64 makes a rounding down unless it is exact.
    return np.array([g >> 64 for g, _ in tens], np.uint64), np.array([b for _, b in tens])


def _doubles(m: _U64, q: _Int) -> tuple[npt.NDArray[np.float64], _Bool]:
    """``m · 10^q`` as the nearest doubles, and where that is sure."""
    inexact = m.astype(np.float64)
    sure = (m < 2**53) & (np.abs(q) <= 22)
    power = _EXACT_POWERS[np.minimum(np.abs(q), 22)]
    numbers = np.where(q < 0, inexact / power, inexact * power)
    others = np.flatnonzero(~sure)
    if len(others):
        numbers[others], sure[others] = _long_doubles(m[others], q[others])
    return numbers, sure


def _long_doubles(m: _U64, q: _Int) -> tuple[npt.NDArray[np.float64], _Bool]:
    """``m · 10^q`` where one of them is not exact as a double, and where the result is sure."""
    tops, twos = _powers()
    at = np.clip(q - _Q_MIN, 0, len(tops) - 1)
    shift = 63 + 1023 - (m.astype(np.float64).view(np.int64) >> 52)
    scaled = m << shift.astype(np.uint64)
    product = high_product(tops[at], scaled)
    upper = product >> 63
    mantissa = product >> (upper + 9)
    mantissa = (mantissa + (mantissa & 1)) >> 1
    exponent = twos[at] - shift + upper.astype(np.int64) + (1075 + 11)
    bits = mantissa + ((exponent - 1).astype(np.uint64) << 52)
    # The product may be one too small, and what follows it is not known. That decides only
    # where the bits that are rounded away are all ones or all zeros.
    tail = product & 0x1FF
    sure = (tail != 0) & (tail != 0x1FF) & (scaled >> 63 == 1)
    sure &= (exponent >= 1) & (exponent <= 2045) & (q >= _Q_MIN) & (q <= _Q_MAX)
    return bits.view(np.float64), sure


def _read_others(
    text: bytes, data: _Bytes, tokens: _Tokens, numbers: npt.NDArray[np.float64], others: _Int
) -> _Int:
    """Read the fields with these numbers by ``float()``; returns which are no numbers."""
    if not len(others):
        return others
    first = tokens.start[others]
    named = tokens.end[others] - first == 3
    for name, value in ((b"nan", np.nan), (b"inf", np.inf)):
        same = named & (data[first[:, None] + np.arange(3)] == np.frombuffer(name, np.uint8)).all(1)
        numbers[others[same]] = np.where(tokens.negative[others[same]], -value, value)
        others, first, named = others[~same], first[~same], named[~same]
    bad = []
    begins = np.concatenate([[_MARGIN], tokens.end[:-1] + 1])
    for i in others.tolist():
        try:
            numbers[i] = float(text[begins[i] - _MARGIN : tokens.end[i] - _MARGIN])
        except ValueError:
            numbers[i] = np.nan
            bad.append(i)
    return np.array(bad, np.int64)
