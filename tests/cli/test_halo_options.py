"""``streamwsi heatmap --halo --align --padding shift``, and a halo in TOML."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.pipelines import Pipeline, from_toml, to_toml
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks.pdmcsv import Pdmcsv
from streamwsi.sources import TiffSource
from streamwsi.testing.synthetic import write_slide

SIZE = Size(301, 250)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    write_slide(path, SIZE, levels=1)
    return path


def pdmcsv(slide: Path, out: Path, *options: str) -> Result:
    arguments = ["--model", "hematoxylin", "--device", "cpu", "--kernel-size", "64"]
    arguments += ["--workers", "1", "--memory", "256MiB", "--out", str(out), "--sink", "pdmcsv"]
    return CliRunner().invoke(app, ["heatmap", str(slide), *arguments, *options])


@pytest.mark.parametrize(
    ("options", "columns", "rows"),
    [
        (("--halo", "16"), [*range(0, 237, 32), 237], [*range(0, 187, 32), 186]),
        (
            ("--halo", "16", "--align", "16"),
            [*range(0, 225, 32)],
            [*range(0, 161, 32), 176],
        ),
        (("--padding", "shift"), [0, 64, 128, 192, 237], [0, 64, 128, 186]),
        (("--padding", "shift", "--stride", "60"), [0, 60, 120, 180, 237], [0, 60, 120, 180, 186]),
    ],
)
def test_windows_lie_where_they_were_asked_for(
    slide: Path, tmp_path: Path, options: tuple[str, ...], columns: list[int], rows: list[int]
) -> None:
    done = pdmcsv(slide, tmp_path, *options)
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "a.csv").read_text().splitlines()
    corners = [tuple(map(int, line.split(",")[:2])) for line in lines]
    assert corners == [(y, x) for y in rows for x in columns]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--halo", "8", "--stride", "32"), "halo and stride exclude each other"),
        (("--halo", "32"), "leaves nothing of windows of 64×64"),
        (("--halo", "-1"), "halo -1×-1 must be at least 0"),
        (("--halo", "8", "--padding", "same"), "goes with padding shift only, not with 'same'"),
        (("--halo", "8", "--align", "16"), "the nearest is 16"),
        (("--halo", "8", "--offset", "4,0"), "leave out the offset"),
        (("--align", "16"), "align 16 needs padding shift"),
        (("--padding", "shift", "--stride", "65"), "do not cover the level"),
        (("--halo", "8", "--kernel-size", "260"), "a.svs, level 0: kernel size 260×260 is beyond"),
    ],
)
def test_wrong_options_are_sentences(
    slide: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = pdmcsv(slide, tmp_path, *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_another_halo_does_not_go_on_with_an_output(slide: Path, tmp_path: Path) -> None:
    assert pdmcsv(slide, tmp_path, "--halo", "16").exit_code == 0
    result = pdmcsv(slide, tmp_path, "--halo", "12")
    assert result.exit_code == 2
    assert "stride" in result.stderr
    result = pdmcsv(slide, tmp_path, "--stride", "32")
    assert result.exit_code == 2
    assert "padding" in result.stderr
    # A halo is a stride and a padding.
    result = pdmcsv(slide, tmp_path, "--stride", "32", "--padding", "shift")
    assert result.exit_code == 0, result.output


def test_a_halo_in_toml(tmp_path: Path) -> None:
    pipeline = Pipeline(
        source=TiffSource(),
        sampler=SlidingWindow(512, halo=64, align=16),
        processor=TorchModule("hematoxylin"),
        sink=Pdmcsv(str(tmp_path)),
    )
    text = to_toml(pipeline)
    assert "halo = 64\nalign = 16" in text
    assert "padding" not in text
    assert from_toml(text) == pipeline
    again = from_toml(text.replace("halo = 64", "halo = [64, 32]"))
    assert again.sampler == SlidingWindow(512, halo=(64, 32), align=16)
