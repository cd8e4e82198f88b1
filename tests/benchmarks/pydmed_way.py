"""What PyDmed does to write and to read a pdmcsv file, step for step, as a contender.

Written after what PyDmed 2023-06 does (``Tensor3DtoPdmcsvrow``, ``pdmcsvtoarray`` with
``DefaultWSIxyWHvaltoRasterPoints``), not with its code: Python lists of floats for each line, a
dictionary with a text such as ``"(3,14)"`` for each cell, and lists that are searched for each
cell's row and column.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["raster", "row"]


def row(y: int, x: int, fixed: list[Any], values: npt.NDArray[Any]) -> str:
    """The line of a window; `fixed` is H, W, level, kernel and downsample."""
    head = str([y, x, *fixed, *values.shape])[1:-1]
    return head + "," + str(values.flatten().tolist())[1:-1] + "\n"


def raster(path: Path) -> npt.NDArray[np.float64]:
    """The array of a file."""
    cells: dict[str, Any] = {}
    C = 0
    with open(path) as file:
        while line := file.readline():
            numbers = _numbers(line)
            C = int(numbers[7])
            xs, ys, values = _points(numbers)
            for i in range(len(xs)):
                cells[f"({math.floor(xs[i])},{math.floor(ys[i])})"] = values[i]
    places = [_place(key) for key in cells]
    columns = sorted({x for x, _ in places})
    rows = sorted({y for _, y in places})
    array = np.zeros((len(rows), len(columns), C))
    for key in cells:
        x, y = _place(key)
        array[rows.index(y), columns.index(x), :] = cells[key]
    return array


def _numbers(line: str) -> list[float]:
    fields: list[Any] = line.split(",")
    for i, field in enumerate(fields):
        if isinstance(field, str) and "None" in field:
            fields[i] = math.nan
    return [float(field) for field in fields]


def _points(numbers: list[float]) -> tuple[list[float], list[float], list[Any]]:
    """Columns, rows and values of a window's points."""
    y, x, kernel = numbers[0], numbers[1], numbers[5]
    C, h, w = (int(number) for number in numbers[7:10])
    values = np.reshape(numbers[10:], [C, h, w])
    scale = kernel / h
    xs = np.array([list(range(h)) for _ in range(h)]).flatten() + x / scale
    ys = np.array([[i for _ in range(h)] for i in range(h)]).flatten() + y / scale
    return xs.tolist(), ys.tolist(), [values[:, i, j] for i in range(h) for j in range(w)]


def _place(key: str) -> tuple[int, int]:
    x, y = key[1:-1].split(",")
    return math.floor(float(x)), math.floor(float(y))
