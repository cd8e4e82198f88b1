"""The synthetic slide is what its header says, the same every time, and made in little memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from streamwsi.geometry import Box, Size
from streamwsi.testing.synthetic import memory_pyramid, slide_array, write_slide
from streamwsi.testing.tissue_painter import TissuePainter

# Ruifrok and Johnston 2001: optical densities of hematoxylin, eosin and DAB.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.svs"
    write_slide(path, Size(2048, 2304), seed=3)
    return path


def _hematoxylin(pixels: npt.NDArray[np.uint8]) -> float:
    """Mean hematoxylin of a picture, pixel by pixel."""
    unmix = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
    values = [float((-np.log10((p + 1.0) / 256) @ unmix)[0]) for p in pixels.reshape(-1, 3)]
    return sum(values) / len(values)


def test_tifffile_sees_an_aperio_slide(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        assert tiff.is_svs
        baseline, thumbnail = tiff.series
        assert (baseline.name, thumbnail.name) == ("Baseline", "Thumbnail")
        assert [level.shape for level in baseline.levels] == [
            (2304, 2048, 3),
            (576, 512, 3),
            (144, 128, 3),
        ]
        assert [level.keyframe.tile for level in baseline.levels] == [(256, 256)] * 3
        assert not thumbnail.keyframe.is_tiled
        assert "|AppMag = 40|MPP = 0.2500" in tiff.pages.first.description
        assert thumbnail.shape == (2304 // 4, 2048 // 4, 3)


def test_openslide_opens_it(slide: Path) -> None:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert float(opened.properties["openslide.mpp-x"]) == 0.25
        assert float(opened.properties["openslide.objective-power"]) == 40
        assert opened.level_dimensions == ((2048, 2304), (512, 576), (128, 144))
        region = np.asarray(opened.read_region((768, 512), 0, (256, 256)).convert("RGB"))
    with tifffile.TiffFile(slide) as tiff:
        whole = tiff.series[0].levels[0].asarray()
    difference = whole[512:768, 768:1024].astype(int) - region
    assert np.abs(difference).max() <= 3  # the two libraries differ in how they upsample chroma


def test_it_shows_separate_pieces_of_tissue_on_bright_glass(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        small = tiff.series[0].levels[2].asarray()
    tissue = {(int(y), int(x)) for y, x in np.argwhere(small.min(axis=2) < 215)}
    assert 0.1 < len(tissue) / (128 * 144) < 0.6
    assert np.median(small) > 235
    pieces = []
    while tissue:
        piece, edge = 0, [tissue.pop()]
        while edge:
            y, x = edge.pop()
            piece += 1
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & tissue
            tissue -= near
            edge += near
        pieces.append(piece)
    assert sum(piece > 100 for piece in pieces) >= 2


def test_hematoxylin_follows_the_nuclei() -> None:
    painter = TissuePainter(Size(8192, 8192))
    glass = painter.paint(Box(256, 256, 64, 64))
    stroma = painter.paint(Box(5632, 1024, 256, 256))[::4, ::4]
    tumour = painter.paint(Box(4864, 3840, 256, 256))[::4, ::4]
    levels = [_hematoxylin(picture) for picture in (glass, stroma, tumour)]
    assert levels[0] < 0.04
    assert levels[1] > levels[0] + 0.02
    assert levels[2] > levels[1] + 0.1


def test_tiles_fit_each_other() -> None:
    painter = TissuePainter(Size(8192, 8192))
    whole = painter.paint(Box(3840, 5120, 512, 512))
    assert whole.std() > 20  # tissue, not glass
    for y in (0, 256):
        for x in (0, 256):
            tile = painter.paint(Box(3840 + x, 5120 + y, 256, 256))
            np.testing.assert_array_equal(tile, whole[y : y + 256, x : x + 256])


def test_odd_sizes_and_other_microns(tmp_path: Path) -> None:
    path = tmp_path / "odd.svs"
    write_slide(path, Size(1000, 777), levels=2, mpp=0.5, power=20)
    with tifffile.TiffFile(path) as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
        assert "|AppMag = 20|MPP = 0.5000" in tiff.pages.first.description
    assert [level.shape for level in levels] == [(777, 1000, 3), (194, 250, 3)]
    assert levels[0].std() > 10


def test_a_seed_is_a_slide(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.svs", "b.svs", "c.svs")]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        write_slide(path, Size(640, 640), levels=2, seed=seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other


def test_memory_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    write_slide(path, Size(512, 4096))  # what is made once and kept is there from now on
    peaks = []
    for height in (1024, 4096):
        tracemalloc.start()
        write_slide(path, Size(512, height))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The taller slide has 4.7 MB more of pixels; its thumbnail is less of a reduction, too.
    assert abs(peaks[1] - peaks[0]) < 1.5e6


@pytest.mark.parametrize(
    ("dtype", "most"), [("uint8", 255), ("uint16", 65535), ("int16", 32767), ("float32", 1)]
)
def test_slide_array_uses_the_range_of_its_dtype(dtype: str, most: int) -> None:
    picture = slide_array(Size(120, 90), 4, dtype, seed=2)
    assert picture.shape == (90, 120, 4)
    assert picture.dtype == np.dtype(dtype)
    assert picture.min() >= 0
    assert 0.8 * most < picture.max() <= most
    assert abs(np.diff(picture.astype(float), axis=1)).mean() < 0.1 * most  # smooth
    np.testing.assert_array_equal(picture, slide_array(Size(120, 90), 4, dtype, seed=2))
    assert (picture != slide_array(Size(120, 90), 4, dtype, seed=3)).any()


def test_memory_pyramid_halves_by_means_of_four() -> None:
    picture = slide_array(Size(23, 14), 2, "uint16")
    pyramid = memory_pyramid(picture, 3)
    assert [level.shape for level in pyramid] == [(14, 23, 2), (7, 11, 2), (3, 5, 2)]
    assert pyramid[0] is picture
    for upper, lower in pairwise(pyramid):
        for y, x, c in np.ndindex(*lower.shape):
            four = [int(upper[2 * y + dy, 2 * x + dx, c]) for dy in (0, 1) for dx in (0, 1)]
            assert lower[y, x, c] == (sum(four) + 2) // 4
