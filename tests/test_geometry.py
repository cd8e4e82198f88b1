"""Boxes and grids against sets of pixels and slow loops."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Grid, Run, Size, tiled_extent

numbers = st.integers(-12, 12)
boxes = st.builds(Box, numbers, numbers, st.integers(0, 9), st.integers(0, 9))
sizes = st.builds(Size, st.integers(1, 30), st.integers(1, 30))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box.x, box.right) for y in range(box.y, box.bottom)}


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = draw(sizes)
    kernel = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    stride = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    return Grid(size, kernel, stride, draw(st.integers(0, 12)))


@settings(deadline=None, max_examples=100)
@given(a=boxes, b=boxes)
def test_intersection_and_contains_are_those_of_pixel_sets(a: Box, b: Box) -> None:
    common = a.intersection(b)
    assert pixels(common) == pixels(a) & pixels(b)
    assert common.empty == (not pixels(a) & pixels(b))
    if not b.empty:
        assert a.contains(b) == (pixels(b) <= pixels(a))


@settings(deadline=None, max_examples=100)
@given(box=boxes, dx=numbers, dy=numbers)
def test_shifted_moves_every_pixel(box: Box, dx: int, dy: int) -> None:
    assert pixels(box.shifted(dx, dy)) == {(x + dx, y + dy) for x, y in pixels(box)}


@settings(deadline=None, max_examples=100)
@given(size=sizes, tile=sizes, data=st.data())
def test_snapped_is_the_union_of_the_tiles_that_are_touched(
    size: Size, tile: Size, data: st.DataObject
) -> None:
    x, y = data.draw(st.integers(0, size.width - 1)), data.draw(st.integers(0, size.height - 1))
    right = data.draw(st.integers(x + 1, size.width))
    bottom = data.draw(st.integers(y + 1, size.height))
    box = Box.between(x, y, right, bottom)
    touched = {(px // tile.width, py // tile.height) for px, py in pixels(box)}
    expected = {
        (px, py)
        for px, py in pixels(Box(0, 0, *size))
        if (px // tile.width, py // tile.height) in touched
    }
    assert pixels(box.snapped(tile, size)) == expected


@settings(deadline=None, max_examples=200)
@given(length=st.integers(1, 40), tile=st.integers(1, 20), beyond=st.integers(0, 200))
def test_tiled_extent_is_the_most_over_all_places(length: int, tile: int, beyond: int) -> None:
    size = length + beyond
    spans = [
        min(size, -(-(at + length) // tile) * tile) - at // tile * tile
        for at in range(size - length + 1)
    ]
    extent = tiled_extent(length, tile, size)
    assert extent >= max(spans)
    if beyond > 3 * tile:  # room for every place, none of them cut
        assert extent == max(spans)


def test_boxes_refuse_negative_sizes() -> None:
    with pytest.raises(ValueError, match="-1×3"):
        Box(0, 0, -1, 3)
    assert Box.between(5, 0, 3, 2) == Box(5, 0, 0, 2)


def test_sizes_come_from_ints_and_pairs() -> None:
    assert Size.of(3) == Size(3, 3)
    assert Size.of((3, 4)) == Size(3, 4)
    assert Size.of([3, 4]) == Size(3, 4)  # type: ignore[arg-type]
    assert str(Size(3, 4)) == "3×4"


@pytest.mark.parametrize("wrong", [1.5, (1, 2.5), (1, 2, 3), (1,), "ab", None])
def test_what_is_no_size_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="is not a size: give an integer, or two"):
        Size.of(wrong)


@settings(deadline=None, max_examples=100)
@given(grid=grids())
def test_windows_are_those_that_a_loop_finds(grid: Grid) -> None:
    every_x = range(0, grid.size.width, grid.stride.width)
    columns = [x for x in every_x if x + grid.kernel.width <= grid.size.width]
    every_y = range(0, grid.size.height, grid.stride.height)
    rows = [y for y in every_y if y + grid.kernel.height <= grid.size.height]
    assert (grid.columns, grid.rows, grid.count) == (
        len(columns),
        len(rows),
        len(rows) * len(columns),
    )
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            assert grid.box(row, column) == Box(x, y, *grid.kernel)


@settings(deadline=None, max_examples=30)
@given(grid=grids())
def test_the_output_has_the_shape_that_conv2d_has(grid: Grid) -> None:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        out = torch.nn.Conv2d(1, 1, grid.kernel[::-1], grid.stride[::-1])(
            torch.zeros(1, 1, grid.size.height, grid.size.width)
        )
    assert tuple(out.shape[2:]) == (grid.rows, grid.columns)


def in_order(grid: Grid) -> list[tuple[int, int]]:
    """The cells by panel, then row, then column."""
    panels = range(0, grid.columns, grid.panel)
    return [
        (row, column)
        for first in panels
        for row in range(grid.rows)
        for column in range(first, min(first + grid.panel, grid.columns))
    ]


@settings(deadline=None, max_examples=150)
@given(grid=grids())
def test_numbers_and_cells_are_the_same_thing(grid: Grid) -> None:
    cells = in_order(grid)
    assert [grid.cell(i) for i in range(grid.count)] == cells
    assert [grid.index(*cell) for cell in cells] == [*range(grid.count)]


@settings(deadline=None, max_examples=150)
@given(grid=grids(), data=st.data())
def test_runs_are_the_windows_row_by_row(grid: Grid, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, grid.count))
    stop = data.draw(st.integers(start, grid.count))
    runs = [*grid.runs(start, stop)]
    cells = [(run.row, run.column + i) for run in runs for i in range(run.count)]
    assert cells == in_order(grid)[start:stop]
    following = start
    for run in runs:
        assert run.first == following
        assert run.count > 0
        following += run.count
    # As few as possible: each run ends at the edge of its panel or at the end.
    for run in runs[:-1]:
        first, columns = grid.panel_at(run.column)
        assert run.column + run.count == first + columns


@settings(deadline=None, max_examples=100)
@given(grid=grids(), data=st.data())
def test_cover_is_the_box_around_its_windows(grid: Grid, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, grid.rows - 1))
    column = data.draw(st.integers(0, grid.columns - 1))
    rows = data.draw(st.integers(1, grid.rows - row))
    columns = data.draw(st.integers(1, grid.columns - column))
    covered = [
        grid.box(r, c) for r in range(row, row + rows) for c in range(column, column + columns)
    ]
    assert grid.cover(row, column, rows, columns) == Box.between(
        min(b.x for b in covered),
        min(b.y for b in covered),
        max(b.right for b in covered),
        max(b.bottom for b in covered),
    )


def test_one_panel_is_row_major() -> None:
    grid = Grid(Size(10, 6), Size(2, 2), Size(2, 2))
    assert [grid.cell(i) for i in (0, 4, 5, 14)] == [(0, 0), (0, 4), (1, 0), (2, 4)]
    assert [*grid.runs(3, 11)] == [Run(3, 0, 3, 2), Run(5, 1, 0, 5), Run(10, 2, 0, 1)]


@pytest.mark.parametrize(
    ("kernel", "stride", "says"),
    [
        (Size(0, 1), Size(1, 1), "kernel size 0×1 must be at least 1"),
        (Size(1, 1), Size(1, -2), "stride 1×-2 must be at least 1"),
        (Size(11, 1), Size(1, 1), "kernel size 11×1 is beyond the level's size 10×6"),
        (Size(1, 1), Size(1, 7), "stride 1×7 is beyond the level's size 10×6"),
    ],
)
def test_impossible_grids_are_refused(kernel: Size, stride: Size, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Grid(Size(10, 6), kernel, stride)
