"""Outlines against brute force: every cell is in its region, and nothing else is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage import measure

from streamwsi.exporting.cell_outlines import CellOutlines, Outline

Mask = npt.NDArray[np.bool_]


def outlines(mask: Mask, cuts: list[int], top: int = 0) -> list[Outline]:
    """Of a mask that comes in bands."""
    tracer = CellOutlines(mask.shape[1], top)
    bands = [band for band in np.split(mask, sorted(cuts)) if len(band)]
    return [outline for band in bands for outline in tracer.add(band)] + tracer.finish()


def polygon(outline: Outline) -> shapely.Polygon:
    return shapely.Polygon(outline.exterior, outline.holes)


def rows(text: str) -> Mask:
    return np.array([[c == "#" for c in line] for line in text.split()])


NESTED = """
#########
#.......#
#.#####.#
#.#...#.#
#.#.#.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""
# Regions and holes that touch themselves and each other diagonally.
DIAGONAL = """
.##.##.
#..#..#
#.#.#.#
.#.#.#.
#.#.#.#
#..#..#
.##.##.
"""
POCKETS = """
######
#.####
##.###
###.##
####..
#####.
"""


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.lists(st.integers(1, 11), max_size=4),
)
@example(rows(NESTED), [3, 4])
@example(rows(DIAGONAL), [1, 5])
@example(rows(POCKETS), [2])
@example(np.zeros((2, 2), np.bool_), [])
@example(np.ones((3, 1), np.bool_), [1, 2])
def test_regions_hold_exactly_their_cells(mask: Mask, cuts: list[int]) -> None:
    found = outlines(mask, cuts)
    polygons = [polygon(outline) for outline in found]
    assert all(each.is_valid for each in polygons)
    labelled, count = measure.label(mask, connectivity=1, return_num=True)  # type: ignore[no-untyped-call]
    assert len(found) == count
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    for each in polygons:
        inside = shapely.contains_xy(each, x + 0.5, y + 0.5)
        (number,) = np.unique(labelled[inside])
        np.testing.assert_array_equal(inside, labelled == number)
        assert each.area == inside.sum()


@settings(deadline=None, max_examples=100)
@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.lists(st.integers(1, 11), max_size=6),
)
def test_bands_do_not_matter(mask: Mask, cuts: list[int]) -> None:
    def shapes(cuts: list[int]) -> list[str]:
        return sorted(shapely.normalize(polygon(each)).wkt for each in outlines(mask, cuts))

    assert shapes(cuts) == shapes([])


def test_rings_have_corners_only_and_turn_as_geojson_wants() -> None:
    for text in (NESTED, DIAGONAL, POCKETS):
        for outline in outlines(rows(text), [2, 3]):
            assert shapely.LinearRing(outline.exterior).is_ccw
            assert not any(shapely.LinearRing(hole).is_ccw for hole in outline.holes)
            for ring in (outline.exterior, *outline.holes):
                steps = np.roll(ring, -1, axis=0) - ring
                # One step of two is horizontal: no corner is without a turn.
                assert ((steps == 0).sum(axis=1) == 1).all()
                assert ((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0)).all()


def test_each_hole_belongs_to_the_smallest_region_around_it() -> None:
    mask = np.pad(rows(NESTED), ((0, 1), (0, 0)))  # so that all end in one band
    found = {int(polygon(o).area): len(o.holes) for o in outlines(mask, [])}
    assert found == {81 - 49: 1, 25 - 9: 1, 1: 0}


def test_rows_are_counted_from_the_first_one() -> None:
    (outline,) = outlines(rows("## .."), [1], top=7)
    assert sorted(outline.exterior.tolist()) == [[0, 7], [0, 8], [2, 7], [2, 8]]


def test_regions_come_as_soon_as_they_end() -> None:
    tracer = CellOutlines(3)
    assert tracer.add(rows("### #.#")) == []
    (ended,) = tracer.add(rows("### ... .#."))
    assert polygon(ended).area == 8
    assert len(tracer.finish()) == 1
    assert tracer.finish() == []


@pytest.mark.parametrize("columns", [1, 500])
def test_long_chains_are_joined_whichever_is_longer(columns: int) -> None:
    """A comb, whose teeth join at the bottom one by one, and its mirror image."""
    teeth = np.zeros((60, 2 * columns + 1), np.bool_)
    teeth[:, 1::2] = True
    teeth[-1] = True
    for mask in (teeth, teeth[::-1]):
        (outline,) = outlines(mask, [*range(1, 60)])
        assert polygon(outline).area == mask.sum()
