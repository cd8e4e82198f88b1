"""Lists, folders and patterns of slides as arguments of the heatmap command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.testing.ome_zarr import write_ome_zarr
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import write_slide


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides in a folder, with a text that is none, and lists of them beside it."""
    root = tmp_path_factory.mktemp("cohort")
    (root / "slides").mkdir()
    write_slide(root / "slides" / "a.svs", Size(600, 500), levels=1)
    shutil.copyfile(root / "slides" / "a.svs", root / "slides" / "b.svs")
    (root / "slides" / "readme.md").write_text("dear diary")
    (root / "list.txt").write_text("# both\nslides/b.svs\nslides/a.svs\n")
    (root / "list.csv").write_text("id,path\none,slides/a.svs\ntwo,slides/b.svs\n")
    return root


def heatmap(out: Path, *slides: Path | str) -> Done:
    line = ["heatmap", *map(str, slides), "--model", "hematoxylin", "--out", str(out)]
    result = CliRunner().invoke(app, [*line, "--workers", "1", "--json"])
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["slides"], ["a", "b"]),
        (["slides/*.svs"], ["a", "b"]),
        (["list.txt"], ["b", "a"]),
        (["list.csv", "slides/a.svs"], ["one", "two", "a"]),
    ],
)
def test_all_slides_are_done(
    cohort: Path, tmp_path: Path, arguments: list[str], ids: list[str]
) -> None:
    done = heatmap(tmp_path, *(cohort / each for each in arguments))
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)["slides"]
    assert [(each["slide"], each["status"]) for each in outcomes] == [(id_, "done") for id_ in ids]
    assert {each.name for each in tmp_path.iterdir()} >= {f"{id_}.zarr" for id_ in ids}


def test_slides_and_heatmaps_in_one_folder(cohort: Path, tmp_path: Path) -> None:
    """The same command completes: a heatmap is not taken for a slide."""
    shutil.copyfile(cohort / "slides" / "a.svs", tmp_path / "a.svs")
    for place in (tmp_path, tmp_path, tmp_path / "a*"):
        done = heatmap(tmp_path, place)
        assert done.returncode == 0, done.stderr
        (outcome,) = json.loads(done.stdout)["slides"]
        assert (outcome["slide"], outcome["status"]) == ("a", "done")


def test_an_id_that_is_too_long_is_told_with_the_others(cohort: Path, tmp_path: Path) -> None:
    listed = cohort / "long.csv"
    listed.write_text(f"id,path\n{'é' * 150},slides/a.svs\n{'e' * 150},slides/b.svs\n")
    done = heatmap(tmp_path / "out", listed)
    assert done.returncode == 2
    assert "long.csv, line 2: the id 'é" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_slide_of_which_nothing_can_be_computed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "torn.svs"
    write_slide(path, Size(300, 300), levels=1)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        places = [*zip(page.dataoffsets, page.databytecounts, strict=True)]
    data = bytearray(path.read_bytes())
    for offset, count in places:
        data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    done = heatmap(tmp_path / "out", path)
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert "torn.svs: not one of its 1 windows could be computed" in done.stderr


def test_a_slide_is_not_replaced_by_a_heatmap(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    slide = write_ome_zarr(tmp_path / "b.zarr", [image])
    copy = Path(shutil.copytree(slide, tmp_path / "else" / "b.zarr"))
    before = tree(slide)
    for read, says in ((slide, "would be written over it"), (copy, "was not made by")):
        for options in ((), ("--overwrite",)):
            words = ("heatmap", read, "--model", "hematoxylin", "--out", tmp_path, *options)
            result = CliRunner().invoke(app, [*map(str, words)])
            assert result.exit_code == 2
            assert says in result.stderr
            assert "--overwrite" not in result.stderr
            assert tree(slide) == before


def test_problems_are_told_before_any_slide_is_done(cohort: Path, tmp_path: Path) -> None:
    wrong = cohort / "wrong.csv"
    wrong.write_text("id,path\none,slides/a.svs\none,slides/b.svs\nthree,slides/c.svs\n")
    done = heatmap(tmp_path / "out", wrong, cohort / "*.ndpi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the slides have 3 problems:\n")
    assert "wrong.csv, line 4: there is no file 'slides/c.svs'" in done.stderr
    assert "*.ndpi matches no file" in done.stderr
    assert "2 slides have the id 'one'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_column_is_what_the_option_would_be(cohort: Path, tmp_path: Path) -> None:
    """To the byte; and another value is another plan."""
    listed = cohort / "windows.csv"
    listed.write_text("path,mpp,assume_mpp\nslides/a.svs,0.4,0.6\nslides/b.svs,,\n")
    assert heatmap(tmp_path / "list", listed).returncode == 0
    options = ("--mpp", "0.4", "--assume-mpp", "0.6")
    assert heatmap(tmp_path / "a", cohort / "slides" / "a.svs", *options).returncode == 0
    assert heatmap(tmp_path / "b", cohort / "slides" / "b.svs").returncode == 0
    for name in "ab":
        assert tree(tmp_path / "list" / f"{name}.zarr") == tree(tmp_path / name / f"{name}.zarr")
    listed.write_text("path,mpp,assume_mpp\nslides/a.svs,0.3,0.6\n")
    done = heatmap(tmp_path / "list", listed)
    assert done.returncode == 2
    assert "sampler.mpp 0.4 → 0.3" in done.stderr


OUTLINE = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [
                    [[[5, 9], [590, 30], [300, 480], [5, 9]], [[250, 99], [300, 99], [280, 200]]],
                    [[[10, 300], [99, 300], [99, 490], [10, 490], [10, 300]]],
                ],
            },
        }
    ],
}


@pytest.mark.parametrize(
    ("column", "value", "options"),
    [
        ("level", "1", ("--level", "1")),
        ("power", "7.5", ("--power", "7.5")),
        ("roi", "roi.geojson", ("--roi", "roi.geojson")),
    ],
)
@pytest.mark.parametrize("sink", ["zarr", "pdmcsv"])
def test_every_column_is_what_its_option_would_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    value: str,
    options: tuple[str, ...],
    sink: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_slide(tmp_path / "a.svs", Size(600, 500), levels=2)
    shutil.copyfile(tmp_path / "a.svs", tmp_path / "b.svs")
    (tmp_path / "roi.geojson").write_text(json.dumps(OUTLINE))
    (tmp_path / "list.csv").write_text(f"path,{column}\na.svs,{value}\nb.svs,\n")
    how = ("--kernel-size", "48", "--sink", sink)
    runs = {"list": ["list.csv"], "a": ["a.svs", *options], "b": ["b.svs"]}
    for name, arguments in runs.items():
        out = "list" if name == "list" else "alone"
        done = heatmap(tmp_path / out, *arguments, *how)
        assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "list") == tree(tmp_path / "alone")
    both = [tree(tmp_path / "list")[name] for name in tree(tmp_path / "list") if name[0] in "ab"]
    assert len(both) > 1
    # And it is not what the slide gives without it.
    done = heatmap(tmp_path / "plain", "a.svs", *how)
    plain = {name: data for name, data in tree(tmp_path / "plain").items() if name[0] == "a"}
    assert plain != {n: data for n, data in tree(tmp_path / "list").items() if n[0] == "a"}


def test_a_roi_of_a_slide_takes_the_place_of_the_commands(cohort: Path, tmp_path: Path) -> None:
    """The tissue, and another slide's outlines, stay what they are."""
    (tmp_path / "mine.geojson").write_text(json.dumps(OUTLINE))
    box = {"type": "Polygon", "coordinates": [[[0, 0], [512, 0], [512, 500], [0, 500], [0, 0]]]}
    (tmp_path / "all.geojson").write_text(json.dumps(box))
    listed = tmp_path / "list.csv"
    slides = cohort / "slides"
    listed.write_text(f"path,roi\n{slides / 'a.svs'},mine.geojson\n{slides / 'b.svs'},\n")
    how = ("--kernel-size", "64", "--tissue", "auto", "--tissue-fraction", "0.3")
    everywhere = ("--roi", str(tmp_path / "all.geojson"))
    assert heatmap(tmp_path / "list", listed, *how, *everywhere).returncode == 0
    mine = ("--roi", str(tmp_path / "mine.geojson"))
    assert heatmap(tmp_path / "alone", slides / "a.svs", *how, *mine).returncode == 0
    assert heatmap(tmp_path / "alone", slides / "b.svs", *how, *everywhere).returncode == 0
    assert tree(tmp_path / "list") == tree(tmp_path / "alone")


def test_all_outlines_that_cannot_be_read_are_told_at_once(cohort: Path, tmp_path: Path) -> None:
    for name, text in (
        ("torn", '{"type": "Polygon", "coord'),
        ("line", '{"type": "LineString", "coordinates": [[0, 0], [9, 9]]}'),
        ("good", json.dumps(OUTLINE)),
    ):
        (tmp_path / f"{name}.geojson").write_text(text)
    (tmp_path / "mask.png").write_bytes(b"\x89PNG")
    listed = tmp_path / "list.csv"
    rows = ["id,path,roi"]
    for name in ("torn.geojson", "line.geojson", "good.geojson", "mask.png"):
        rows.append(f"{name[:4]},{cohort / 'slides' / 'a.svs'},{name}")
    listed.write_text("\n".join(rows))
    done = heatmap(tmp_path / "out", listed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the slides have 3 problems:\n")
    lines = done.stderr.splitlines()[1:]
    assert len(lines) == 3
    for line, name in zip(lines, ("torn.geojson", "line.geojson", "mask.png"), strict=True):
        assert name in line
    assert not (tmp_path / "out").exists()


def test_columns_that_exclude_each_other_are_refused(cohort: Path, tmp_path: Path) -> None:
    levels = cohort / "levels.csv"
    levels.write_text("path,level,mpp\nslides/a.svs,1,0.5\n")
    done = heatmap(tmp_path / "out", levels)
    assert done.returncode == 2
    assert "level and mpp exclude each other" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_damaged_slide_in_a_folder_is_reported(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copyfile(cohort / "slides" / "a.svs", folder / "a.svs")
    (folder / "broken.svs").write_text("dear diary")
    done = heatmap(tmp_path / "out", folder)
    assert done.returncode == 1
    outcomes = json.loads(done.stdout)["slides"]
    assert [(each["slide"], each["status"]) for each in outcomes] == [
        ("a", "done"),
        ("broken", "failed"),
    ]


def test_a_folder_that_is_a_slide_is_one(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    write_ome_zarr(tmp_path / "slides" / "plain", [pixels])
    for place, slide in ((tmp_path / "slides" / "plain", "plain"), (tmp_path / "slides", "plain")):
        done = heatmap(tmp_path / "out", place)
        assert done.returncode == 0, done.stderr
        assert [each["slide"] for each in json.loads(done.stdout)["slides"]] == [slide]
