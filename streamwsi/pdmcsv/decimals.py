"""Numbers as text, many at a time: the text that Python's ``repr`` gives, from numpy arrays.

``repr`` of a float is the shortest decimal that reads back as the same double and, of those,
the closest one. Doubles that were float32 before need 16 or 17 digits for that, and Python
makes them one at a time with big integers. Here the same digits come from whole arrays of
64-bit integers, after R. Giulietti, "The Schubfach way to render doubles" (2020): a double
``c · 2^q`` and the two ends of the interval that rounds to it are multiplied by a power of ten
that leaves 16 or 17 digits before the point, rounded to odd; then at most four candidates are
compared.

Text is laid out in a row of bytes per number with slots for every part it may have; what a
number does not use is NUL and is deleted when the rows are joined (`bytes.translate`). That
makes the whole way branch-free::

    byte  0     1-5    6      7  8-23            24-28
          -     0.000  digit  .  sixteen digits  e-308     (29-31: free for the caller)
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .powers_of_ten import high_product, power_of_ten

__all__ = ["FLOAT_WIDTH", "float_text", "integer_text"]

FLOAT_WIDTH = 32
"""Bytes per number in the rows of `float_text`; the last three are always NUL."""

_U64 = npt.NDArray[np.uint64]
_Int = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]

_FRACTION = np.uint64(2**52 - 1)
_ZEROS = np.uint64(int.from_bytes(b"00000000", "little"))
_FIRST_WORD = np.uint64(int.from_bytes(b"-0.000\0.", "little"))
_SCIENTIFIC = 5
_DECPT_MIN = -323


class _Powers(NamedTuple):
    """Per biased exponent of a double (+ 2048 for powers of two): how to scale it.

    Attributes:
        hi, lo: the power of ten ``10^-k``, normalised to 128 bits and rounded up.
        shift: by how much 4c is shifted before it is multiplied, plus 2.
        k: decimal exponent of the product's unit.
        step: limbs, lowest first, of half the distance to the next double, scaled alike.
        back: the same towards the double below.
    """

    hi: _U64
    lo: _U64
    shift: _U64
    k: _Int
    step: tuple[_U64, _U64, _U64]
    back: tuple[_U64, _U64, _U64]


@cache
def _powers() -> _Powers:
    rows: list[tuple[int, int, int, int, int]] = []
    for power_of_two in (False, True):
        for exponent in range(2048):
            q = max(exponent, 1) - 1075
            # floor(log10(2^q)), and of 3/4 · 2^q where the double below is twice as close.
            k = (q * 1262611 - 524031 * power_of_two) >> 22
            g, b = power_of_ten(-k)
            h = q + b + 1
            rows.append((g, h + 2, k, g << (h + 1), g << (h + 1 - power_of_two)))
    tens, shifts, units, step, back = zip(*rows, strict=True)

    def limb(numbers: tuple[int, ...], i: int) -> _U64:
        return np.array([n >> 64 * i & 2**64 - 1 for n in numbers], np.uint64)

    return _Powers(
        hi=limb(tens, 1),
        lo=limb(tens, 0),
        shift=np.array(shifts, np.uint64),
        k=np.array(units, np.int64),
        step=(limb(step, 0), limb(step, 1), limb(step, 2)),
        back=(limb(back, 0), limb(back, 1), limb(back, 2)),
    )


def _shortest(exponent: _Int, fraction: _U64) -> tuple[_U64, _Int]:
    """The shortest digits of positive doubles: ``(d, k)`` for ``d · 10^k``.

    `d` may end in zeros; it has 16 or 17 digits except for subnormal numbers.
    """
    powers = _powers()
    power_of_two = (fraction == 0) & (exponent > 1)
    at = exponent + (power_of_two * 2048)
    c = fraction | ((exponent > 0).astype(np.uint64) << 52)
    hi, lo = powers.hi[at], powers.lo[at]
    scaled = c << powers.shift[at]

    p0 = lo * scaled
    carry = high_product(lo, scaled)
    p1 = hi * scaled + carry
    p2 = high_product(hi, scaled) + (p1 < carry)

    step = [limb[at] for limb in powers.step]
    r1 = p1 + step[1]
    r2 = p2 + step[2] + (r1 < p1)
    low_carry = p0 + step[0] < p0
    r1 += low_carry
    r2 += low_carry & (r1 == 0)

    back = [limb[at] for limb in powers.back] if power_of_two.any() else step
    l1 = p1 - back[1]
    l2 = p2 - back[2] - (p1 < back[1])
    low_borrow = p0 < back[0]
    l2 -= low_borrow & (l1 == 0)
    l1 -= low_borrow

    # Rounded to odd: the last bit says whether anything follows. The power of ten was rounded
    # up, which shows as a remainder of at most 1 where there is none.
    odd = c & 1
    value = p2 | (p1 > 1)
    lower = (l2 | (l1 > 1)) + odd
    upper = (r2 | (r1 > 1)) - odd

    short = value // 40
    short4 = short * 40
    short_up = short4 + 40 <= upper
    use_short = (lower <= short4) != short_up
    long = value >> 2
    long4 = long << 2
    long_up = long4 + 4 <= upper
    middle = long4 + 2
    nearest_up = (value > middle) | ((value == middle) & (long & 1 == 1))
    long_up = np.where((lower <= long4) != long_up, long_up, nearest_up)
    return np.where(use_short, (short + short_up) * 10, long + long_up), powers.k[at]


@cache
def _quads() -> npt.NDArray[np.uint32]:
    """The four digits of 0 … 9999 as bytes."""
    text = "".join(f"{n:04}" for n in range(10000)).encode()
    return np.frombuffer(text, "<u4").astype(np.uint32)


@cache
def _masks() -> _U64:
    """Which of the first 24 bytes a number keeps, ``(3, 6 · 18 · 2)`` words.

    Indexed by ``(layout · 18 + digits) · 2 + negative``; layouts 0 … 3 are ``0.``, ``0.0``,
    ``0.00`` and ``0.000`` before the digits, 4 has the point among them, 5 an exponent behind.
    """
    keep = np.zeros((6, 18, 2, 24), np.uint8)
    keep[:, :, 1, 0] = 255
    keep[..., 6] = 255
    for layout in range(6):
        for digits in range(1, 18):
            if layout < 4:
                keep[layout, digits, :, 1 : 3 + layout] = 255
                keep[layout, digits, :, 8 : 7 + digits] = 255
            elif layout == 4 or digits > 1:
                keep[layout, digits, :, 7 : 7 + digits] = 255
    return np.ascontiguousarray(keep.reshape(-1, 24).view("<u8").astype(np.uint64).T)


@cache
def _exponents() -> tuple[_Int, _U64]:
    """Layout, and exponent as bytes 24 …, of each place of the point from `_DECPT_MIN` on."""
    layouts, texts = [], []
    for decpt in range(_DECPT_MIN, 310):
        scientific = not -3 <= decpt <= 16
        layouts.append(_SCIENTIFIC if scientific else min(4, -decpt) if decpt < 1 else 4)
        text = f"e{decpt - 1:+03}".encode() if scientific else b""
        texts.append(int.from_bytes(text, "little"))
    return np.array(layouts, np.int64), np.array(texts, np.uint64)


def _significant(first: _U64, second: _U64) -> _Int:
    """How many of 17 digits are left without trailing zeros; the words hold digits 2 … 17."""
    first, second = first ^ _ZEROS, second ^ _ZEROS
    word = np.where(second > 0, second, first)
    # The exponent of the word as a double finds its highest byte that is not zero.
    last = ((word.astype(np.float64).view(np.int64) >> 52) - 1023) >> 3
    significant: _Int = np.maximum(last + np.where(second > 0, 10, 2), 1)
    return significant


def float_text(values: npt.NDArray[np.float64]) -> _Bytes:
    """What ``repr`` gives for each double.

    Args:
        values: ``(n,)`` float64.

    Returns:
        ``(n, FLOAT_WIDTH)`` uint8: ASCII with NUL in between, at the end too.
    """
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    exponent = (bits >> 52).astype(np.int64) & 2047
    fraction = bits & _FRACTION
    digits, decpt = _normalised(*_shortest(exponent, fraction), exponent, fraction)

    quads = _quads()
    text = np.empty((len(bits), FLOAT_WIDTH), np.uint8)
    words, halves = text.view("<u8"), text.view("<u4")
    high = digits // 10**8
    low = (digits - high * 10**8).astype(np.uint32)
    lead = high // 10**8
    high = (high - lead * 10**8).astype(np.uint32)
    for column, eight in ((2, high), (4, low)):
        upper = eight // 10**4
        halves[:, column] = quads[upper]
        halves[:, column + 1] = quads[eight - upper * 10**4]
    significant = _significant(words[:, 1], words[:, 2])

    layouts, exponents = _exponents()
    layout = layouts[decpt - _DECPT_MIN]
    words[:, 0] = _FIRST_WORD | ((lead + 48) << 48)
    words[:, 3] = exponents[decpt - _DECPT_MIN]
    _move_points(text, decpt)
    whole = np.where(layout == 4, np.maximum(significant, decpt + 1), significant)
    at = (layout * 18 + whole) * 2 + (bits >> 63).astype(np.int64)
    for column, mask in enumerate(_masks()):
        words[:, column] &= mask[at]
    _write_non_finite(words, bits, exponent)
    return text


def _normalised(digits: _U64, k: _Int, exponent: _Int, fraction: _U64) -> tuple[_U64, _Int]:
    """The digits as 17-digit integers, and the place of the point: ``0.digits · 10^decpt``."""
    short = digits < 10**16
    digits = digits * np.where(short, np.uint64(10), np.uint64(1))
    decpt = k + 17 - short
    if (exponent == 0).any():
        small = np.flatnonzero(exponent == 0)
        d, p = digits[small], decpt[small]
        while (again := (d < 10**16) & (d > 0)).any():
            d[again] *= np.uint64(10)
            p -= again
        zero = fraction[small] == 0
        digits[small], decpt[small] = np.where(zero, 0, d), np.where(zero, 1, p)
    if (exponent == 2047).any():
        decpt = np.where(exponent == 2047, 1, decpt)
    return digits, decpt


def _move_points(text: _Bytes, decpt: _Int) -> None:
    """Put the point of numbers from 10 on, written without an exponent, behind its digit."""
    for place in range(2, 17):
        rows = np.flatnonzero(decpt == place)
        if len(rows):
            text[rows, 7 : 6 + place] = text[rows, 8 : 7 + place]
            text[rows, 6 + place] = ord(".")


def _write_non_finite(words: npt.NDArray[np.uint64], bits: _U64, exponent: _Int) -> None:
    rows = np.flatnonzero(exponent == 2047)
    if len(rows):
        words[rows] = 0
        names = [int.from_bytes(name, "little") for name in (b"inf", b"-inf", b"nan")]
        kind = np.where(bits[rows] << 12 == 0, bits[rows] >> 63, np.uint64(2))
        words[rows, 0] = np.array(names, np.uint64)[kind.astype(np.int64)]


def integer_text(values: npt.NDArray[np.integer[Any]]) -> _Bytes:
    """What ``str`` gives for each integer.

    Args:
        values: ``(n,)`` of any integer dtype.

    Returns:
        ``(n, width)`` uint8: ASCII with NUL in between; the width is a multiple of 4 and fits
        the longest.
    """
    negative = values < 0
    rest = values.astype(np.uint64)  # two's complement: negating it gives the absolute value
    rest = np.where(negative, np.uint64(0) - rest, rest)
    quads = (len(str(rest.max(initial=0))) + 3) // 4
    text = np.zeros((len(values), 4 * (quads + 1)), np.uint8)
    halves = text.view("<u4")
    for column in range(quads, 0, -1):
        upper = rest // 10**4
        halves[:, column] = _quads()[rest - upper * 10**4]
        rest = upper
    digits = text[:, 4:]
    digits[:, :-1] *= np.logical_or.accumulate(digits != ord("0"), axis=1)[:, :-1]
    text[:, 0] = negative * np.uint8(ord("-"))
    return text
