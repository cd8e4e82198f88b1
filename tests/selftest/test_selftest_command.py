"""The self-test as a person meets it; and that it sees what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streamwsi.cli import app
from streamwsi.exporting import csv_table, geojson
from streamwsi.geometry import Size
from streamwsi.heatmaps import Raster, Transform
from streamwsi.mosaics import Mosaic
from streamwsi.selftest import checking
from streamwsi.selftest.cases import cases
from streamwsi.sinks import features, zarr_pyramid
from streamwsi.testing.synthetic import write_slide

#: An output of each kind.
OUTPUTS = {
    "zarr",
    "zarr, smaller level 1",
    "zarr label image classes",
    "zarr label image classes, smaller level 1",
    "features-zarr",
    "features-hdf5",
    "pdmcsv",
    "pdmcsv raster",
    "csv",
    "parquet",
    "geojson",
    "png",
    "ome-tiff by its description",
    "ome-tiff by its OME-XML",
    "ome-tiff by its OME-XML, smaller level 1",
}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_slide(path, Size(1283, 997), levels=2)
    return path


def selftest(*args: object) -> Result:
    return CliRunner().invoke(app, ["selftest", *map(str, args)])


def test_all_outputs_line_up(slide: Path) -> None:
    done = selftest(slide, "--json")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["passed"]
    errors = [finding["error"] for finding in record["findings"]]
    assert 0 < max(errors) == record["worst"]["error"] < record["tolerance"] == 0.5
    assert {finding["output"] for finding in record["findings"]} >= OUTPUTS
    windows = " ".join(finding["windows"] for finding in record["findings"])
    for what in ("level 1", "µm per pixel", "reflect", "shift", "halo", "float16", "labels"):
        assert what in windows
    for blend in ("mean", "gaussian", "max", "crop", "last"):
        assert blend in windows


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the self-test check some cases only."""

    def choose(part: str, *outputs: str) -> None:
        def some(slide: Any) -> Any:
            for case in cases(slide):
                if part in case.windows:
                    object.__setattr__(case, "outputs", outputs)
                    yield case

        monkeypatch.setattr(checking, "cases", some)

    return choose


def moved(original: Any, by: float) -> Any:
    """A transform whose cells lie a part of a cell away."""

    def transform(*args: Any) -> Transform:
        right: Transform = original(*args)
        y, x = right.translation
        return right._replace(translation=(y + by * right.scale[0], x + by * right.scale[1]))

    return transform


def test_the_table_names_the_worst(slide: Path, only: Callable[..., None]) -> None:
    only("level 1, windows 4, stride 2", "zarr", "csv")
    done = selftest(slide)
    assert done.exit_code == 0, done.stderr
    assert "level 1, windows 4, stride 2" in done.stdout
    assert "worst error 0.0" in done.stdout


@pytest.mark.parametrize("kind", [Raster, Mosaic])
def test_half_a_cell_is_seen(
    slide: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    only("level 1, windows 4, stride 2" if kind is Raster else "level 1, maps", "zarr", "ome-tiff")
    monkeypatch.setattr(kind, "transform", moved(kind.transform, 0.5))
    done = selftest(slide, "--json")
    assert done.exit_code == 1
    for finding in json.loads(done.stdout)["findings"]:
        if "level 1" not in finding["output"]:
            assert finding["error"] == pytest.approx(
                4, abs=0.5
            )  # cells of 2 pixels, of a downsample of 4
    assert "do not line up with the slide" in done.stderr
    assert "is off by" in done.stderr


def test_a_forgotten_downsample_is_seen(
    slide: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("level 1, windows 4, stride 2", "features-zarr")
    monkeypatch.setattr(features, "level0_corners", lambda corners, level: corners)
    done = selftest(slide)
    assert done.exit_code == 1
    assert "1 of 1 outputs" in done.stderr


def test_a_level_that_is_moved_against_the_others_is_seen(
    slide: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As labels were, of which the upper left one of four was taken."""
    only("level 0, maps 16, labels", "zarr")
    monkeypatch.setattr(
        zarr_pyramid, "most_frequent_of_cells", lambda cells: np.array(cells[..., ::2, ::2])
    )
    done = selftest(slide, "--json")
    assert done.exit_code == 1
    errors = {f["output"]: f["error"] for f in json.loads(done.stdout)["findings"]}
    # Half a cell of 2 pixels.
    assert errors["zarr"] < 0.1
    assert errors["zarr, smaller level 1"] == pytest.approx(1, abs=0.1)


def test_an_export_that_forgets_where_pixels_begin_is_seen(
    slide: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("level 0, windows 32×16", "zarr", "geojson")
    right = geojson._coordinates
    monkeypatch.setattr(
        geojson,
        "_coordinates",
        lambda ring, cells: [[x - 0.5, y - 0.5] for x, y in right(ring, cells)],
    )
    done = selftest(slide, "--json")
    assert done.exit_code == 1
    errors = {f["output"]: f["error"] for f in json.loads(done.stdout)["findings"]}
    assert errors["geojson"] == pytest.approx(0.5, abs=0.05)
    assert errors["zarr"] < 0.1


def test_an_output_that_cannot_be_made_is_a_finding(
    slide: Path, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    only("level 1, windows 4, stride 2", "zarr", "csv")

    def fails(*_: Any) -> Any:
        raise ValueError("no such number")

    monkeypatch.setattr(csv_table, "cell_rows", fails)
    done = selftest(slide, "--json")
    assert done.exit_code == 1
    assert "cannot be checked: no such number" in done.stderr
    assert json.loads(done.stdout)["worst"]["error"] is None


def test_a_slide_that_is_too_small_is_refused(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", Size(12, 12), levels=1, tile=16)
    done = selftest(tmp_path / "a.svs")
    assert done.exit_code == 2
    assert "too few for a fiducial" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("no slide")
    done = selftest(tmp_path / "a.svs")
    assert done.exit_code == 1
    assert "is no slide" in done.stderr
