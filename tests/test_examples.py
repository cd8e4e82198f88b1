"""Every example runs as its docstring says, on a small slide, and writes what it promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from streamwsi.geometry import Size
    from streamwsi.testing.synthetic import write_slide

    path = tmp_path_factory.mktemp("slide") / "small.svs"
    write_slide(path, Size(1024, 768), levels=2)
    return path


def run_example(name: str, *args: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_example_is_run_here_and_is_short() -> None:
    tests = {
        node.name
        for node in ast.parse(Path(__file__).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for example in EXAMPLES.glob("*.py"):
        assert f"test_{example.stem}" in tests
        assert len(example.read_text().splitlines()) <= 60


def test_heatmap_to_zarr(slide: Path, tmp_path: Path) -> None:
    import zarr

    out = run_example("heatmap_to_zarr.py", tmp_path, slide)
    assert out.startswith("small done")
    array = zarr.open_group(str(tmp_path / "small.zarr"), mode="r")["0"]
    assert array.shape == (2, 3, 4)  # type: ignore[union-attr]


def test_heatmap_and_features(slide: Path, tmp_path: Path) -> None:
    import h5py
    import numpy as np
    import zarr

    out = run_example("heatmap_and_features.py", tmp_path, slide)
    assert out.split() == [
        "small",
        *(str(tmp_path / f"small{e}") for e in (".zarr", ".csv", ".h5")),
    ]
    with h5py.File(tmp_path / "small.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert features.shape == (12, 64)
    assert coords[5].tolist() == [256, 256]
    image = zarr.open_group(str(tmp_path / "small.zarr"), mode="r")["0"]
    logits = np.asarray(image[:]).reshape(2, 12).T  # type: ignore[index]
    lines = (tmp_path / "small.csv").read_text().splitlines()
    numbers = np.array([line.split(",")[10:12] for line in lines], dtype=np.float32)
    np.testing.assert_allclose(numbers, logits, rtol=1e-6)


def test_heatmap_to_pdmcsv(slide: Path, tmp_path: Path) -> None:
    assert run_example("heatmap_to_pdmcsv.py", tmp_path, slide) == "48 windows of 1 slides\n"
    assert len((tmp_path / "small.csv").read_text().splitlines()) == 48


def test_train_classifier(slide: Path, tmp_path: Path) -> None:
    from streamwsi.geometry import Size
    from streamwsi.testing.synthetic import write_slide

    other = tmp_path / "other.svs"
    write_slide(other, Size(768, 768), levels=1, seed=1)
    *_, last = run_example("train_classifier.py", slide, other).splitlines()
    words = last.split()  # "loss 0.69 -> 0.31 in 30 steps"
    assert float(words[3]) < 0.8 * float(words[1])


def test_own_processor(slide: Path, tmp_path: Path) -> None:
    run_example("own_processor.py", tmp_path, slide)
    first = (tmp_path / "small.csv").read_text().splitlines()[0].split(", ")
    assert first[7:9] == ["2", "1"]  # brightness and contrast per window
