"""Which level is read for a pixel size, and where its windows lie; no pixels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError, LevelNotFound, SlideError
from streamwsi.geometry import Size
from streamwsi.resolutions import asked, assuming, chosen_level, describe
from streamwsi.slides import (
    Level,
    Microns,
    Mpp,
    Power,
    Pyramid,
    PyramidLevel,
    Slide,
    SlideRef,
    snapped_downsample,
)


def slide(
    *downsamples: float,
    mpp: float | None = 0.25,
    power: float | None = 40,
    size: tuple[int, int] = (100_000, 80_000),
) -> Slide:
    levels = []
    for index, d in enumerate((1.0, *downsamples)):
        level = Size(int(size[0] / d), int(size[1] / d))
        down = snapped_downsample(size[0], level.width), snapped_downsample(size[1], level.height)
        levels.append(PyramidLevel(index, level, down, Size(256, 256)))
    of = Pyramid(tuple(levels), Mpp(mpp, mpp) if mpp else None)
    return Slide(SlideRef("a", "a.svs"), of, "uint8", 3, power=power)


@pytest.mark.parametrize(
    ("resolution", "level", "factor"),
    [
        (Microns(0.25), 0, 1),
        (Microns(0.5), 0, 2),
        (Microns(0.6), 0, 2.4),
        (Microns(1), 1, 1),
        (Microns(0.99), 1, 1),  # within 2 %: as it is
        (Microns(1.02), 1, 1),
        (Microns(0.97), 0, 3.88),
        (Microns(1.03), 1, 1.03),
        (Microns(2), 1, 2),
        (Microns(64), 2, 16),
        (Power(40), 0, 1),
        (Power(20), 0, 2),
        (Power(10), 1, 1),
        (Power(4), 1, 2.5),
        (Level(2), 2, 1),
    ],
)
def test_the_nearest_level_that_is_at_least_as_fine(
    resolution: Any, level: int, factor: float
) -> None:
    chosen = chosen_level(slide(4, 16), resolution, 0.02)
    assert chosen.index == level
    assert chosen.factor == pytest.approx((factor, factor))
    assert (chosen.source is None) == (factor == 1)


def test_the_tolerance_is_a_setting() -> None:
    assert chosen_level(slide(4), Microns(0.9), 0.12).source is None
    assert chosen_level(slide(4), Microns(0.99), 0).factor == pytest.approx((3.96, 3.96))
    assert chosen_level(slide(4), Microns(1), 0).source is None


def test_integer_factors_are_integers_whatever_the_rounding() -> None:
    assert chosen_level(slide(mpp=0.1), Microns(0.3), 0.02).factor == (3, 3)  # 0.3 / 0.1 < 3


def test_pixels_that_are_not_square() -> None:
    of = slide()
    of = Slide(of.ref, Pyramid(of.pyramid.levels, Mpp(0.25, 0.5)), "uint8", 3)
    level = chosen_level(of, Microns(0.5), 0.02)
    assert level.factor == (2, 1)
    assert level.size == Size(50_000, 80_000)


@settings(deadline=None, max_examples=150)
@given(
    wanted=st.floats(0.26, 8.0),
    mpp=st.floats(0.1, 0.25),
    width=st.integers(90_000, 100_000),
    second=st.floats(1.9, 8.1),
)
def test_a_fiducial_at_the_far_corner_does_not_drift(
    wanted: float, mpp: float, width: int, second: float
) -> None:
    """A level-0 pixel at the far end, taken to the raster and back, is within half a pixel."""
    of = slide(second, mpp=mpp, size=(width, 3000))
    level = chosen_level(of, Microns(wanted), 0.0)
    assert level.source is not None
    # The pixel size is what was asked for: in micrometres ...
    assert level.downsample[0] * mpp == pytest.approx(wanted, rel=1e-9)
    last = level.size.width - 1
    micrometres = (last + 0.5) * wanted
    # ... and what the filter's definition gives in level-0 pixels.
    source = ((last + 0.5) * level.factor[0]) * level.source.downsample[0]
    assert abs(micrometres / mpp - source) < 0.01
    assert abs((last + 0.5) * level.downsample[0] - source) < 0.01
    # The raster ends where the source does, less a part of a pixel.
    end = level.source.size.width / level.factor[0]
    assert 0 <= end - level.size.width + 1e-3 < 1.001


def test_a_slide_without_mpp() -> None:
    with pytest.raises(ConfigError, match=r"a\.svs: 0\.5 µm .* does not say .*--assume-mpp"):
        chosen_level(slide(mpp=None), Microns(0.5), 0.02)
    assumed = assuming(slide(mpp=None), 0.25)
    assert chosen_level(assumed, Microns(0.5), 0.02).factor == (2, 2)
    # What the slide says is better than what is assumed.
    assert assuming(slide(mpp=0.5), 0.25).pyramid.mpp == Mpp(0.5, 0.5)
    assert assuming(slide(mpp=None), None).pyramid.mpp is None


def test_a_slide_without_magnification() -> None:
    with pytest.raises(ConfigError, match=r"20× is asked for, .* magnification; ask by --mpp"):
        chosen_level(slide(power=None), Power(20), 0.02)


@pytest.mark.parametrize(
    ("resolution", "finest"), [(Microns(0.1), r"0\.25 µm"), (Power(60), "40×")]
)
def test_nothing_is_made_finer(resolution: Any, finest: str) -> None:
    with pytest.raises(ConfigError, match=f"finest level is coarser .{finest}"):
        chosen_level(slide(4), resolution, 0.02)


def test_nothing_is_left_of_a_tiny_level() -> None:
    with pytest.raises(ConfigError, match="level 0: of 5×9 pixels, 8×8 would make one"):
        chosen_level(slide(size=(5, 9)), Microns(2), 0.02)


def test_functions_of_the_slide() -> None:
    of = slide(4, 16)
    assert asked(of, lambda s: len(s.pyramid.levels) - 1) == Level(2)
    assert asked(of, lambda s: Microns(0.5)) == Microns(0.5)
    assert asked(of, 1) == Level(1)
    with pytest.raises(ConfigError, match=r"returned 'fine'; it must return"):
        asked(of, lambda s: "fine")  # type: ignore[arg-type,return-value]
    with pytest.raises(SlideError, match=r"a\.svs: .*failed: ZeroDivisionError"):
        asked(of, lambda s: 1 // 0)
    with pytest.raises(LevelNotFound):
        chosen_level(of, asked(of, 3), 0.02)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "0.5", True])
def test_impossible_resolutions_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="mpp must be a positive number"):
        Microns(wrong)
    with pytest.raises(ConfigError, match="power must be a positive number"):
        Power(wrong)


def test_the_description_is_for_the_report() -> None:
    of = slide(4)
    level = chosen_level(of, Microns(0.5), 0.02)
    assert describe(level, of, {"sampler": {"tolerance": 0.02, "stride": 3}}) == {
        "level": 0,
        "factor": [2.0, 2.0],
        "downsample": [2.0, 2.0],
        "mpp": [0.5, 0.5],
        "tolerance": 0.02,
    }
    assert describe(of.level(1), slide(4, mpp=None), {})["mpp"] is None
