"""The raster command as a person meets it: its files, output and exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.cli import raster as command
from streamwsi.pdmcsv import format_rows, to_raster
from streamwsi.pictures import coloured

SAMPLES = (
    "pydmed_sample_1_end_to_end",
    "pydmed_sample_2_stride_below_kernel",
    "pydmed_sample_3_overlap_C3_5x5_level2",
)
Array = npt.NDArray[Any]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def raster(*args: object) -> Done:
    result = CliRunner().invoke(app, ["raster", *map(str, args)])
    return Done(result.exit_code, result.stdout, result.stderr)


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def rows(side: int, channels: int, size: int = 1) -> bytes:
    """Windows of 8 pixels on a level that is a window larger than them."""
    y, x = np.divmod(np.arange(side * side), side)
    values = np.random.default_rng(2).normal(size=(side * side, channels, size, size))
    extent = 8 * side + 8
    return format_rows(8 * y, 8 * x, extent, extent, 0, 8, 1.0, values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "slide.csv"
    path.write_bytes(rows(6, 2, 3))
    return path


def read_zarr(path: Path) -> Array:
    return np.asarray(zarr.open_array(str(path), mode="r")[...])


@pytest.mark.parametrize("name", SAMPLES)
def test_mode_pydmed_gives_pydmeds_arrays(shared: Path, name: str, tmp_path: Path) -> None:
    file = shared / "pdmcsv" / f"{name}.csv"
    wanted = np.load(file.with_suffix(".npy"))
    out = str(tmp_path / "raster.npy")
    line = [sys.executable, "-m", "streamwsi", "raster", str(file), "--out", out]
    done = subprocess.run([*line, "--mode", "pydmed"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert same(np.load(tmp_path / "raster.npy"), wanted)


def test_a_npy_file_holds_the_means_at_the_scale(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "raster.npy"
    done = raster(file, "--out", out, "--scale", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file} -> {out} (42 × 42 cells, channels: 2)\n"
    assert same(np.load(out), to_raster(file, scale=2))
    assert [each.name for each in out.parent.iterdir()] == ["raster.npy"]


def test_a_zarr_array_holds_the_means(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "raster.zarr"
    done = raster(file, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert same(read_zarr(out), to_raster(file).transpose(2, 0, 1))
    array = zarr.open_array(str(out), mode="r")
    assert array.metadata.zarr_format == 3
    assert np.isnan(array.fill_value)
    assert array.metadata.dimension_names == ("c", "y", "x")
    assert array.attrs["streamwsi"] == {"pdmcsv": "slide.csv", "mode": "mean", "scale": 1}


@pytest.mark.parametrize(("channels", "side"), [(1, 512), (2, 512), (3, 256), (2**21, 1)])
def test_chunks_have_about_the_same_size(channels: int, side: int) -> None:
    assert command.chunk_side(channels) == side


def test_an_array_is_written_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_CHUNK", 3 * 4 * 4)
    values = np.random.default_rng(1).normal(size=(9, 13, 3))
    values[4:8, 4:8] = np.nan
    anyio.run(command.write_array, tmp_path / "a.zarr", values, {})
    assert same(read_zarr(tmp_path / "a.zarr"), values.transpose(2, 0, 1))
    # A chunk of NaN only is not stored: it is the fill value.
    stored = {str(c.relative_to(tmp_path)) for c in tmp_path.glob("a.zarr/c/0/*/*")}
    chunks = {f"a.zarr/c/0/{r}/{c}" for r in range(3) for c in range(4)}
    assert stored == chunks - {"a.zarr/c/0/1/1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(source: Path, mode: str, *, out: Path, **_: object) -> Array:
        out.write_bytes(b"half")
        signal.raise_signal(number)
        return np.zeros((1, 1, 1))

    monkeypatch.setattr("streamwsi.pdmcsv.to_raster", interrupted)
    assert raster(file, "--out", tmp_path / "a.npy").returncode == 130
    assert [each.name for each in tmp_path.iterdir()] == ["slide.csv"]


def test_a_picture_shows_one_channel_with_row_0_at_the_top(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "raster.png"
    done = raster(file, "--out", out, "--channel", 1)
    assert (done.returncode, done.stderr) == (0, "")
    values = to_raster(file)[:, :, 1]
    picture = imagecodecs.png_decode(out.read_bytes())
    side = 512 // len(values)
    assert picture.shape[0] == side * len(values)
    cells = picture[side // 2 :: side, side // 2 : side * len(values) : side]
    inside = ~np.isnan(values)
    low, high = np.nanmin(values), np.nanmax(values)
    assert same(cells[inside], coloured(values[inside], float(low), float(high)))
    assert inside.sum() == 18 * 18
    assert (cells[~inside] == 255).all()


def test_pictures_are_coloured_by_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(40, 30, 1))
    values[7] = np.nan
    values[9, 9] = np.inf
    command.write_picture(tmp_path / "whole.png", values, None)
    monkeypatch.setattr(command, "_BAND", 90)
    command.write_picture(tmp_path / "bands.png", values, 0)
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "bands.png").read_bytes()
    command.write_picture(tmp_path / "nothing.png", np.full((1, 2, 1), np.nan), None)
    assert (imagecodecs.png_decode((tmp_path / "nothing.png").read_bytes())[:, :512] == 255).all()


def test_lines_left_out_are_counted_in_one_sentence(file: Path, tmp_path: Path) -> None:
    whole = to_raster(file)
    file.write_bytes(file.read_bytes() + b"7, 7\n" + b"\n" + b"torn")
    done = raster(file, "--out", tmp_path / "raster.npy", "--skip-errors")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: lines left out: 3; the first: ")
    assert f"{file}, line 37: the line has 2 fields" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert same(np.load(tmp_path / "raster.npy"), whole)


def test_lines_that_count_as_zeros_are_told(file: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes() + file.read_bytes().splitlines()[0] + b", 5\n")
    done = raster(file, "--out", tmp_path / "raster.npy", "--mode", "pydmed")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "count as zeros: 1; the first is line 37" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("format_", ["npy", "png", "zarr"])
def test_an_output_is_replaced_only_with_overwrite(
    file: Path, tmp_path: Path, format_: str
) -> None:
    out = tmp_path / f"raster.{format_}"
    options = ("--channel", 0) if format_ == "png" else ()

    def content() -> dict[str, bytes]:
        files = [out] if out.is_file() else [each for each in out.rglob("*") if each.is_file()]
        return {str(each): each.read_bytes() for each in files}

    assert raster(file, "--out", out, *options).returncode == 0
    before = content()
    again = raster(file, "--out", out, *options, "--mode", "pydmed")
    assert again.returncode == 2
    assert again.stderr == f"error: {out} is there already; --overwrite replaces it\n"
    assert content() == before
    assert raster(file, "--out", out, *options, "--mode", "pydmed", "--overwrite").returncode == 0
    assert content() != before
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"no line\n")
    replaced = content()
    assert raster(broken, "--out", out, *options, "--overwrite").returncode == 1
    assert content() == replaced
    assert {each.name for each in tmp_path.iterdir()} == {"slide.csv", "broken.csv", out.name}


@pytest.mark.parametrize("name", ["notes.zarr", "notes.npy"])
def test_overwrite_does_not_replace_what_is_no_raster(
    file: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "diary.txt").write_text("dear diary")
    done = raster(file, "--out", tmp_path / name, "--overwrite")
    assert done.returncode == 2
    assert "choose another name" in done.stderr
    assert (tmp_path / name / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--out", "raster.tif"), 2, "raster.tif must end in .npy, .png or .zarr"),
        (("--out", "a.npy", "--channel", 0), 2, "--channel is for pictures"),
        (("--out", "a.png"), 2, "a picture shows one of 2 channels"),
        (("--out", "a.png", "--channel", 2), 2, "--channel 2 must be from 0 to 1"),
        (("--out", "a.npy", "--scale", 0), 2, "scale must be between 1 and 256"),
        (("--out", "a.npy", "--mode", "pydmed", "--skip-errors"), 2, "--skip-errors is for mode"),
        (("--out", "slide.csv/a.npy"), 1, "a.npy cannot be written: "),
    ],
)
def test_wrong_usage_gives_one_sentence(
    file: Path, tmp_path: Path, options: tuple[str, ...], code: int, words: str
) -> None:
    done = raster(file, "--out", tmp_path / options[1], *options[2:])
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["slide.csv"]


def test_a_wrong_line_gives_one_sentence_with_the_option_that_helps(
    file: Path, tmp_path: Path
) -> None:
    file.write_bytes(file.read_bytes() + b"\n")
    done = raster(file, "--out", tmp_path / "a.npy")
    assert (done.returncode, done.stdout) == (1, "")
    reason = "the line is blank (--skip-errors leaves such lines out)"
    assert done.stderr == f"error: {file}, line 37: {reason}\n"
    missing = raster(tmp_path / "missing.csv", "--out", tmp_path / "a.npy")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"error: {tmp_path / 'missing.csv'} cannot be read")
    assert [each.name for each in tmp_path.iterdir()] == ["slide.csv"]


def test_a_picture_that_nobody_could_open_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wide.csv"
    file.write_bytes(b"0, 0, 1, 70000, 0, 1, 1.0, 1, 1, 1,3\n")
    done = raster(file, "--out", tmp_path / "a.png")
    assert done.returncode == 2
    assert "1 × 70,000 cells are too many for a picture" in done.stderr
