"""The pdmcsv format: a text file per slide, one line per window, as PyDmed wrote it.

A line is ``y, x, H, W, level, kernel, downsample, C, h, w,v0, v1, …`` and LF. There is no header
and no quoting; lines come in any order, and may come twice. The separator is comma and space,
except for the bare comma before the first value.

- ``y, x``: the window's top-left corner in pixels of its level; ``H, W``: that level's size;
  ``kernel``: the window's size in pixels of the level. All of these are integers.
- ``downsample``: level-0 pixels per pixel of the level, a float.
- values: an array ``(C, h, w)`` flattened in C order. Integers have no point; a float is the
  shortest text that reads back as the same double (a float32 as the double it equals).

This module writes lines, thousands of numbers at a time: a JSON library (orjson) has the digits
of ``repr``, at a tenth of its time. `streamwsi.pdmcsv.reader` reads lines,
`streamwsi.pdmcsv.raster` makes arrays of them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

__all__ = ["HEAD", "format_rows"]

HEAD = ("y", "x", "H", "W", "level", "kernel", "downsample", "C", "h", "w")
"""The fields before the values."""

#: Values formatted at once: enough to hide Python, little enough for the cache.
_BLOCK = 1 << 12


def format_rows(
    y: npt.NDArray[np.integer[Any]],
    x: npt.NDArray[np.integer[Any]],
    H: int,
    W: int,
    level: int,
    kernel: int,
    downsample: float,
    values: npt.NDArray[Any],
) -> bytes:
    """The lines of n windows.

    Args:
        y: ``(n,)`` ints: top of each window in level pixels.
        x: ``(n,)`` ints: left of each window in level pixels.
        H: height of the level in pixels.
        W: width of the level in pixels.
        level: index of the level.
        kernel: size of the windows in level pixels.
        downsample: level-0 pixels per level pixel.
        values: ``(n, C, h, w)``, of any integer or floating dtype.

    Returns:
        One line per window, each ended by LF, ASCII.

    Raises:
        ValueError: the shapes do not fit each other, there are windows without values, or the
            values are not real numbers.
    """
    if values.ndim != 4 or 0 in values.shape[1:] or not len(values) == len(y) == len(x):
        raise ValueError(
            f"{len(y)} y and {len(x)} x need values (n, C, h, w) without empty axes, not "
            f"{values.shape}"
        )
    if values.dtype.kind not in "biuf":
        raise ValueError(f"pdmcsv holds real numbers, not {values.dtype}")
    shape = ", ".join(map(str, values.shape[1:]))
    fixed = f", {H}, {W}, {level}, {kernel}, {float(downsample)!r}, {shape},".encode()
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    step = max(1, _BLOCK // flat.shape[1])
    parts = [slice(i, i + step) for i in range(0, len(flat), step)]
    return b"".join(_lines(y[part], x[part], fixed, flat[part]) for part in parts)


def _lines(
    y: npt.NDArray[Any], x: npt.NDArray[Any], fixed: bytes, values: npt.NDArray[Any]
) -> bytes:
    parts = [b"", b", ", b"", fixed, b"", b"\n"] * len(values)
    parts[0::6] = _texts(y[:, None])
    parts[2::6] = _texts(x[:, None])
    parts[4::6] = _texts(values)
    return b"".join(parts)


def _texts(table: npt.NDArray[Any]) -> list[bytes]:
    """The numbers of each row of ``(n, m)``, separated by comma and space."""
    one = table.shape[1] == 1
    numbers = table.ravel() if one else table
    if numbers.dtype.kind == "f":
        text = _float_json(numbers.astype(np.float64))
    else:
        text = _json(numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.uint64))
    if one:
        return text[1:-1].split(b",")
    return text[2:-2].replace(b",", b", ").split(b"], [")


def _float_json(numbers: npt.NDArray[np.float64]) -> bytes:
    """An array as JSON, but each number as ``repr`` writes it; the array is overwritten."""
    size = np.abs(numbers)
    others = ~((size < 1e-9) | (size >= 1e-4) & (size < 1e16))
    if not others.any():
        return _json(numbers)
    some = numbers[others]
    # repr gives exponents two digits, and that is all that differs from 1e-9 to below 1e-5.
    texts = _json(some)[1:-1].replace(b"e-", b"e-0").split(b",")
    for i in np.flatnonzero(~(size[others] < 1e-5)).tolist():
        texts[i] = repr(float(some[i])).encode()
    numbers[others] = np.nan
    first, *rest = _json(numbers).split(b"null")
    return b"".join([first, *itertools.chain.from_iterable(zip(texts, rest, strict=True))])


def _json(table: npt.NDArray[Any]) -> bytes:
    return orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)
