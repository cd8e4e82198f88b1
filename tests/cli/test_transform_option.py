"""``streamwsi heatmap --transform module:function``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import zarr

from streamwsi.geometry import Size
from streamwsi.processors.hematoxylin import Hematoxylin
from streamwsi.testing.synthetic import write_slide

SIZE = Size(700, 600)
TRANSFORMS = """
import numpy as np
def darker(window):
    return window // 2
def fails(window):
    raise ZeroDivisionError("no light")
number = 7
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide and a module of transforms, for the user to stand in."""
    folder = tmp_path_factory.mktemp("here")
    write_slide(folder / "small.svs", SIZE, levels=1)
    (folder / "my_transforms.py").write_text(TRANSFORMS)
    return folder


def heatmap(folder: Path, out: Path, transform: str | None) -> subprocess.CompletedProcess[str]:
    options = () if transform is None else ("--transform", transform)
    return subprocess.run(
        [
            *(sys.executable, "-m", "streamwsi", "heatmap", "small.svs", "--model", "hematoxylin"),
            *("--out", str(out), "--kernel-size", "200", "--stride", "100", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def values(out: Path) -> npt.NDArray[np.float32]:
    group = zarr.open_group(str(out / "small.zarr"), mode="r")
    array: npt.NDArray[np.float32] = np.asarray(group["0"][0])  # type: ignore[index]
    return array


def reference(slide: Path) -> npt.NDArray[np.float32]:
    """The model called on one transformed crop after the other."""
    pixels, model = tifffile.imread(slide), Hematoxylin().eval()
    expected = np.zeros((5, 6), np.float32)
    for row in range(5):
        for column in range(6):
            y, x = row * 100, column * 100
            crop = (pixels[y : y + 200, x : x + 200] // 2).astype(np.float32) / 255
            with torch.inference_mode():
                expected[row, column] = model(torch.from_numpy(crop).permute(2, 0, 1)[None])[0, 0]
    return expected


def test_the_model_gets_what_the_function_returns(folder: Path, tmp_path: Path) -> None:
    done = heatmap(folder, tmp_path, "my_transforms:darker")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(values(tmp_path), reference(folder / "small.svs"), atol=1e-5)
    # The function is part of the plan: without it, the output is another one's.
    without = heatmap(folder, tmp_path, None)
    assert without.returncode == 2
    assert "transforms" in without.stderr


@pytest.mark.parametrize(
    ("transform", "code", "message"),
    [
        ("my_transforms", 2, "does not name a function: write package.module:function"),
        ("my_transforms:lighter", 2, "has no attribute 'lighter'"),
        ("no_such_module:f", 2, "there is no module no_such_module"),
        ("my_transforms:number", 2, "is no function but a int"),
        ("my_transforms:fails", 1, "fails failed on window 0 (200×200 at x 0, y 0 of level 0)"),
    ],
)
def test_a_wrong_function_is_one_sentence(
    transform: str, code: int, message: str, folder: Path, tmp_path: Path
) -> None:
    done = heatmap(folder, tmp_path, transform)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: --transform" if code == 2 else "error: transform")
