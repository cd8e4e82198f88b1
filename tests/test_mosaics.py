"""Mosaics: where the cells of overlapping maps lie, and when they are final."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import StageMismatch
from streamwsi.geometry import Grid, Size
from streamwsi.mosaics import Mosaic
from streamwsi.slides import Mpp, PyramidLevel


@pytest.mark.parametrize(
    ("kernel", "stride", "cells", "fitting"),
    [
        (256, 100, 64, None),
        (224, 100, 7, "96 or 128"),
        (224, 20, 7, "32"),
        (512, 33, 256, "32 or 34"),
    ],
)
def test_strides_that_are_no_whole_cells_are_refused(
    kernel: int, stride: int, cells: int, fitting: str | None
) -> None:
    grid = Grid(Size(1000, 1000), Size(kernel, kernel), Size(stride, kernel))
    if fitting is None:
        assert Mosaic(grid, 1, Size(cells, cells)).column(1) == stride * cells // kernel
        return
    with pytest.raises(StageMismatch, match=f"the nearest that fit are {fitting}$"):
        Mosaic(grid, 1, Size(cells, cells))


@st.composite
def mosaics(draw: st.DrawFn) -> Mosaic:
    def axis() -> tuple[int, int, int, int]:
        cells, unit = draw(st.integers(1, 6)), draw(st.integers(1, 3))
        stride = unit * draw(st.integers(1, cells + 1))
        return draw(st.integers(max(cells * unit, stride), 60)), cells * unit, stride, cells

    x, y = axis(), axis()
    size, kernel, stride, cells = (Size(x[i], y[i]) for i in range(4))
    grid = Grid(size, kernel, stride)
    if draw(st.booleans()):
        offset = draw(st.integers(-5, 5)), draw(st.integers(-5, 5))
        pad: Literal["white"] = "white"
        grid = Grid.covering(size, kernel, stride, offset, pad)
    panel = draw(st.integers(1, grid.columns))
    grid = Grid(size, kernel, stride, panel, grid.origin, grid.pad)
    return Mosaic(grid, 2, cells, draw(st.integers(1, 9)), draw(st.integers(1, 9)))


@settings(deadline=None)
@given(mosaics())
def test_panels_divide_the_columns_and_reach_all_that_their_windows_do(mosaic: Mosaic) -> None:
    panels = [*mosaic.panels()]
    assert panels[0].start == 0
    assert panels[-1].final == panels[-1].stop == mosaic.shape[2]
    for left, right in pairwise(panels):
        assert left.final == right.start
        assert left.final % mosaic.across == 0
    for panel in panels:
        assert 0 <= panel.start <= panel.final <= panel.stop <= panel.start + mosaic.widest
        for column in range(panel.first, panel.first + panel.columns):
            begin = max(0, mosaic.column(column))
            end = min(mosaic.shape[2], mosaic.column(column) + mosaic.window.width)
            assert begin >= end or panel.start <= begin < end <= panel.stop
    # Whoever finishes cells has seen all windows that reach them.
    for panel in panels[:-1]:
        for column in range(panel.first + panel.columns, mosaic.grid.columns):
            assert mosaic.column(column) >= min(panel.final, mosaic.shape[2])


@settings(deadline=None)
@given(mosaics())
def test_bands_are_final_when_no_later_row_reaches_them(mosaic: Mosaic) -> None:
    rows, height = mosaic.grid.rows, mosaic.window.height
    for row in range(rows):
        final = mosaic.finished(row)
        reached = (max(0, mosaic.row(later)) for later in range(row, rows))
        assert all(begin >= final * mosaic.band for begin in reached)
        # The front holds all that the row reaches, from the first band that is not final.
        end = min(mosaic.row(row) + height, mosaic.shape[1])
        assert end <= final * mosaic.band + mosaic.front
        first = mosaic.first_band(row)
        assert first * mosaic.band >= end > (first - 1) * mosaic.band or end <= 0
    assert mosaic.rows_of(mosaic.bands - 1)[1] == mosaic.shape[1]


@pytest.mark.parametrize("mpp", [None, Mpp(0.5, 0.25)])
@pytest.mark.parametrize("offset", [(0, 0), (-5, 3)])
def test_cells_lie_at_the_mean_of_their_pixels(mpp: Mpp | None, offset: tuple[int, int]) -> None:
    """Level-0 pixel i has its centre at i; a cell's is the mean of those of its pixels."""
    grid = Grid.covering(Size(50, 40), Size(8, 6), Size(4, 4), offset, "white")
    mosaic, level = (
        Mosaic(grid, 1, Size(4, 3)),
        PyramidLevel(1, Size(50, 40), (4.0, 2.0), Size(16, 16)),
    )
    transform = mosaic.transform(level, mpp)
    per_pixel = (mpp.y, mpp.x) if mpp else (1.0, 1.0)
    first = grid.box(0, 0)
    for axis, (begin, downsample) in enumerate(((first.y, 2), (first.x, 4))):
        pixels = range(begin * downsample, (begin + 2) * downsample)
        centre = sum(pixels) / len(pixels)
        skipped = -begin // 2 if begin < 0 else 0
        expected = (centre + skipped * 2 * downsample) * per_pixel[axis]
        assert transform.translation[axis] == pytest.approx(expected)
        assert transform.scale[axis] == pytest.approx(2 * downsample * per_pixel[axis])
    assert transform.unit == ("micrometer" if mpp else None)
