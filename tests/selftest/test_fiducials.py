"""The self-test's own parts: what is painted, where it is put, and how it is found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Size
from streamwsi.samplers import SlidingWindow
from streamwsi.selftest.fiducials import WHITE, Fiducial, FiducialMask, paint
from streamwsi.selftest.measuring import Marks, lattice_marks, worst_error
from streamwsi.selftest.placing import Pitch, place
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef

SPOT = Fiducial((60.3, 41.8), (24.0, 17.0))
BASE = PyramidLevel(0, Size(120, 90), (1.0, 1.0), Size(16, 16))
COARSE = PyramidLevel(1, Size(40, 36), (3.0, 2.5), Size(16, 16))


def darkness(x: float, y: float) -> float:
    parts = 1.0
    for at, centre, radius in zip((x, y), SPOT.centre, SPOT.radius, strict=True):
        u = (at - centre) / radius
        parts *= (1 + math.cos(math.pi * u)) / 2 if abs(u) < 1 else 0
    return parts


@pytest.mark.parametrize("level", [BASE, COARSE])
def test_pixels_are_means_over_their_footprint(level: PyramidLevel) -> None:
    out = np.zeros((*reversed(level.size), 1), np.uint16)
    paint(level, Box(0, 0, *level.size), [SPOT], out)
    steps = (np.arange(40) + 0.5) / 40
    for j, i in [(12, 12), (20, 16), (21, 14), (14, 20), (1, 1), (25, 12)]:
        xs, ys = (j + steps) * level.downsample[0], (i + steps) * level.downsample[1]
        mean = np.mean([[darkness(x, y) for x in xs] for y in ys])
        assert out[i, j, 0] == pytest.approx(WHITE * (1 - mean), abs=15)
    # Tile by tile it is the same.
    part = np.zeros((11, 13, 1), np.uint16)
    for x, y in ((0, 0), (13, 7), (level.size.width - 13, level.size.height - 11)):
        paint(level, Box(x, y, 13, 11), [SPOT], part)
        np.testing.assert_array_equal(part, out[y : y + 11, x : x + 13])


def test_the_centre_of_what_is_painted_is_the_centre() -> None:
    for level in (BASE, COARSE):
        out = np.zeros((*reversed(level.size), 1), np.uint16)
        paint(level, Box(0, 0, *level.size), [SPOT], out)
        xs, ys = (
            np.arange(0.5, level.size[a], dtype=np.float64) * level.downsample[a] for a in (0, 1)
        )
        marks = lattice_marks("pixels", WHITE - out[:, :, 0].astype(float), xs, ys)
        assert worst_error(marks, [SPOT]) < 0.005


def test_errors_are_those_of_the_worst_fiducial() -> None:
    other = Fiducial((300.0, 20.0), (5.0, 5.0))
    at = [np.array([SPOT[0][i], other[0][i] + 1, other[0][i] - 0.5 * i]) for i in (0, 1)]
    marks = Marks("here", at[0], at[1], np.array([3.0, 1.0, 1.0]))
    assert worst_error(marks, [SPOT, other]) == pytest.approx(0.5)
    assert worst_error(marks, [SPOT, other, Fiducial((0.0, 900.0), (5.0, 5.0))]) == math.inf
    empty = np.empty(0)
    assert worst_error(Marks("none", empty, empty, empty), [SPOT]) == math.inf


@pytest.mark.parametrize("snapped", [False, True])
def test_fiducials_reach_into_the_corners_and_are_seen_whole(snapped: bool) -> None:
    size = Size(1000, 700)
    level = PyramidLevel(0, size, (1.0, 1.0), Size(64, 64))
    slide = Slide(SlideRef("a", "a"), Pyramid((level,)), "uint16", 1)
    plan = SlidingWindow(16, 8).plan(slide)
    spots = place(plan, Pitch((8, 8), (8.0, 8.0), False), 8, snapped)
    assert len(spots) == 5
    xs, ys = ([spot.centre[a] for spot in spots] for a in (0, 1))
    # Windows of 16 see the spot from all sides; a radius of 64 and some cells are kept free.
    for places, end in ((xs, 1000), (ys, 700)):
        assert 8 + 64 <= min(places) < 64 + 60
        assert end - 64 - 70 < max(places) <= end - 64
    assert all((x % 8 == 0 and y % 8 == 0) == snapped for x, y in zip(xs, ys, strict=True))
    with pytest.raises(ConfigError, match="no room"):
        place(plan, Pitch((8, 8), (8.0, 8.0), False), 60, snapped)


def test_the_mask_holds_what_is_around_the_fiducials() -> None:
    mask = FiducialMask((Fiducial((50.0, 50.0), (10.0, 5.0)),), (2.0, 1.0))
    lefts = np.array([0.0, 38.0, 60.0])
    shares = mask.shares(Size(100, 100), 44.0, 48.0, lefts, lefts + 4)
    np.testing.assert_allclose(shares, [0, 1, 0.5])
    assert not mask.shares(Size(100, 100), 0.0, 44.0, lefts, lefts + 4).any()
