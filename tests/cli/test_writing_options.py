"""``--sink``, ``--output`` and ``--feature-dtype``: what is written of a model's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.cli.writing import Writing
from streamwsi.errors import ConfigError
from streamwsi.geometry import Size
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, HeatmapZarr, Pdmcsv, Select, Tee
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import write_slide

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        means = x.mean((2, 3))
        return {"logits": means[:, :2], "features": torch.cat([means, means * means], 1)}

class Pair(Net):
    def forward(self, x):
        return tuple(super().forward(x).values())
"""
OUT = Path("out")


@pytest.mark.parametrize(
    ("words", "output", "dtype", "sink", "chosen"),
    [
        (["zarr"], None, None, HeatmapZarr("out"), None),
        (["pdmcsv"], "logits", None, Pdmcsv("out"), "logits"),
        (["features-hdf5"], "1", None, FeaturesHdf5("out"), 1),
        (["features-zarr=f"], None, "float16", FeaturesZarr("out", "float16"), "f"),
        (["zarr", "pdmcsv"], None, None, Tee(HeatmapZarr("out"), Pdmcsv("out")), None),
        (["zarr=0", "pdmcsv"], "0", None, Tee(HeatmapZarr("out"), Pdmcsv("out")), 0),
        (
            ["zarr", "features-hdf5=f", "pdmcsv"],
            "2",
            "float16",
            Tee(
                Select(HeatmapZarr("out"), "2"),
                Select(FeaturesHdf5("out", "float16"), "f"),
                Select(Pdmcsv("out"), "2"),
            ),
            (2, "f"),
        ),
    ],
)
def test_what_they_mean(words: Any, output: Any, dtype: Any, sink: Any, chosen: Any) -> None:
    assert Writing.read(words, output, OUT, feature_dtype=dtype) == Writing(sink, chosen)


@pytest.mark.parametrize(
    ("words", "output", "dtype", "message"),
    [
        (["h5"], None, None, "--sink 'h5' is none of zarr, pdmcsv, features-zarr, features-hdf5"),
        (["zarr="], None, None, "--sink 'zarr=' is none of"),
        (["zarr", "zarr=a"], None, None, "--sink names a kind twice"),
        (["zarr=a", "pdmcsv"], None, None, r"--sink pdmcsv does not say .* \(pdmcsv=NAME\), or"),
        (["zarr", "pdmcsv"], None, "float16", "--feature-dtype is for the sinks features-zarr"),
        (["features-zarr"], None, "float8", "must be float32 or float16, not 'float8'"),
    ],
)
def test_what_means_nothing(words: Any, output: Any, dtype: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Writing.read(words, output, OUT, feature_dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with a slide and a module of models."""
    write_slide(tmp_path / "slide.svs", Size(700, 500), levels=1)
    (tmp_path / "writing_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def heatmap(*args: str) -> Any:
    command = ["heatmap", "slide.svs", "--model", "writing_models:Net", "--workers", "1"]
    return CliRunner().invoke(app, [*command, *args])


def test_one_pass_feeds_them_all(folder: Path) -> None:
    sinks = ("zarr", "features-hdf5=features", "pdmcsv", "features-zarr=features")
    options = [word for sink in sinks for word in ("--sink", sink)]
    done = heatmap("--out", "tee", "--output", "logits", "--json", *options)
    assert done.exit_code == 0, done.output
    (outcome,) = json.loads(done.stdout)["slides"]
    assert [Path(path).name for path in outcome["outputs"]] == [
        "slide.zarr",
        "slide.h5",
        "slide.csv",
        "slide.features.zarr",
    ]
    # Each is what its own command writes.
    for kind, _, output in (sink.partition("=") for sink in sinks):
        done = heatmap("--out", "alone", "--sink", kind, "--output", output or "logits")
        assert done.exit_code == 0, done.output
    assert tree(folder / "tee") == tree(folder / "alone")
    image: Any = zarr.open_group(folder / "tee" / "slide.zarr", mode="r")["0"]
    with h5py.File(folder / "tee" / "slide.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
    assert coords.tolist() == [[0, 0], [256, 0]]
    np.testing.assert_array_equal(image[:].reshape(2, -1).T, features[:, :2])
    np.testing.assert_allclose(features[:, 3:], features[:, :3] ** 2, rtol=1e-6)


def test_a_choice_that_was_forgotten_can_be_made(folder: Path) -> None:
    done = heatmap("--out", "out", "--sink", "features-hdf5")
    assert done.exit_code == 2
    shapes = "logits (2×2) and features (2×6)"
    assert f"the model returns a dict of {shapes}; choose one by --output" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = heatmap("--out", "out", "--sink", "features-hdf5", "--output", "features")
    assert done.exit_code == 0, done.output


def test_outputs_by_number(folder: Path) -> None:
    options = ("--model", "writing_models:Pair", "--sink", "features-hdf5", "--output", "1")
    done = heatmap("--out", "out", *options)
    assert done.exit_code == 0, done.output
    with h5py.File(folder / "out" / "slide.h5") as file:
        assert file["features"].shape == (2, 6)


def test_a_halo_is_cropped_unless_another_blend_is_asked_for() -> None:
    for blend, expected in ((None, "crop"), ("mean", "mean")):
        writing = Writing.read(["zarr"], None, OUT, blend=blend, halo=True)
        assert writing.sink == HeatmapZarr(str(OUT), blend=expected)  # type: ignore[arg-type]
    assert Writing.read(["zarr"], None, OUT).sink == HeatmapZarr(str(OUT))


@pytest.mark.parametrize("option", ["blend", "dtype"])
def test_options_of_heatmaps_need_one(option: str) -> None:
    settings: dict[str, Any] = {option: "max" if option == "blend" else "labels"}
    with pytest.raises(ConfigError, match=f"--{option} is for the sink zarr"):
        Writing.read(["pdmcsv"], None, OUT, **settings)


def test_names_colours_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(tmp_path / "a.svs", Size(600, 500), levels=1)
    (tmp_path / "shown_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)

    def heatmap(out: str, *options: str) -> Any:
        words = ["heatmap", "a.svs", "--model", "shown_models:Net", "--output", "logits"]
        words += ["--kernel-size", "64", "--out", out, "--workers", "1", *options]
        return CliRunner().invoke(app, words)

    done = heatmap(
        "out", "--channels", "tumour, stroma", "--colors", "FF0000,00FF00", "--chunk", "4"
    )
    assert done.exit_code == 0, done.stderr
    group: Any = zarr.open_group("out/a.zarr", mode="r")
    channels = group.attrs["ome"]["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in channels] == [
        ("tumour", "FF0000"),
        ("stroma", "00FF00"),
    ]
    assert group["0"].chunks[-2:] == (4, 4)
    for options, says in (
        (("--colors", "red,green"), "six hexadecimal digits"),
        (("--colors", "FF0000"), "1 colours were given for 2 channels"),
        (("--channels", "a,b,c"), "3"),
        (("--chunk", "0"), "chunk must be at least 1"),
        (("--sink", "pdmcsv", "--chunk", "4"), "--chunk is for the sink zarr"),
        (("--sink", "pdmcsv", "--colors", "FF0000,00FF00"), "--colors is for the sink zarr"),
    ):
        done = heatmap("wrong", *options)
        assert done.exit_code == 2, (options, done.stderr)
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert not Path("wrong").exists(), options


TROUBLE = """
import sys
import torch
from torch import nn

class Noisy(nn.Module):
    def forward(self, x):
        print("noise")
        return x.mean((2, 3))

class Leaving(nn.Module):
    def forward(self, x):
        sys.exit(0)

class Maps(nn.Module):
    def forward(self, x):
        return x[:, :, ::4, ::4]
"""


def test_models_that_make_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(tmp_path / "a.svs", Size(600, 500), levels=1)
    (tmp_path / "troublesome_models.py").write_text(TROUBLE)
    monkeypatch.chdir(tmp_path)

    def heatmap(model: str, *options: str) -> Any:
        words = ["heatmap", "a.svs", "--model", f"troublesome_models:{model}", "--workers", "1"]
        words += ["--kernel-size", "64", "--out", f"out-{model}", *options]
        return CliRunner().invoke(app, words)

    noisy = heatmap("Noisy", "--json")
    assert json.loads(noisy.stdout)["slides"][0]["status"] == "done"
    assert "noise" in noisy.stderr
    leaving = heatmap("Leaving")
    assert leaving.exit_code == 1
    assert leaving.stderr.startswith("error: a.svs: the model failed on input of shape")
    assert "it asked the program to exit" in leaving.stderr
    maps = heatmap("Maps", "--sink", "zarr", "--sink", "features-zarr")
    assert maps.exit_code == 2
    assert "features are one vector per window" in maps.stderr
    assert not Path("out-Maps").exists()
    mean = heatmap("Noisy", "--mean", "0.5,0.5")
    assert mean.exit_code == 2
    assert "mean has 2 value(s), but the windows have 3" in mean.stderr


def test_features_are_no_heatmap(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", Size(300, 300), levels=1)
    words = ["heatmap", tmp_path / "a.svs", "--model", "hematoxylin", "--sink", "features-zarr"]
    words += ["--out", tmp_path, "--workers", "1"]
    assert CliRunner().invoke(app, [*map(str, words)]).exit_code == 0
    done = CliRunner().invoke(app, ["export", str(tmp_path / "a.features.zarr"), "--to", "csv"])
    assert done.exit_code == 1
    assert "a.features.zarr holds features, not a heatmap; name a .zarr" in done.stderr
