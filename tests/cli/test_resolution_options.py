"""``streamwsi heatmap --mpp --power --assume-mpp --padding --offset``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import zarr
from typer.testing import CliRunner, Result

from streamwsi.cli import app
from streamwsi.geometry import Box, Size
from streamwsi.processors.hematoxylin import Hematoxylin
from streamwsi.resampling import Axis, resample
from streamwsi.testing.synthetic import write_slide

Array = npt.NDArray[Any]
SIZE = Size(700, 600)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 0.25 µm, 40×, and the same pixels in a file that says neither."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "known.svs", SIZE, levels=1, mpp=0.25, power=40)
    tifffile.imwrite(
        folder / "unknown.tif", base(folder), tile=(256, 256), photometric="rgb", metadata=None
    )
    return folder


def base(folder: Path) -> Array:
    with tifffile.TiffFile(folder / "known.svs") as tiff:
        pixels: Array = tiff.pages[0].asarray()
    return pixels


def heatmap(slide: Path, out: Path, *options: str) -> Result:
    arguments = ["--model", "hematoxylin", "--device", "cpu", "--kernel-size", "100", "--json"]
    arguments += ["--workers", "1", "--memory", "256MiB", "--out", str(out), *options]
    return CliRunner().invoke(app, ["heatmap", str(slide), *arguments])


def values(out: Path, name: str) -> Array:
    group: Any = zarr.open_group(str(out / f"{name}.zarr"), mode="r")
    array: Array = np.asarray(group["0"])[0]
    return array


def outcome(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(result.stdout)["slides"][0]
    return record


def expected(pixels: Array) -> Array:
    """The model on every window of 100 that fits, one after the other."""
    rows, columns = pixels.shape[0] // 100, pixels.shape[1] // 100
    found = np.zeros((rows, columns), np.float32)
    with torch.no_grad():
        for row in range(rows):
            for column in range(columns):
                window = pixels[row * 100 :, column * 100 :][:100, :100]
                batch = torch.from_numpy(window.copy()).permute(2, 0, 1)[None].float() / 255
                found[row, column] = float(Hematoxylin()(batch)[0, 0])
    return found


def halved(pixels: Array) -> Array:
    x, y = Axis(pixels.shape[1], 2.0), Axis(pixels.shape[0], 2.0)
    out = np.zeros((pixels.shape[0] // 2, pixels.shape[1] // 2, 3), np.uint8)
    resample(pixels, out, (0, 0), x, y, Box(0, 0, out.shape[1], out.shape[0]))
    return out


@pytest.mark.parametrize("option", [("--mpp", "0.5"), ("--power", "20")])
def test_windows_have_the_resolution_that_was_asked_for(
    slides: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    result = heatmap(slides / "known.svs", tmp_path, *option)
    assert result.exit_code == 0, result.output
    resolution = outcome(result)["resolution"]
    assert (resolution["level"], resolution["factor"]) == (0, [2.0, 2.0])
    assert resolution["tolerance"] == 0.02
    assert resolution["mpp"] == pytest.approx([0.5, 0.5], rel=1e-3)
    np.testing.assert_allclose(
        values(tmp_path, "known"), expected(halved(base(slides))), rtol=1e-4, atol=1e-5
    )


def test_a_level_that_is_close_enough_is_not_resampled(slides: Path, tmp_path: Path) -> None:
    result = heatmap(slides / "known.svs", tmp_path, "--mpp", "0.2525")
    assert result.exit_code == 0, result.output
    assert outcome(result)["resolution"]["factor"] == [1.0, 1.0]
    np.testing.assert_allclose(
        values(tmp_path, "known"), expected(base(slides)), rtol=1e-4, atol=1e-5
    )


def test_a_slide_that_does_not_say_its_mpp(slides: Path, tmp_path: Path) -> None:
    result = heatmap(slides / "unknown.tif", tmp_path, "--mpp", "0.5")
    assert result.exit_code == 2
    assert "unknown.tif" in result.stderr
    assert "--assume-mpp" in result.stderr
    result = heatmap(slides / "unknown.tif", tmp_path, "--mpp", "0.5", "--assume-mpp", "0.25")
    assert result.exit_code == 0, result.output
    assert outcome(result)["resolution"]["assume_mpp"] == 0.25
    group = zarr.open_group(str(tmp_path / "unknown.zarr"), mode="r")
    multiscales: Any = dict(group.attrs)["ome"]
    axes = multiscales["multiscales"][0]["axes"]
    assert axes[1]["unit"] == "micrometer"
    scale = multiscales["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == pytest.approx([1, 50, 50])


def test_padding_and_offset(slides: Path, tmp_path: Path) -> None:
    white = heatmap(slides / "known.svs", tmp_path / "a", "--padding", "same", "--stride", "90")
    assert white.exit_code == 0, white.output
    assert values(tmp_path / "a", "known").shape == (7, 8)
    mirrored = heatmap(
        slides / "known.svs", tmp_path / "b", "--padding", "same-reflect", "--stride", "90"
    )
    assert mirrored.exit_code == 0, mirrored.output
    one, other = values(tmp_path / "a", "known"), values(tmp_path / "b", "known")
    # Windows that fit are the same; the last column (630 … 730 of 700) is not.
    np.testing.assert_array_equal(one[:6, :7], other[:6, :7])
    assert (one[:, 7] != other[:, 7]).any()
    moved = heatmap(slides / "known.svs", tmp_path / "c", "--offset", "100,200")
    assert moved.exit_code == 0, moved.output
    plain = expected(base(slides))
    np.testing.assert_allclose(values(tmp_path / "c", "known"), plain[2:, 1:], rtol=1e-4, atol=1e-5)


def test_another_resolution_does_not_go_on_with_an_output(slides: Path, tmp_path: Path) -> None:
    assert heatmap(slides / "known.svs", tmp_path, "--mpp", "0.5").exit_code == 0
    result = heatmap(slides / "known.svs", tmp_path, "--mpp", "0.6")
    assert result.exit_code == 2
    assert "mpp" in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--level", "0", "--mpp", "0.5"), "exclude each other"),
        (("--mpp", "-1"), "mpp must be a positive number"),
        (("--mpp", "0.1"), "finest level is coarser"),
        (("--offset", "3"), "--offset '3' is not X,Y"),
        (("--offset", "-3,0"), "outside the level"),
    ],
)
def test_wrong_options_are_sentences(
    slides: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = heatmap(slides / "known.svs", tmp_path, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
