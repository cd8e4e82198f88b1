"""Slides as values: ids that are safe file names, snapped downsamples, levels."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError, LevelNotFound
from streamwsi.geometry import Size
from streamwsi.slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef, snapped_downsample


@pytest.mark.parametrize(
    ("path", "id_"),
    [
        ("/data/CMU-1.svs", "CMU-1"),
        ("a b (2).ndpi", "a b (2)"),
        ("tumor.ome.tiff", "tumor"),
        ("tumor.OME.TIF", "tumor"),
        ("x.ome.zarr", "x"),
        ("x.ome.zarr/", "x"),
        ("x.y.zarr", "x.y"),
        ("weird:*?.tif", "weird___"),
        (".hidden.tif", "hidden"),
        ("..", "slide"),
        ("/", "slide"),
        ("Größe.svs", "Größe"),
    ],
)
def test_a_path_names_its_outputs(path: str, id_: str) -> None:
    assert SlideRef.of(path).id == id_


def test_a_reference_keeps_its_path() -> None:
    assert SlideRef.of("/data/a.svs").uri == "/data/a.svs"
    assert SlideRef.of(Path("/data/a.svs")) == SlideRef("a", "/data/a.svs")
    ref = SlideRef("b", "elsewhere")
    assert SlideRef.of(ref) is ref


@settings(deadline=None, max_examples=100)
@given(name=st.text(min_size=1))
def test_no_path_makes_an_id_that_leaves_the_folder(name: str) -> None:
    id_ = SlideRef.of(name).id
    assert Path("out", id_).parent == Path("out")
    assert "\0" not in id_
    assert not id_.startswith(".")


@pytest.mark.parametrize("id_", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b"])
def test_an_id_that_is_no_file_name_is_refused(id_: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a slide id"):
        SlideRef(id_, "x")


@settings(deadline=None, max_examples=200)
@given(base=st.integers(64, 200_000), n=st.integers(1, 64), up=st.booleans())
def test_a_level_made_by_an_integer_has_that_integer(base: int, n: int, up: bool) -> None:
    level = -(-base // n) if up else base // n
    if round(base / level) == n:  # several integers give the same size near the top
        assert snapped_downsample(base, level) == n


@pytest.mark.parametrize(
    ("base", "level", "downsample"), [(100, 100, 1.0), (100, 30, 100 / 30), (100, 67, 100 / 67)]
)
def test_other_levels_have_the_ratio(base: int, level: int, downsample: float) -> None:
    assert snapped_downsample(base, level) == downsample


def test_a_level_is_never_finer_than_the_base() -> None:
    assert snapped_downsample(100, 130) == 1.0


def level(index: int, width: int = 8, downsample: float = 1.0) -> PyramidLevel:
    return PyramidLevel(index, Size(width, 4), (downsample, downsample), Size(4, 4))


def slide(levels: int) -> Slide:
    pyramid = Pyramid(tuple(level(i, downsample=2.0**i) for i in range(levels)), Mpp(0.25, 0.25))
    return Slide(SlideRef("a", "a.svs"), pyramid, "uint8", 3, properties={"scanner": "x"})


def test_a_slide_pickles() -> None:
    assert pickle.loads(pickle.dumps(slide(2))) == slide(2)


def test_levels_are_found_by_index() -> None:
    assert slide(3).level(2).index == 2
    with pytest.raises(LevelNotFound, match=r"a\.svs: there is no level 3; .* levels 0 to 2"):
        slide(3).level(3)
    with pytest.raises(LevelNotFound, match="one level, 0"):
        slide(1).level(-1)


def test_impossible_values_are_refused() -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mpp must be positive"):
            Mpp(0.5, value)
    with pytest.raises(ValueError, match="size 0×4"):
        level(0, 0)
    with pytest.raises(ValueError, match="below 1"):
        level(0, downsample=0.5)
    for levels in ((), (level(1),), (level(0), level(0))):
        with pytest.raises(ValueError, match="numbered from 0"):
            Pyramid(levels)
