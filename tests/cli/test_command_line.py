"""The command line as a person meets it: its output, files and exit codes.

A new interpreter imports torch for two seconds: what the process adds (signals, the whole of
stderr, ``python -m``) is tested with a few, and the rest of the words in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import zarr
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.processors.hematoxylin import Hematoxylin
from streamwsi.testing.synthetic import write_slide

SIZE = Size(1300, 1111)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "small.svs"
    write_slide(path, SIZE, levels=2)
    return path


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def streamwsi(*args: object) -> Done:
    result = CliRunner().invoke(app, [*map(str, args)])
    return Done(result.exit_code, result.stdout, result.stderr)


def process(*args: object, timeout: float = 120) -> Done:
    command = [sys.executable, "-m", "streamwsi", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def words(slide: Path, out: Path, *args: object) -> tuple[object, ...]:
    return ("heatmap", slide, "--model", "hematoxylin", "--out", out, *args)


def heatmap(slide: Path, out: Path, *args: object) -> Done:
    return streamwsi(*words(slide, out, *args))


def reference(slide: Path, level: int, kernel: int, stride: int) -> npt.NDArray[np.float32]:
    """The model called on one crop after the other of tifffile's whole level."""
    pixels = tifffile.imread(slide, level=level)
    model = Hematoxylin().eval()
    rows = (pixels.shape[0] - kernel) // stride + 1
    columns = (pixels.shape[1] - kernel) // stride + 1
    values = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            y, x = row * stride, column * stride
            crop = pixels[y : y + kernel, x : x + kernel].astype(np.float32) / 255
            with torch.inference_mode():
                values[row, column] = model(torch.from_numpy(crop).permute(2, 0, 1)[None])[0, 0]
    return values


def written(path: Path) -> npt.NDArray[np.float32]:
    group = zarr.open_group(str(path), mode="r")
    return np.asarray(group["0"][...])  # type: ignore[index]


@pytest.mark.parametrize(
    ("level", "kernel", "stride"), [(0, 256, 256), (0, 300, 77), (1, 64, 31), (1, 277, 100)]
)
def test_heatmap_equals_the_slow_reference(
    slide: Path, tmp_path: Path, level: int, kernel: int, stride: int
) -> None:
    options = ("--level", level, "--kernel-size", kernel, "--stride", stride, "--json")
    done = heatmap(slide, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    expected = reference(slide, level, kernel, stride)
    np.testing.assert_allclose(written(tmp_path / "small.zarr")[0], expected, atol=1e-5)
    outcome = json.loads(done.stdout)["slides"][0]
    assert outcome["status"] == "done"
    assert outcome["pieces"] == outcome["total"] == expected.size
    assert outcome["outputs"] == [str(tmp_path / "small.zarr")]
    assert outcome["tiles_decoded"] == outcome["distinct_tiles"]


def test_pdmcsv_holds_the_same_values(slide: Path, tmp_path: Path) -> None:
    options = ("--sink", "pdmcsv", "--kernel-size", 200, "--stride", 100)
    done = process(*words(slide, tmp_path, *options))
    assert done.returncode == 0, done.stderr
    expected = reference(slide, 0, 200, 100)
    lines = (tmp_path / "small.csv").read_text().splitlines()
    assert len(lines) == expected.size
    for line in lines:
        head, _, value = line.rpartition(",")
        y, x, H, W, level, kernel, *_ = (float(part) for part in head.split(", "))
        assert (H, W, level, kernel) == (SIZE.height, SIZE.width, 0, 200)
        assert float(value) == pytest.approx(expected[int(y) // 100, int(x) // 100], abs=1e-5)


def test_the_same_command_twice_finishes_and_overwrite_begins_anew(
    slide: Path, tmp_path: Path
) -> None:
    assert heatmap(slide, tmp_path).returncode == 0
    again = json.loads(heatmap(slide, tmp_path, "--json").stdout)["slides"][0]
    assert (again["status"], again["pieces"], again["tiles_decoded"]) == ("done", 0, 0)
    anew = json.loads(heatmap(slide, tmp_path, "--json", "--overwrite").stdout)["slides"][0]
    assert anew["pieces"] == anew["total"] > 0


def test_another_plan_is_refused_and_named(slide: Path, tmp_path: Path) -> None:
    assert heatmap(slide, tmp_path).returncode == 0
    before = written(tmp_path / "small.zarr")
    changed = heatmap(slide, tmp_path, "--kernel-size", 128)
    assert changed.returncode == 2
    assert "kernel_size" in changed.stderr
    assert "--overwrite" in changed.stderr
    np.testing.assert_array_equal(written(tmp_path / "small.zarr"), before)


def bad_inputs() -> Iterator[Any]:
    def missing(folder: Path) -> Path:
        return folder / "missing.svs"

    def directory(folder: Path) -> Path:
        (folder / "folder.svs").mkdir()
        return folder / "folder.svs"

    def empty(folder: Path) -> Path:
        (folder / "empty.svs").touch()
        return folder / "empty.svs"

    def text(folder: Path) -> Path:
        (folder / "text.svs").write_text("dear diary\n" * 50)
        return folder / "text.svs"

    def header_only(folder: Path) -> Path:
        (folder / "header.svs").write_bytes(b"II*\0\x08\0\0\0")
        return folder / "header.svs"

    for make in (missing, directory, empty, text, header_only):
        yield pytest.param(make, id=make.__name__)


@pytest.mark.parametrize("make", [*bad_inputs()])
@pytest.mark.parametrize("command", ["heatmap", "info"])
def test_a_bad_slide_gives_one_sentence_and_exit_1(make: Any, command: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    # tifffile writes to stderr of its own where it meets this one.
    run = process if make.__name__ == "header_only" else streamwsi
    done = run(*(("info", path) if command == "info" else words(path, tmp_path / "out")))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert str(path) in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--level", 7), 1, "level 7"),
        (("--kernel-size", 0), 2, "kernel"),
        (("--kernel-size", -3), 2, "kernel"),
        (("--stride", 0), 2, "stride"),
        (("--kernel-size", 5000), 2, "5000"),
        (("--stride", 5000), 2, "5000"),
        (("--mean", "a,b"), 2, "--mean"),
        (("--batch-size", 0), 2, "batch"),
        (("--device", "cuda:99"), 2, "cuda"),
        (("--memory", "lots"), 2, "lots"),
        (("--memory", "64KiB"), 2, "MiB"),
        (("--workers", 0), 2, "workers"),
        (("--model", "no_such_module:factory"), 2, "no_such_module"),
        (("--model", "no_such_file.pt"), 2, "no_such_file.pt"),
    ],
)
def test_wrong_usage_gives_one_sentence(
    slide: Path, tmp_path: Path, options: tuple[object, ...], code: int, word: str
) -> None:
    done = heatmap(slide, tmp_path / "out", *options)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr
    assert not list((tmp_path / "out").glob("*.zarr"))


def test_an_unwritable_folder(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = heatmap(slide, tmp_path / "file" / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "file" in done.stderr


def test_one_bad_slide_does_not_hurt_the_others(slide: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_text("not a slide")
    command = ("heatmap", bad, slide, "--model", "hematoxylin", "--out", tmp_path / "out", "--json")
    done = process(*command)
    assert done.returncode == 1
    statuses = {s["slide"]: s["status"] for s in json.loads(done.stdout)["slides"]}
    assert statuses == {"bad": "failed", "small": "done"}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = process(*words(tmp_path / "missing.svs", tmp_path / "out", "--debug"))
    assert "Traceback" in done.stderr


def test_a_reader_of_the_report_that_has_enough(slide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamwsi", *map(str, words(slide, tmp_path, "--json"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1
    assert not np.isnan(written(tmp_path / "small.zarr")).any()


def test_info_tells_what_tifffile_reads(slide: Path) -> None:
    done = streamwsi("info", slide, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    shapes = [tifffile.imread(slide, level=level).shape[:2] for level in (0, 1)]
    assert [(lv["height"], lv["width"]) for lv in record["levels"]] == shapes
    assert record["levels"][1]["downsample"] == [4.0, 4.0]
    assert record["levels"][0]["tile"] == [256, 256]
    assert (record["vendor"], record["power"], record["mpp"]) == ("aperio", 40.0, [0.25, 0.25])
    assert "0.25" in streamwsi("info", slide).stdout


def test_stages_lists_what_is_installed() -> None:
    found = json.loads(streamwsi("stages", "--json").stdout)["stages"]
    assert {"sliding-window", "tiff", "zarr", "torch-module", "heatmap-zarr", "pdmcsv"} <= {
        stage["name"] for stage in found
    }
    sinks = streamwsi("stages", "sink").stdout
    assert "pdmcsv" in sinks
    assert "tiff" not in sinks
    assert streamwsi("stages", "oven").returncode == 2


def test_interrupt_ends_cleanly_and_the_same_command_completes(tmp_path: Path) -> None:
    slide = tmp_path / "larger.svs"
    write_slide(slide, Size(4096, 4096), levels=2)
    options = ["--kernel-size", "128", "--stride", "8", "--workers", "2"]
    command = [sys.executable, "-m", "streamwsi", "heatmap", str(slide), "--model", "hematoxylin"]
    command += ["--out", str(tmp_path / "out"), *options]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    output = tmp_path / "out" / "larger.zarr"
    wait_for(lambda: (output / "0" / "zarr.json").exists())
    (zygote,) = children(running.pid)
    wait_for(lambda: len(children(zygote)) == 2)
    workers = [zygote, *children(zygote)]
    running.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = running.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert running.returncode == 130
    assert "the same command completes it" in errors
    wait_for(lambda: not any(map(alive, workers)))
    assert np.isnan(written(output)).any()
    group = zarr.open_group(str(output), mode="r")
    assert group.attrs["streamwsi"]["state"]["complete"] is False  # type: ignore[index,call-overload]


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(c) for task in tasks for c in (task / "children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_demo_follows_the_tissue(tmp_path: Path) -> None:
    done = process("demo", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    values = written(tmp_path / "demo.zarr")[0]
    assert values.shape == (63, 63)
    # Tissue where the thumbnail is coloured: there must be much more hematoxylin than on glass.
    low = tifffile.imread(tmp_path / "demo.svs", level=2).astype(float)
    coloured = low.max(axis=2) - low.min(axis=2) > 40
    cells = np.array(
        [
            [coloured[r * 8 : r * 8 + 16, c * 8 : c * 8 + 16].mean() for c in range(63)]
            for r in range(63)
        ]
    )
    assert np.median(values[cells > 0.8]) > 4 * np.median(values[cells < 0.01])
    assert (tmp_path / "demo.csv").is_file()
    assert (tmp_path / "demo-overlay.png").read_bytes().startswith(b"\x89PNG")
