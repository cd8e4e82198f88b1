"""The export command as a person meets it: its files, output and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from typer.testing import CliRunner

from streamwsi import Limits, Pipeline, run_sync
from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.processors import processor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr
from streamwsi.sources import TiffSource
from streamwsi.testing.synthetic import write_slide

FORMATS = {
    "png": "png",
    "ome-tiff": "ome.tiff",
    "geojson": "geojson",
    "csv": "csv",
    "parquet": "parquet",
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def streamwsi(*args: object) -> Done:
    result = CliRunner().invoke(app, [*map(str, args)])
    return Done(result.exit_code, result.stdout, result.stderr)


def export(*args: object) -> Done:
    return streamwsi("export", *args)


@processor()
def darkness(batch: Any) -> Any:
    return 1 - batch.pixels.mean(axis=(1, 2))[:, :2] / 255


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide and its heatmap of two channels."""
    folder = tmp_path_factory.mktemp("made")
    write_slide(folder / "a.svs", Size(1024, 768))
    run_sync(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel_size=64),
            processor=darkness,
            sink=HeatmapZarr(folder),
        ),
        [folder / "a.svs"],
        limits=Limits(workers=1),
    ).raise_for_failures()
    return folder


@pytest.fixture
def heatmap(made: Path, tmp_path: Path) -> Path:
    """A link to the heatmap in a folder of the test's own."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.zarr"
    path.symlink_to(made / "a.zarr")
    return path


def check(path: Path) -> None:
    """Open a file with a program of its kind."""
    data = path.read_bytes()
    if path.suffix == ".png":
        assert imagecodecs.png_decode(data).shape[2] == 3
    elif path.suffix == ".tiff":
        assert tifffile.imread(path).shape == (2, 12, 16)
    elif path.suffix == ".geojson":
        assert json.loads(data)["type"] == "FeatureCollection"
    elif path.suffix == ".parquet":
        assert pq.ParquetFile(path).read().num_rows == 12 * 16
    else:
        assert len(data.splitlines()) == 12 * 16 + 1


@pytest.mark.parametrize("to", FORMATS)
def test_each_format_is_written_into_the_folder(made: Path, tmp_path: Path, to: str) -> None:
    channel = ("--channel", "1") if to in ("png", "geojson") else ()
    line = [sys.executable, "-m", "streamwsi", "export", str(made / "a.zarr"), "--to", to]
    done = subprocess.run(
        [*line, "--out", str(tmp_path / "new" / "out"), *channel],
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "new" / "out" / f"a.{FORMATS[to]}"
    assert done.stdout.startswith(f"{made / 'a.zarr'} -> {out} (")
    assert [*out.parent.iterdir()] == [out]
    check(out)


def test_without_a_folder_files_lie_beside_the_heatmap(heatmap: Path) -> None:
    assert export(heatmap, "--to", "csv").returncode == 0
    check(heatmap.with_name("a.csv"))


def test_a_file_may_be_named(heatmap: Path, tmp_path: Path) -> None:
    assert export(heatmap, "--to", "ome-tiff", "--out", tmp_path / "x.ome.tiff").returncode == 0
    check(tmp_path / "x.ome.tiff")


def test_one_that_fails_does_not_hurt_the_others(heatmap: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export(tmp_path / "none.zarr", heatmap, "--to", "geojson", "--channel", 0, "--out", out)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'none.zarr'} does not exist")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith(f"{heatmap} -> {out / 'a.geojson'} (polygons: ")
    done = export(tmp_path / "none.zarr", heatmap, "--to", "geojson", "--channel", 7, "--out", out,
                  "--overwrite")  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


def test_an_unfinished_heatmap_is_exported_as_far_as_it_is(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.zarr"
    subprocess.run(["cp", "-r", str(made / "a.zarr"), str(path)], check=True)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["streamwsi"]["state"].update(pieces=100, complete=False)
    (path / "zarr.json").write_text(json.dumps(document))
    done = export(path, "--to", "csv")
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: {path} is not finished: 100 of 192 windows are there; the rest is exported "
        "as not computed\n"
    )
    check(tmp_path / "b.csv")


def test_pictures_say_which_slide_they_show(made: Path, heatmap: Path, tmp_path: Path) -> None:
    options = ("--to", "png", "--channel", 0, "--max-size", 128, "--overwrite")
    done = export(heatmap, *options)
    assert "(on white: its slide is not beside it; --slide says where it is)" in done.stdout
    done = export(heatmap, *options, "--no-slide")
    assert "(on white)" in done.stdout
    done = export(heatmap, *options, "--slide", made, "--alpha", 0.3, "--range", "0,1")
    assert f"(over {made / 'a.svs'})" in done.stdout


@pytest.mark.parametrize("to", FORMATS)
def test_an_output_is_replaced_only_with_overwrite(heatmap: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out" / f"a.{FORMATS[to]}"
    out.parent.mkdir()
    out.write_text("mine")
    options = (
        "--to",
        to,
        "--out",
        out.parent,
        *(["--channel", 0] if to in ("png", "geojson") else []),
    )
    done = export(tmp_path / "none.zarr", heatmap, *options)
    assert done.returncode == 2
    assert done.stderr == f"error: {out} is there already; --overwrite replaces it\n"
    assert out.read_text() == "mine"
    assert export(heatmap, *options, "--overwrite").returncode == 0
    check(out)


def test_nothing_is_written_into_the_heatmap(heatmap: Path) -> None:
    for out in (heatmap, heatmap / "0"):
        done = export(heatmap, "--to", "csv", "--out", out, "--overwrite")
        assert done.returncode == 2
        assert "would be written over it, or into it" in done.stderr
    assert not [*heatmap.rglob("*.csv")]


def test_the_slide_is_not_replaced(tmp_path: Path) -> None:
    """Its name may be that of the export."""
    slide = tmp_path / "a.ome.tiff"
    write_slide(slide, Size(300, 300), levels=1)
    pixels = slide.read_bytes()
    words = ("heatmap", slide, "--model", "hematoxylin", "--out", tmp_path, "--kernel-size", 64)
    assert streamwsi(*words).returncode == 0
    done = export(tmp_path / "a.zarr", "--to", "ome-tiff", "--overwrite")
    assert done.returncode == 2
    assert done.stderr == f"error: {slide} is the heatmap's slide; choose another name or folder\n"
    assert slide.read_bytes() == pixels
    for _ in range(2):  # an export of that name is one
        out = tmp_path / "out"
        done = export(tmp_path / "a.zarr", "--to", "ome-tiff", "--out", out, "--overwrite")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "csv", "--channel", 0), "--channel is for geojson and png, not for csv"),
        (("--to", "png", "--threshold", 0.5), "--threshold is for geojson, not for png"),
        (("--to", "geojson", "--no-slide"), "--no-slide is for png, not for geojson"),
        (("--to", "ome-tiff", "--all-windows"), "--all-windows is for csv and parquet, not for"),
        (("--to", "png", "--range", "1"), "--range '1' is not MIN,MAX"),
        (("--to", "png", "--channel", "x"), "has no such channel"),
        (("--to", "png", "--channel", 0, "--max-size", 3), "size must be from 64"),
        (("--to", "geojson"), "has several channels; choose one by its name or its number"),
    ],
)
def test_wrong_usage_gives_one_sentence(
    heatmap: Path, options: tuple[object, ...], words: str
) -> None:
    done = export(heatmap, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [each.name for each in heatmap.parent.iterdir()] == ["a.zarr"]


def test_two_heatmaps_cannot_become_one_file(heatmap: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "a.zarr"
    other.symlink_to(heatmap)
    done = export(heatmap, other, "--to", "csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"would both become {tmp_path / 'out' / 'a.csv'}" in done.stderr
    done = export(heatmap, other, "--to", "csv", "--out", tmp_path / "out.csv")
    assert done.returncode == 2
    assert "is one file for 2 heatmaps" in done.stderr
    assert export(heatmap, heatmap, "--to", "csv", "--out", tmp_path / "x.csv").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(
    heatmap: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(*_: object) -> Any:
        signal.raise_signal(number)

    monkeypatch.setattr("streamwsi.exporting.csv_table.cell_rows", interrupted)
    # Processes that run tests side by side ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert export(heatmap, "--to", "csv").returncode == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert [each.name for each in heatmap.parent.iterdir()] == ["a.zarr"]


@pytest.mark.slow
def test_heatmaps_of_real_slides(shared: Path, tmp_path: Path) -> None:
    """The whole road of one with damage, and what its picture shows."""
    slide = shared / "slides" / "broken" / "jpeg_garbage_1tile.svs"
    line = ["heatmap", str(slide), "--model", "hematoxylin", "--kernel-size", "64"]
    result = CliRunner().invoke(app, [*line, "--workers", "1", "--out", str(tmp_path)])
    assert result.exit_code == 0
    path = tmp_path / "jpeg_garbage_1tile.zarr"
    for to in FORMATS:
        assert (
            export(path, "--to", to, *(["--slide", slide] if to == "png" else [])).returncode == 0
        )
    codes = pq.read_table(tmp_path / "jpeg_garbage_1tile.parquet")["valid"].to_numpy()
    assert (codes == 2).sum() == 25
    assert np.isnan(tifffile.imread(tmp_path / "jpeg_garbage_1tile.ome.tiff")).sum() == 25
