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

#: Lines, or numbers where these are more, that are formatted at once.
_BLOCK = 1 << 14
#: From here to there, and for 0, JSON has the very text of ``repr``.
_SMALL, _LARGE = 1e-4, 1e16


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
    corners = np.column_stack([y.astype(np.int64), x.astype(np.int64)])
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    step = max(1, _BLOCK // flat.shape[1])
    return b"".join(
        _lines(corners[i : i + step], fixed, flat[i : i + step]) for i in range(0, len(flat), step)
    )


def _lines(corners: npt.NDArray[Any], fixed: bytes, values: npt.NDArray[Any]) -> bytes:
    lines = map(fixed.join, zip(_texts(corners), _texts(values), strict=True))
    return b"\n".join([*lines, b""])


def _texts(table: npt.NDArray[Any]) -> list[bytes]:
    """The numbers of each row of ``(n, m)``, separated by comma and space."""
    if table.dtype.kind == "f":
        text = _float_json(table.astype(np.float64))
    else:
        text = _json(table.astype(np.int64 if table.dtype.kind == "i" else np.uint64))
    return text[2:-2].replace(b",", b", ").split(b"], [")


def _float_json(numbers: npt.NDArray[np.float64]) -> bytes:
    """Rows of numbers, each as ``repr`` writes it; the array is overwritten."""
    size = np.abs(numbers)
    others = ~(((size >= _SMALL) | (size == 0)) & (size < _LARGE))
    if not others.any():
        return _json(numbers)
    texts = [repr(number).encode() for number in numbers[others].tolist()]
    numbers[others] = np.nan
    first, *rest = _json(numbers).split(b"null")
    return b"".join([first, *itertools.chain.from_iterable(zip(texts, rest, strict=True))])


def _json(table: npt.NDArray[Any]) -> bytes:
    return orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)
