"""The pdmcsv format: a text file per slide, one line per window, as PyDmed wrote it.

A line is ``y, x, H, W, level, kernel, downsample, C, h, w,v0, v1, …`` and LF. There is no header
and no quoting; lines come in any order, and may come twice. The separator is comma and space,
except for the bare comma before the first value.

- ``y, x``: the window's top-left corner in pixels of its level; ``H, W``: that level's size;
  ``kernel``: the window's size in pixels of the level. All of these are integers.
- ``downsample``: level-0 pixels per pixel of the level, a float.
- values: an array ``(C, h, w)`` flattened in C order. Integers have no point; a float is the
  shortest text that reads back as the same double (a float32 as the double it equals).

This module writes lines, thousands of numbers at a time (`streamwsi.decimals`);
`streamwsi.pdmcsv.reader` reads them, `streamwsi.pdmcsv.raster` makes arrays of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .decimals import FLOAT_WIDTH, float_text, integer_text

__all__ = ["HEAD", "format_rows"]

HEAD = ("y", "x", "H", "W", "level", "kernel", "downsample", "C", "h", "w")
"""The fields before the values."""

#: Numbers formatted at once: enough to hide Python, little enough for the cache.
_BLOCK = 4096


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
    return b"".join(
        _format(y[i : i + step], x[i : i + step], fixed, flat[i : i + step])
        for i in range(0, len(flat), step)
    )


def _format(
    y: npt.NDArray[Any], x: npt.NDArray[Any], fixed: bytes, values: npt.NDArray[Any]
) -> bytes:
    """Lines as rows of bytes of equal length; the NULs in them are dropped at the end."""
    n = len(values)
    body = _value_text(values.ravel())
    body[:, -2:] = np.frombuffer(b", ", np.uint8)
    body = body.reshape(n, -1)
    body[:, -2:] = np.frombuffer(b"\n\0", np.uint8)

    def repeated(text: bytes) -> npt.NDArray[np.uint8]:
        return np.broadcast_to(np.frombuffer(text, np.uint8), (n, len(text)))

    parts = [integer_text(y), repeated(b", "), integer_text(x), repeated(fixed), body]
    return np.concatenate(parts, axis=1).tobytes().translate(None, b"\0")


def _value_text(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A row of bytes for each value, the last two free."""
    if values.dtype.kind != "f":
        return np.pad(integer_text(values), ((0, 0), (0, 2)))
    text = np.empty((len(values), FLOAT_WIDTH), np.uint8)
    for i in range(0, len(values), _BLOCK):
        part = values[i : i + _BLOCK].astype(np.float64)
        text[i : i + _BLOCK] = float_text(part)
    return text
