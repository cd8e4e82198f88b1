"""The filter against slow loops over fractions, and that boxes do not matter."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.geometry import Box, Size
from streamwsi.resampling import Axis, axes, resample
from streamwsi.slides import PyramidLevel

Array = npt.NDArray[Any]
factors = st.one_of(st.integers(1, 5).map(float), st.floats(1.001, 6.0))


def noise(height: int, width: int, dtype: str = "uint8") -> Array:
    most = np.iinfo(dtype).max
    drawn = np.random.default_rng(height * 1000 + width).integers(0, most, (height, width, 3))
    drawn[::7, ::5] = most
    return drawn.astype(dtype)


def part(pixels: Array, x: Axis, y: Axis, box: Box) -> Array:
    """A box, from no more of the source than it is said to need."""
    left, right = x.needs(box.x, box.right)
    top, bottom = y.needs(box.y, box.bottom)
    out = np.zeros((box.height, box.width, 3), pixels.dtype)
    resample(pixels[top:bottom, left:right], out, (left, top), x, y, box)
    return out


def triangle(line: list[int], output: int, factor: float) -> Fraction:
    """The definition, without matrices: a triangle that is cut at the ends."""
    f = Fraction(factor)
    centre = (output + Fraction(1, 2)) * f - Fraction(1, 2)
    weights = {j: max(Fraction(0), 1 - abs(j - centre) / f) for j in range(len(line))}
    total = sum(weights.values())
    return sum((w * line[j] for j, w in weights.items()), Fraction(0)) / total


@pytest.mark.parametrize("n", [2, 3, 4, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_integer_factors_give_the_mean_rounded_once(n: int, dtype: str) -> None:
    pixels = noise(9 * n + n - 1, 40 * n, dtype)
    x, y = Axis(pixels.shape[1], n), Axis(pixels.shape[0], n)
    made = part(pixels, x, y, Box(0, 0, 40, 9))
    blocks = pixels[: 9 * n].astype(np.int64).reshape(9, n, 40, n, 3).sum(axis=(1, 3))
    np.testing.assert_array_equal(made, (2 * blocks + n * n) // (2 * n * n))


@settings(deadline=None, max_examples=25)
@given(factor=st.floats(1.001, 5.0), size=st.integers(6, 40))
def test_other_factors_give_the_triangle(factor: float, size: int) -> None:
    line = noise(size, 1)
    count = int(size / factor)
    made = part(line, Axis(1, 1.0), Axis(size, factor), Box(0, 0, 1, count))
    for i in range(count if factor != int(factor) else 0):
        exact = triangle(line[:, 0, 0].tolist(), i, factor)
        # Weights are fractions of 2¹⁶: they move a value by less than 0.02.
        assert abs(int(made[i, 0, 0]) - exact) <= Fraction(52, 100)


@settings(deadline=None, max_examples=60)
@given(
    fx=factors,
    fy=factors,
    dtype=st.sampled_from(["uint8", "uint16"]),
    data=st.data(),
)
def test_boxes_are_parts_of_the_whole_to_the_bit(
    fx: float, fy: float, dtype: str, data: st.DataObject
) -> None:
    pixels = noise(150, 230, dtype)
    x, y = Axis(230, fx), Axis(150, fy)
    size = Size(int(230 / fx), int(150 / fy))
    whole = part(pixels, x, y, Box(0, 0, *size))
    left = data.draw(st.integers(0, size.width - 1))
    top = data.draw(st.integers(0, size.height - 1))
    right = data.draw(st.integers(left + 1, size.width))
    bottom = data.draw(st.integers(top + 1, size.height))
    made = part(pixels, x, y, Box.between(left, top, right, bottom))
    np.testing.assert_array_equal(made, whole[top:bottom, left:right])


@settings(deadline=None, max_examples=100)
@given(factor=factors, size=st.integers(1, 300), data=st.data())
def test_what_is_needed_is_what_has_weight(factor: float, size: int, data: st.DataObject) -> None:
    axis, count = Axis(size, factor), int(size / factor)
    if not count:
        return
    first = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(first + 1, count))
    begin, end = axis.needs(first, stop)
    assert 0 <= begin < end <= size
    assert end - begin <= axis.most_needed(stop - first)
    at, weights = axis.weights(first, stop)
    assert at == begin
    assert weights.shape == (stop - first, end - begin)
    assert (weights >= 0).all()
    assert (weights.sum(axis=1) == axis.units).all()
    for j in range(begin, end):
        touched = np.flatnonzero(weights[:, j - begin]) + first
        low, high = axis.depends(j, j + 1)
        assert all(low <= i < high for i in touched)


@settings(deadline=None, max_examples=60)
@given(factor=st.floats(1.001, 9.0), size=st.integers(50, 100_000))
def test_outputs_lie_where_they_are_said_to_lie(factor: float, size: int) -> None:
    """The centre of mass of the weights is (i + ½)·f - ½, away from the edges."""
    axis, i = Axis(size, factor), int(size / factor) // 2
    begin, weights = axis.weights(i, i + 1)
    if not 0 < begin < begin + weights.shape[1] < size:
        return
    centre = (weights[0] * np.arange(begin, begin + weights.shape[1])).sum() / weights[0].sum()
    # A triangle that is sampled at whole pixels leans by less than a fifth of one.
    assert abs(centre - ((i + 0.5) * factor - 0.5)) < 0.2 / factor


def test_flat_pixels_stay_what_they_are() -> None:
    for value in (0, 1, 254, 255):
        pixels = np.full((60, 70, 3), value, np.uint8)
        made = part(pixels, Axis(70, 2.3), Axis(60, math.pi), Box(0, 0, 30, 19))
        assert (made == value).all()


def test_fine_stripes_do_not_alias() -> None:
    """Stripes of one pixel become grey, where taking every third pixel would keep stripes."""
    pixels = np.zeros((30, 300, 3), np.uint8)
    pixels[:, ::2] = 255
    made = part(pixels, Axis(300, 2.9), Axis(30, 1.0), Box(2, 0, 98, 30))
    assert made.min() > 110
    assert made.max() < 145


def test_levels_of_the_file_have_no_axes() -> None:
    level = PyramidLevel(0, Size(4, 4), (1.0, 1.0), Size(2, 2))
    with pytest.raises(ValueError, match="the file's own"):
        axes(level)
