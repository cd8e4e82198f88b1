"""Overlays put each cell exactly where it belongs, and leave the rest alone."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.geometry import Box
from streamwsi.pictures import ColourMap, coloured, overlay, value_range, with_legend, write_png

_RNG = np.random.default_rng(0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    box=st.builds(
        Box, st.integers(-9, 20), st.integers(-9, 20), st.integers(0, 30), st.integers(0, 30)
    ),
    opacity=st.sampled_from([0.3, 0.5, 1.0]),
    fade=st.sampled_from([0.0, 0.25]),
    holes=st.integers(0, 3),
)
def test_each_pixel_has_the_colour_of_the_cell_at_its_centre(
    rows: int, columns: int, box: Box, opacity: float, fade: float, holes: int
) -> None:
    thumbnail = _RNG.integers(0, 256, (17, 23, 3), np.uint8)
    before = thumbnail.copy()
    heatmap = _RNG.uniform(-1, 2, (rows, columns)).astype(np.float32)
    heatmap.flat[:holes] = np.nan
    expected = thumbnail.copy()
    for y in range(17):
        for x in range(23):
            if not (box.x <= x < box.right and box.y <= y < box.bottom):
                continue
            row = int((y + 0.5 - box.y) / box.height * rows)
            column = int((x + 0.5 - box.x) / box.width * columns)
            value = heatmap[row, column]
            if np.isnan(value):
                continue
            colour = coloured(np.array([value]), -0.5, 1.5)[0]
            share = opacity
            if fade:
                share *= min(1.0, max(0.0, (float(value) + 0.5) / 2 / fade))
            expected[y, x] = np.rint(before[y, x] * (1 - share) + colour * share)
    result = overlay(thumbnail, heatmap, box, -0.5, 1.5, opacity=opacity, fade=fade)
    assert np.abs(result.astype(int) - expected).max() <= (1 if fade else 0)
    np.testing.assert_array_equal(thumbnail, before)


def test_nan_and_the_outside_leave_the_thumbnail() -> None:
    thumbnail = _RNG.integers(0, 256, (8, 8, 3), np.uint8)
    heatmap = np.array([[np.nan, 1.0]], np.float32)
    result = overlay(thumbnail, heatmap, Box(2, 2, 4, 4), 0, 1, opacity=1)
    covered = np.zeros((8, 8), bool)
    covered[2:6, 4:6] = True
    np.testing.assert_array_equal(result[~covered], thumbnail[~covered])
    assert (result[covered] == [253, 231, 37]).all()


def test_without_limits_the_values_set_them() -> None:
    heatmap = np.array([[3.0, np.nan], [np.inf, -2.0]], np.float32)
    assert value_range(heatmap) == (-2.0, 3.0)
    assert value_range(np.full((2, 2), np.nan)) == (0.0, 1.0)
    thumbnail = np.zeros((4, 4, 3), np.uint8)
    box = Box(0, 0, 4, 4)
    np.testing.assert_array_equal(
        overlay(thumbnail, heatmap, box), overlay(thumbnail, heatmap, box, -2.0, 3.0)
    )


@pytest.mark.parametrize(
    ("colour_map", "first", "middle", "last"),
    [
        ("viridis", (68, 1, 84), (33, 145, 140), (253, 231, 37)),
        ("inferno", (0, 0, 4), (188, 55, 84), (252, 255, 164)),
    ],
)
def test_colour_maps_run_from_dark_to_bright(
    colour_map: ColourMap,
    first: tuple[int, int, int],
    middle: tuple[int, int, int],
    last: tuple[int, int, int],
) -> None:
    colours = coloured(np.linspace(-1, 3, 400), 0, 2, colour_map).astype(int)
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert tuple(colours[0]) == first
    assert np.abs(coloured(np.array([1.0]), 0, 2, colour_map).astype(int) - middle).max() <= 3
    assert tuple(colours[-1]) == last
    assert (np.diff(luminance) > -0.6).all()


def test_one_value_has_the_middle_colour() -> None:
    low, same, high = coloured(np.array([1.0, 2.0, 3.0]), 2, 2).tolist()
    assert (low, high) == ([68, 1, 84], [253, 231, 37])
    assert same == coloured(np.array([0.5]), 0, 1)[0].tolist()


def test_the_legend_stands_beside_the_picture() -> None:
    picture = _RNG.integers(0, 256, (64, 40, 3), np.uint8)
    result = with_legend(picture, 0, 1)
    np.testing.assert_array_equal(result[:, :40], picture)
    legend = result[:, 40:]
    bar = legend[8:56, 12]
    assert bar[0].tolist() == [253, 231, 37]
    assert bar[-1].tolist() == [68, 1, 84]
    zero, one = ["###", "#.#", "#.#", "#.#", "###"], [".#.", "##.", ".#.", ".#.", "###"]
    assert _glyph(legend, 8) == one
    assert _glyph(legend, 46) == zero


def _glyph(legend: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], top: int) -> list[str]:
    dark = legend[top : top + 10 : 2, 28:34:2, 0] == 0
    return ["".join("#" if pixel else "." for pixel in row) for row in dark]


@pytest.mark.parametrize("height", [1, 5, 12, 30])
def test_low_pictures_have_a_legend_too(height: int) -> None:
    result = with_legend(np.zeros((height, 9, 3), np.uint8), -1.5e-9, 12345.678)
    assert result.shape[0] == height
    assert result.shape[1] > 9


def test_png_round_trip(tmp_path: Path) -> None:
    picture = _RNG.integers(0, 256, (31, 40, 3), np.uint8)[:, ::2]
    path = tmp_path / "picture.png"
    write_png(path, picture)
    np.testing.assert_array_equal(imagecodecs.png_decode(path.read_bytes()), picture)
