"""What the cells of a level are, number by number."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from streamwsi.sinks.pyramids import first_of_cells, level_shapes, mean_of_cells, widened

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def slow_mean(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    C, rows, columns = cells.shape
    level = np.empty((C, ceil(rows / 2), ceil(columns / 2)), cells.dtype)
    for c, i, j in np.ndindex(level.shape):
        of = [float(v) for v in cells[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flat]
        of = [v for v in of if not np.isnan(v)]
        level[c, i, j] = sum(of) / len(of) if of else np.nan
    return level


@given(st.data())
def test_a_float32_cell_is_the_mean_of_what_is_there(data: st.DataObject) -> None:
    cells = data.draw(arrays.arrays(np.float32, SHAPES, elements=st.floats(width=32)))
    level = mean_of_cells(cells)
    assert level.dtype == np.float32
    np.testing.assert_array_equal(level, slow_mean(cells))


@given(st.data())
def test_a_float16_cell_is_rounded_once(data: st.DataObject) -> None:
    """Sums of float16 numbers that are not too far apart are exact in float32."""
    elements = st.integers(-2048, 2048).map(lambda n: n / 64) | st.just(np.nan)
    cells = data.draw(arrays.arrays(np.float16, SHAPES, elements=elements))
    level = mean_of_cells(cells)
    assert level.dtype == np.float16
    np.testing.assert_array_equal(level, slow_mean(cells))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_do_not_overflow(dtype: Any) -> None:
    largest = np.finfo(dtype).max
    level = mean_of_cells(np.full((1, 2, 3), largest, dtype))
    np.testing.assert_array_equal(level, np.full((1, 1, 2), largest, dtype))


def test_each_nan_has_the_same_bytes() -> None:
    cells = np.array([[[np.nan, -np.nan, np.inf, 1], [-np.nan, np.nan, -np.inf, 1]]], np.float32)
    level = mean_of_cells(cells)
    assert level.tobytes() == np.full((1, 1, 2), np.nan, np.float32).tobytes()


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 4))
def test_level_k_shows_every_label_of_step_2_to_the_k(rows: int, columns: int, levels: int) -> None:
    labels = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    level = labels
    for k in range(1, levels + 1):
        level = first_of_cells(level)
        np.testing.assert_array_equal(level, labels[:: 2**k, :: 2**k])


@given(SHAPES.map(lambda shape: (shape[0], shape[1] * 40, shape[2] * 77)), st.integers(1, 300))
def test_levels_end_where_they_are_small(shape: tuple[int, ...], smallest: int) -> None:
    shapes = level_shapes(shape, smallest)
    assert shapes[0] == shape
    assert max(shapes[-1][-2:]) <= smallest
    assert all(max(longer[-2:]) > smallest for longer in shapes[:-1])
    for finer, coarser in pairwise(shapes):
        assert coarser == (finer[0], ceil(finer[1] / 2), ceil(finer[2] / 2))


@given(SHAPES, SHAPES.map(lambda shape: tuple(n * 5 for n in shape)), st.integers(0, 5000))
def test_widened_steps_are_multiples(
    step: tuple[int, ...], shape: tuple[int, ...], cells: int
) -> None:
    wide = widened(step, shape, cells)
    assert all(w % s == 0 for w, s in zip(wide, step, strict=True))
    assert prod(wide) <= max(cells, prod(step))
    for w, s, n in zip(wide, step, shape, strict=True):
        assert w < n + s
