"""Tissue on painted pictures, whose truth is known, and on a real slide."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamwsi.errors import ConfigError
from streamwsi.tissue import tissue_mask

Rgb = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 300, 400
EOSIN, HEMATOXYLIN, DAB = (215, 140, 185), (120, 110, 170), (130, 95, 70)


def glass(colour: tuple[int, int, int] = (243, 241, 238), noise: float = 1.5) -> Rgb:
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(colour, noise, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


def disk(y: int, x: int, radius: int) -> npt.NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 < radius**2)


def painted(picture: Rgb, where: npt.NDArray[np.bool_], colour: Any, strength: float = 1) -> None:
    """Lay a stain over part of the picture, with its texture."""
    rng = np.random.default_rng(1)
    texture = rng.normal(0, 6 * strength, picture.shape)
    stained = picture * (1 - strength) + np.array(colour) * strength + texture
    picture[where] = np.clip(stained, 0, 255).astype(np.uint8)[where]


def agreement(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("stain", [EOSIN, HEMATOXYLIN, DAB])
@pytest.mark.parametrize("white", [(243, 241, 238), (225, 222, 205), (254, 254, 254)])
def test_each_stain_on_glass_of_any_tint(stain: Any, white: tuple[int, int, int]) -> None:
    picture, truth = glass(white), disk(150, 200, 80)
    painted(picture, truth, stain)
    assert agreement(tissue_mask(picture), truth) > 0.93


def test_faint_tissue_beside_dense_tissue() -> None:
    picture, dense, faint = glass(), disk(150, 100, 70), disk(150, 300, 70)
    painted(picture, dense, HEMATOXYLIN)
    painted(picture, faint, EOSIN, 0.2)
    found = tissue_mask(picture)
    assert agreement(found, dense | faint) > 0.9


@pytest.mark.parametrize(
    "ink", [(30, 90, 60), (60, 160, 90), (30, 60, 160), (40, 140, 190), (190, 30, 40), (20, 20, 25)]
)
def test_ink_is_not_tissue(ink: tuple[int, int, int]) -> None:
    picture, truth = glass(), disk(180, 200, 80)
    painted(picture, truth, DAB)
    stroke = np.zeros((HEIGHT, WIDTH))
    stroke[20:40, 30:370] = 1
    # Soft edges, as a picture from afar has them.
    for axis in (0, 1):
        stroke = np.mean([np.roll(stroke, shift, axis) for shift in (-1, 0, 1)], axis=0)
    picture[:] = np.rint(picture * (1 - stroke[..., None]) + np.array(ink) * stroke[..., None])
    found = tissue_mask(picture)
    assert not found[:45].any()
    assert agreement(found, truth) > 0.9


@pytest.mark.parametrize("black", [(0, 0, 0), (25, 24, 28)])
def test_black_borders_are_not_tissue(black: tuple[int, int, int]) -> None:
    picture, truth = glass(), disk(150, 220, 80)
    painted(picture, truth, EOSIN)
    picture[:, :50] = picture[-20:] = black
    found = tissue_mask(picture)
    assert not found[:, :50].any()
    assert not found[-20:].any()
    assert agreement(found, truth) > 0.9


def test_the_shadow_of_a_border_is_not_tissue() -> None:
    picture, truth = glass(), disk(150, 240, 80)
    painted(picture, truth, EOSIN)
    fades = np.clip((np.arange(WIDTH) - 45) / 18, 0, 1)[:, None]
    picture[:] = np.rint(picture * (0.2 + 0.8 * fades))
    picture[:, :50] = (14, 12, 13)
    found = tissue_mask(picture)
    assert not found[:, :70].any()
    assert agreement(found, truth) > 0.9


def test_light_that_falls_off_is_not_tissue() -> None:
    """By a fifth in the corners: far more than the faint tissue takes."""
    picture, truth = glass(), disk(150, 200, 60) | disk(60, 330, 40)
    painted(picture, truth, EOSIN, 0.2)
    rows, columns = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    picture[:] = np.rint(picture * (1 - 0.1 * (rows**2 + columns**2))[:, :, None])
    assert agreement(tissue_mask(picture), truth) > 0.9


def test_all_of_a_slide_may_be_faint() -> None:
    picture, truth = glass(), disk(150, 120, 80) | disk(100, 300, 60)
    painted(picture, truth, EOSIN, 0.12)
    assert agreement(tissue_mask(picture), truth) > 0.9


def test_lines_without_colour_are_not_tissue_and_strands_are() -> None:
    picture, truth = glass(), disk(150, 200, 60)
    painted(picture, truth, HEMATOXYLIN)
    columns, rows = np.arange(WIDTH), np.arange(HEIGHT)
    columns = columns[:350]
    hair = np.rint(40 + 12 * np.sin(columns / 40)).astype(int)
    for thick in range(3):
        picture[hair + thick, columns] = picture[hair + thick, columns] // 10 * 6
        picture[rows, 370 + thick] = picture[rows, 370 + thick] // 10 * 7
    strand = np.zeros_like(truth)
    strand[240:245, 150:330] = True
    painted(picture, strand, EOSIN)
    found = tissue_mask(picture)
    assert not found[:60].any()
    assert not found[:, 360:].any()
    assert found[strand].mean() > 0.9
    assert agreement(found, truth | strand) > 0.85


@pytest.mark.parametrize("stain", [(200, 200, 198), (150, 150, 149)])
def test_broad_grey_tissue_is_kept(stain: Any) -> None:
    """As of immunohistochemistry without colour, whose texture is thin grey lines."""
    picture, truth = glass(), disk(150, 200, 80)
    painted(picture, truth, stain)
    picture[::6][truth[::6]] = 235
    assert agreement(tissue_mask(picture), truth) > 0.9


def test_what_was_not_scanned_is_not_the_glass() -> None:
    picture, truth = glass((238, 233, 237)), disk(200, 250, 70)
    painted(picture, truth, EOSIN)
    picture[:110] = 255
    assert agreement(tissue_mask(picture), truth) > 0.9


def test_small_holes_belong_to_the_tissue_and_large_ones_do_not() -> None:
    picture = glass()
    lumen, hole = disk(150, 160, 3), disk(150, 240, 25)
    painted(picture, disk(150, 200, 90) & ~lumen & ~hole, EOSIN)
    found = tissue_mask(picture)
    assert found[lumen].all()
    assert not found[150, 240]


def test_specks_and_hairs_are_not_tissue() -> None:
    picture = glass()
    picture[100, 50:300] = (90, 80, 70)
    picture[200:202, 200:202] = (120, 60, 60)
    assert not tissue_mask(picture).any()


def test_empty_glass_and_a_slide_full_of_tissue() -> None:
    assert not tissue_mask(glass()).any()
    assert not tissue_mask(np.full((50, 60, 3), 243, np.uint8)).any()
    assert not tissue_mask(np.zeros((50, 60, 3), np.uint8)).any()
    full = glass()
    painted(full, np.ones((HEIGHT, WIDTH), np.bool_), EOSIN)
    assert tissue_mask(full).mean() > 0.99


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (12, 9)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 240, np.uint8)
    assert tissue_mask(picture).shape == size


def test_the_real_ihc_slide(shared: Path) -> None:
    path = shared / "slides" / "aperio_style_ihc_pyramid.svs"
    if not path.is_file():
        pytest.skip("the slide is not here")
    import tifffile

    with tifffile.TiffFile(path) as file:
        found = tissue_mask(file.series[0].levels[2].asarray()[:, :, :3])
    assert 0.33 < found.mean() < 0.39
    # Both pieces whole (by eye), and the glass between and beside them.
    assert found[250:500, 300:480].mean() > 0.98
    assert found[1000:1400, 300:700].mean() > 0.98
    assert not found[620:880].any()
    assert not found[:, :100].any()


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:

    for name in [name for name in sys.modules if name.split(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r'pip install "streamwsi\[tissue\]"'):
        tissue_mask(glass())
