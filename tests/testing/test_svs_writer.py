"""Files in Aperio's manner hold the pixels that the function gave, on every level."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.geometry import Box, Size
from streamwsi.testing.svs_writer import area_averaged, write_svs


def _waves(box: Box) -> npt.NDArray[np.uint8]:
    """A picture that JPEG keeps well, being grey and smooth, and that no shift leaves alike."""
    x = np.arange(box.x, box.right)[None, :]
    y = np.arange(box.y, box.bottom)[:, None]
    grey = 128 + 60 * np.cos(x / 14) + 50 * np.cos(y / 11)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(9, 400),
    height=st.integers(9, 400),
    tile=st.sampled_from([32, 48, 64]),
    factor=st.sampled_from([2, 4]),
    levels=st.integers(1, 4),
)
def test_each_level_is_the_mean_of_the_one_before(
    width: int, height: int, tile: int, factor: int, levels: int
) -> None:
    while min(width, height) < factor ** (levels - 1):
        levels -= 1
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_svs(
            path, Size(width, height), _waves, tile=tile, factor=factor, levels=levels, quality=97
        )
        with tifffile.TiffFile(path) as tiff:
            stored = [level.asarray() for level in tiff.series[0].levels]
            thumbnail = tiff.pages[1].asarray()
        assert [p.name for p in Path(folder).iterdir()] == ["slide.svs"]
    expected = _waves(Box(0, 0, width, height))
    _assert_close(thumbnail, expected)
    assert len(stored) == levels
    for level in stored:
        _assert_close(level, expected)
        expected = area_averaged(expected, factor)


def _assert_close(stored: npt.NDArray[Any], expected: npt.NDArray[np.uint8]) -> None:
    assert stored.shape == expected.shape
    assert np.abs(stored.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("factor", [2, 3, 7])
def test_area_averaged_is_the_mean_of_squares(dtype: str, factor: int) -> None:
    rng = np.random.default_rng(0)
    picture = (rng.uniform(-1 if dtype == "int16" else 0, 1, (17, 22, 3)) * 255).astype(dtype)
    result = area_averaged(picture, factor)
    assert result.shape == (17 // factor, 22 // factor, 3)
    assert result.dtype == picture.dtype
    for y, x, c in np.ndindex(*result.shape):
        square = picture[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor, c]
        mean = float(square.astype(np.float64).mean())
        wanted = mean if dtype == "float32" else np.floor(mean + 0.5)
        assert result[y, x, c] == pytest.approx(wanted, rel=1e-6)


def test_the_largest_values_do_not_overflow() -> None:
    picture = np.full((512, 512, 1), 65535, np.uint16)
    assert area_averaged(picture, 256).tolist() == [[[65535], [65535]], [[65535], [65535]]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tile": 100}, "tiles of 100 pixels"),
        ({"tile": 0}, "tiles of 0 pixels"),
        ({"factor": 3}, "levels 3 times apart"),
        ({"factor": 1}, "levels 1 times apart"),
        ({"levels": 0}, "0 levels"),
        ({"levels": 5}, "100×100 pixels cannot have 5 levels"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    tmp_path: Path, arguments: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        write_svs(tmp_path / "slide.svs", Size(100, 100), _waves, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    path.write_bytes(b"old")

    def paint(box: Box) -> npt.NDArray[np.uint8]:
        if box.y:
            raise RuntimeError("out of paint")
        return _waves(box)

    with pytest.raises(RuntimeError, match="out of paint"):
        write_svs(path, Size(700, 700), paint)
    assert [p.name for p in tmp_path.iterdir()] == ["slide.svs"]
    assert path.read_bytes() == b"old"
