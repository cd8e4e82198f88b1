"""What the cells of a level are, number by number."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from streamwsi.sinks.pyramids import (
    level_shapes,
    mean_of_cells,
    most_frequent_of_cells,
    widened,
)

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


def slow_most_frequent(labels: npt.NDArray[Any], missing: int) -> npt.NDArray[Any]:
    C, rows, columns = labels.shape
    level = np.empty((C, ceil(rows / 2), ceil(columns / 2)), labels.dtype)
    for c, i, j in np.ndindex(level.shape):
        of = labels[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel().tolist()
        counts = Counter(label for label in of if label != missing)
        level[c, i, j] = max(counts, key=lambda label: (counts[label], label), default=missing)
    return level


@given(
    arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 3))
    | arrays.arrays(np.int32, SHAPES, elements=st.integers(-2, 2)),
    st.integers(0, 1),
)
def test_labels_are_the_most_frequent_of_four(labels: npt.NDArray[Any], missing: int) -> None:
    level = most_frequent_of_cells(labels, missing)
    assert level.dtype == labels.dtype
    np.testing.assert_array_equal(level, slow_most_frequent(labels, missing))


@given(arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 3)))
def test_mirrored_labels_are_mirrored_in_smaller_levels(labels: npt.NDArray[Any]) -> None:
    """No corner is preferred: else each level would be moved against the one before."""
    labels = np.tile(labels, (1, 2, 2))  # even sizes: a mirror image has the same fours
    level = most_frequent_of_cells(labels)
    for axis in (1, 2):
        np.testing.assert_array_equal(
            most_frequent_of_cells(np.flip(labels, axis)), np.flip(level, axis)
        )


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
