"""OpenSlideSource against tifffile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from streamwsi_openslide import OpenSlideSource, inspect, read_box

from streamwsi.chunks import Damage, Region
from streamwsi.errors import CannotOpen, CannotRead
from streamwsi.geometry import Box
from streamwsi.limits import Limits
from streamwsi.slides import Slide, SlideRef
from streamwsi.workers import open_workers

Pixels = npt.NDArray[Any]
ARRAYS = [
    np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    for shape in ((250, 330, 3), (125, 165, 3), (31, 41, 3))
]


@pytest.fixture
def pyramid(tmp_path: Path) -> SlideRef:
    """A plain TIFF pyramid: ÷2, and ÷8 with the rest dropped."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for i, array in enumerate(ARRAYS):
            tiff.write(array, tile=(64, 64), photometric="rgb", subfiletype=int(i > 0))
    return SlideRef.of(tmp_path / "a.tif")


async def whole(ref: SlideRef, level: int = 0) -> tuple[Slide, Pixels, tuple[Damage, ...]]:
    async with (
        open_workers(Limits(workers=1, memory="128 MiB")) as workers,
        OpenSlideSource().open(ref, workers) as reader,
    ):
        size = reader.slide.level(level).size
        regions = iter([Region(0, level, Box(0, 0, *size), 0, 1)])
        chunk = await anext(reader.bigchunks(regions, 96 * 2**20))
        return reader.slide, chunk.pixels.copy(), chunk.damage


@pytest.mark.parametrize("level", [0, 1])
async def test_levels_are_what_was_written(pyramid: SlideRef, level: int) -> None:
    slide, pixels, damage = await whole(pyramid, level)
    assert slide.properties["exact_levels"] == [0, 1]
    assert slide.level(2).downsample == (8, 8)
    assert slide.level(level).tile == (64, 64)
    assert damage == ()
    np.testing.assert_array_equal(pixels, ARRAYS[level])


def test_boxes_are_where_they_should_be(pyramid: SlideRef) -> None:
    out = np.zeros((80, 90, 3), np.uint8)
    for x, y, width, height in ((0, 0, 64, 64), (64, 64, 64, 61), (128, 0, 37, 64)):
        read_box(pyramid, 1, Box(x, y, width, height), out[:height, :width])
        expected = ARRAYS[1][y : y + height, x : x + width]
        np.testing.assert_array_equal(out[:height, :width], expected)


async def test_dicom_is_the_svs_that_it_was_made_from(slides: Path) -> None:
    folder = slides / "dicom_cmu_jpeg"
    expected = tifffile.imread(slides / "aperio_jpeg_cmu1_small_region.svs")
    for path in (folder, sorted(folder.glob("*.dcm"))[-1]):
        slide, pixels, _ = await whole(SlideRef.of(path))
        assert (slide.vendor, len(slide.pyramid.levels)) == ("dicom", 5)
        assert slide.pyramid.mpp is not None
        assert slide.pyramid.mpp.x == pytest.approx(0.499)
        np.testing.assert_array_equal(pixels, expected)


def test_a_level_that_is_interpolated_is_shifted_by_what_is_documented(slides: Path) -> None:
    """Beside bilinear interpolation, by hand, at the nearest place that OpenSlide can address."""
    ref = SlideRef.of(slides / "aperio_jpeg2000_tcga.svs")
    with tifffile.TiffFile(ref.uri) as tiff:
        level = tiff.series[0].levels[1].asarray()
    slide, box = inspect(ref), Box(1792, 1024, 256, 256)
    downsample = (4443 / 2221 + 3567 / 1783) / 2
    assert slide.properties["exact_levels"] == [0]
    expected = level.astype(float)
    for axis, start in ((0, box.y), (1, box.x)):
        shift = round(start * downsample) / downsample - start
        assert abs(shift) <= 0.5 / downsample
        first = start + int(np.floor(shift))
        near = [expected.take(range(first + i, first + i + 256), axis) for i in (0, 1)]
        expected = near[0] + (near[1] - near[0]) * (shift % 1)
    out = np.zeros((256, 256, 3), np.uint8)
    assert read_box(ref, 1, box, out) == ()
    assert np.abs(out - expected).max() <= 2


async def test_a_broken_tile_is_damage(slides: Path) -> None:
    expected = tifffile.imread(slides / "aperio_jpeg_cmu1_small_region.svs")
    _, pixels, damage = await whole(SlideRef.of(slides / "broken/jpeg_garbage_1tile.svs"))
    assert [(d.level, d.tile, d.box) for d in damage] == [(0, 65, Box(1200, 1440, 240, 240))]
    expected[1440:1680, 1200:1440] = 0
    np.testing.assert_array_equal(pixels, expected)


async def test_what_was_not_scanned_is_background(slides: Path) -> None:
    _, pixels, damage = await whole(SlideRef.of(slides / "broken/jpeg_zero_bytecount_lastcol.svs"))
    assert damage == ()
    assert (pixels[:, 2160:] == 255).all()


def test_files_that_are_no_slides(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("a letter")
    for name, words in {
        "text.dcm": "no format that OpenSlide",
        "": "no format",
        "absent": "No such file",
    }.items():
        ref = SlideRef("a", str(tmp_path / name))
        assert not OpenSlideSource().accepts(ref)
        with pytest.raises(CannotOpen, match=words):
            inspect(ref)


def test_a_file_that_goes_away(pyramid: SlideRef) -> None:
    assert OpenSlideSource().accepts(pyramid)
    inspect(pyramid)
    Path(pyramid.uri).unlink()
    with pytest.raises(CannotRead, match="No such file"):
        read_box(pyramid, 0, Box(0, 0, 64, 64), np.zeros((64, 64, 3), np.uint8))


def test_identity_follows_content(pyramid: SlideRef, tmp_path: Path) -> None:
    copy = tmp_path / "b.tif"
    data = Path(pyramid.uri).read_bytes()
    copy.write_bytes(data)
    identity = inspect(pyramid).identity
    assert inspect(SlideRef.of(copy)).identity == identity
    copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert inspect(SlideRef.of(copy)).identity != identity


def test_configuring_it_does_not_load_openslide() -> None:
    code = (
        "import sys; from streamwsi_openslide import OpenSlideSource; OpenSlideSource(); "
        "print('openslide' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
