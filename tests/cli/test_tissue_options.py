"""``--tissue``, ``--tissue-fraction``, ``--roi`` and ``streamwsi tissue``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.testing.synthetic import write_slide

SIZE, KERNEL = Size(1536, 1280), 128


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "small.svs"
    write_slide(path, SIZE, levels=2)
    return path


@pytest.fixture(scope="module")
def everything(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("everything")
    assert heatmap(slide, out).exit_code == 0
    return read(out)[0]


def streamwsi(*args: object) -> Any:
    return CliRunner().invoke(app, [*map(str, args)])


def heatmap(slide: Path, out: Path, *args: object) -> Any:
    how = ("--model", "hematoxylin", "--kernel-size", KERNEL, "--json")
    return streamwsi("heatmap", slide, *how, "--out", out, *args)


def read(out: Path) -> tuple[Any, Any]:
    group = zarr.open_group(str(out / "small.zarr"), mode="r")
    return np.asarray(group["0"][0]), np.asarray(group["valid"][:])  # type: ignore[index]


def check(done: Any, out: Path, kept: Any, everything: Any) -> Any:
    """The kept cells have their values, the others are NaN and say why; returns the outcome."""
    assert done.exit_code == 0, done.stderr
    values, valid = read(out)
    np.testing.assert_array_equal(valid, np.where(kept, 1, 3))
    np.testing.assert_allclose(values, np.where(kept, everything, np.nan), atol=1e-6)
    outcome = json.loads(done.stdout)["slides"][0]
    assert outcome["total"] == outcome["pieces"] == np.count_nonzero(kept)
    # Windows of 128 on tiles of 256: a tile is needed where one of its four windows is.
    tiles = kept.reshape(kept.shape[0] // 2, 2, -1, 2).any(axis=(1, 3))
    assert outcome["tiles_decoded"] == np.count_nonzero(tiles)
    assert outcome["tiles_saved"] == np.count_nonzero(~tiles)
    return outcome


@pytest.mark.parametrize("fraction", [0.05, 0.6])
def test_a_drawn_mask(slide: Path, tmp_path: Path, everything: Any, fraction: float) -> None:
    rows, columns = SIZE.height // KERNEL, SIZE.width // KERNEL
    mask = np.zeros((2 * rows, 2 * columns), np.uint8)
    mask[3:9, 4:9] = mask[12, 20] = 255
    (tmp_path / "mask.png").write_bytes(imagecodecs.png_encode(mask))
    options = ("--tissue", tmp_path / "mask.png", "--tissue-fraction", fraction)
    done = heatmap(slide, tmp_path, *options)
    kept = (mask > 0).reshape(rows, 2, columns, 2).mean(axis=(1, 3)) >= fraction
    check(done, tmp_path, kept, everything)
    again = json.loads(heatmap(slide, tmp_path, *options).stdout)["slides"][0]
    assert (again["pieces"], again["tiles_decoded"]) == (0, 0)
    changed = heatmap(slide, tmp_path)
    assert changed.exit_code == 2
    assert "sampler" in changed.stderr
    assert "--overwrite" in changed.stderr


def test_regions_of_interest(slide: Path, tmp_path: Path, everything: Any) -> None:
    shell = [[200, 130], [900, 130], [900, 700], [200, 700], [200, 130]]
    hole = [[384, 256], [640, 256], [640, 512], [384, 512], [384, 256]]
    geometry = {"type": "Polygon", "coordinates": [shell, hole]}
    document = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "geometry": geometry}],
    }
    (tmp_path / "roi.geojson").write_text(json.dumps(document))
    fine = np.zeros((SIZE.height, SIZE.width), np.bool_)
    fine[130:700, 200:900] = True
    fine[256:512, 384:640] = False
    shares = fine.reshape(SIZE.height // KERNEL, KERNEL, -1, KERNEL).mean(axis=(1, 3))
    kept = shares >= 0.3
    options = ("--roi", tmp_path / "roi.geojson", "--tissue-fraction", 0.3)
    check(heatmap(slide, tmp_path / "out", *options), tmp_path / "out", kept, everything)
    # A mask of tissue may be outlines, or a TIFF of any size, as well.
    tifffile.imwrite(tmp_path / "mask.tif", fine.astype(np.uint8))
    for name in ("roi.geojson", "mask.tif"):
        out = tmp_path / name.split(".")[1]
        options = ("--tissue", tmp_path / name, "--tissue-fraction", 0.3)
        check(heatmap(slide, out, *options), out, kept, everything)


def test_auto_finds_what_the_picture_shows(slide: Path, tmp_path: Path, everything: Any) -> None:
    shown = streamwsi("tissue", slide, "--out", tmp_path / "mask.png", "--mask-only")
    assert shown.exit_code == 0, shown.stderr
    assert "% of " in shown.stdout
    done = heatmap(slide, tmp_path / "auto", "--tissue", "auto")
    _, valid = read(tmp_path / "auto")
    kept = valid == 1
    # Where there is hematoxylin there is tissue, and on empty glass there is none.
    assert kept[everything > 0.1].all()
    assert kept[everything < 0.03].mean() < 0.4
    assert 0.1 < kept.mean() < 0.9
    check(done, tmp_path / "auto", kept, everything)
    heatmap(slide, tmp_path / "file", "--tissue", tmp_path / "mask.png")
    np.testing.assert_array_equal(read(tmp_path / "file")[1], valid)


def test_the_picture_shows_the_mask_over_the_slide(slide: Path, tmp_path: Path) -> None:
    for name, options in (("over.png", ()), ("mask.png", ("--mask-only",))):
        assert streamwsi("tissue", slide, "--out", tmp_path / name, *options).exit_code == 0
    picture = imagecodecs.png_decode((tmp_path / "over.png").read_bytes())
    mask = imagecodecs.png_decode((tmp_path / "mask.png").read_bytes()) > 0
    assert picture.shape == (*mask.shape, 3)
    # Glass is darker than it was and bluish, and tissue as it was; the edge is red.
    assert picture[~mask, 0].mean() + 20 < picture[~mask, 2].mean()
    assert (picture == (255, 0, 0)).all(axis=-1).any()


def test_damage_in_the_picture_is_told(slide: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(slide) as file:
        page: Any = file.series[0].levels[0].pages[0]
        offset, count = page.dataoffsets[3], page.databytecounts[3]
    data = bytearray(slide.read_bytes())
    data[offset : offset + count] = bytes(count)
    (tmp_path / "torn.svs").write_bytes(data)
    done = streamwsi("tissue", tmp_path / "torn.svs", "--out", tmp_path / "mask.png")
    assert done.exit_code == 0
    assert "1 damaged tile(s) are white" in done.stderr
    assert "warning" not in streamwsi("tissue", slide, "--out", tmp_path / "mask.png").stderr


def test_a_picture_replaces_nothing_by_itself(slide: Path, tmp_path: Path) -> None:
    for name, says in (("a.svs", "ends in .png"), ("there.png", "--overwrite replaces it")):
        (tmp_path / name).write_bytes(slide.read_bytes())
        done = streamwsi("tissue", tmp_path / "a.svs", "--out", tmp_path / name)
        assert done.exit_code == 2
        assert says in done.stderr
        assert (tmp_path / name).read_bytes() == slide.read_bytes()
    its_own = tmp_path / "there.png"
    done = streamwsi("tissue", its_own, "--out", its_own, "--overwrite")
    assert done.exit_code == 2
    assert "written over it" in done.stderr
    assert its_own.read_bytes() == slide.read_bytes()
    assert streamwsi("tissue", slide, "--out", its_own, "--overwrite").exit_code == 0
    assert its_own.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--tissue", "missing.png"), 2, "none of auto, none and a file that exists"),
        (("--roi", "missing.geojson"), 2, "No such file"),
        (("--roi", "mask.png"), 2, "not a .geojson file"),
        (("--tissue", "auto", "--tissue-fraction", "1.5"), 2, "above 0 and at most 1"),
    ],
)
def test_options_that_cannot_be(
    options: tuple[str, ...], code: int, message: str, slide: Path, tmp_path: Path
) -> None:
    done = heatmap(slide, tmp_path, *options)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_nothing_on_the_mask_is_said(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(imagecodecs.png_encode(np.zeros((5, 5), np.uint8)))
    done = heatmap(slide, tmp_path / "out", "--tissue", tmp_path / "mask.png")
    assert done.exit_code == 1
    assert "none of the 120 windows" in done.stderr
    assert not (tmp_path / "out").exists()
