"""Pictures: values where they belong, damage that is seen, a legend that can be read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import matplotlib
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi import json_files
from streamwsi.errors import CannotOpen, ConfigError
from streamwsi.exporting import export_png, figures, frames, heatmap
from streamwsi.exporting.frames import Frame
from streamwsi.exporting.heatmap import Heatmap, open_heatmap
from streamwsi.exporting.slide_pictures import find_slide
from streamwsi.geometry import Box, Size
from streamwsi.testing.svs_writer import write_svs

MakeHeatmap = Callable[..., Path]
Array = npt.NDArray[Any]


def shown(path: Path, width: int, height: int) -> Array:
    """The picture within the figure, ``(height, width, 3)``."""
    figure = imagecodecs.png_decode(path.read_bytes())
    em = min(max(12.0, max(height, width) / 56), 32.0)
    top, left = round(2.5 * em), round(em)
    part: Array = figure[top : top + height, left : left + width, :3]
    return part


def by_cells(opened: Heatmap, level: int, frame: Frame) -> Array:
    """The values at pixels, one by one: means of cells, or the cell at the centre."""
    one = opened.levels[level]
    cells, array = one.cells, one.read(*(slice(0, n) for n in one.shape))[0].astype(np.float64)
    found: list[list[list[float]]] = [[[] for _ in range(frame.width)] for _ in range(frame.height)]
    small = all(cells.pitch[a] <= frame.scale[a] for a in (0, 1))
    for i, j in np.ndindex(array.shape):
        left, top = (cells.origin[a] + n * cells.pitch[a] for a, n in ((0, j), (1, i)))
        for y in range(frame.height):
            for x in range(frame.width):
                if small:
                    cx, cy = left + cells.pitch[0] / 2, top + cells.pitch[1] / 2
                    inside = (int(cx // frame.scale[0]), int(cy // frame.scale[1])) == (x, y)
                else:
                    px, py = (x + 0.5) * frame.scale[0], (y + 0.5) * frame.scale[1]
                    inside = left <= px < left + cells.pitch[0] and top <= py < top + cells.pitch[1]
                if inside and not np.isnan(array[i, j]):
                    found[y][x].append(array[i, j])
    return np.array([[np.mean(v) if v else np.nan for v in row] for row in found])


@pytest.mark.parametrize("scale", [(3.0, 3.0), (8.0, 8.0), (13.0, 21.0), (40.0, 30.0), (7.9, 30.0)])
@pytest.mark.parametrize("block", [1, 16 << 20])
def test_pixels_show_the_cells_that_lie_in_them(
    group: MakeHeatmap, monkeypatch: pytest.MonkeyPatch, scale: tuple[float, float], block: int
) -> None:
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", block)
    values = np.random.default_rng(1).normal(size=(1, 11, 9)).astype(np.float32)
    values[0, 2:5, 1:7] = np.nan
    path = group([values], chunks=(1, 4, 3), origin=(5.0, -4.0), pitch=(8.0, 8.0))
    opened = open_heatmap(path)
    frame = Frame(int(90 / scale[0]), int(100 / scale[1]), scale)
    wanted = by_cells(opened, 0, frame)
    np.testing.assert_allclose(frames.values(opened, 0, frame), wanted, rtol=1e-12)


def test_the_coarsest_level_that_does_is_read(group: MakeHeatmap) -> None:
    base = np.random.default_rng(1).normal(size=(1, 16, 16)).astype(np.float32)
    levels = [base, base[:, ::2, ::2] + 10, base[:, ::4, ::4] + 20]
    opened = open_heatmap(group(levels))
    for scale, number in [(4.0, 0), (8.0, 0), (15.0, 0), (16.0, 1), (33.0, 2), (99.0, 2)]:
        frame = Frame(int(128 / scale), int(128 / scale), (scale, scale))
        found = frames.values(opened, 0, frame)
        np.testing.assert_allclose(found, by_cells(opened, number, frame), rtol=1e-12)


@pytest.mark.parametrize("scale", [4.0, 20.0])
def test_labels_are_not_averaged(group: MakeHeatmap, scale: float) -> None:
    labels = np.random.default_rng(1).integers(0, 4, (1, 16, 16)).astype(np.uint8)
    opened = open_heatmap(group([labels], fill=0))
    frame = Frame(int(128 / scale), int(128 / scale), (scale, scale))
    found = frames.values(opened, 0, frame)
    for y, x in np.ndindex(found.shape):
        label = labels[0, int((y + 0.5) * scale / 8), int((x + 0.5) * scale / 8)]
        assert np.isnan(found[y, x]) if label == 0 else found[y, x] == label


@pytest.mark.parametrize("scale", [2.0, 16.0])
def test_damage_is_where_damaged_windows_are(group: MakeHeatmap, scale: float) -> None:
    codes = np.ones((8, 8), np.uint8)
    codes[2, 5] = 2
    opened = open_heatmap(group([np.ones((1, 8, 8), np.float32)], valid=codes))
    found = frames.damage(opened, Frame(int(64 / scale), int(64 / scale), (scale, scale)))
    wanted = np.zeros_like(found)
    if scale == 2:
        wanted[8:12, 20:24] = True
    else:
        wanted[1, 2] = True
    np.testing.assert_array_equal(found, wanted)


def test_a_map_alone_lies_on_white_in_its_colours(group: MakeHeatmap, tmp_path: Path) -> None:
    """On a slide of 128 × 64 pixels: 1 of the picture to 1 of the slide."""
    values = np.full((1, 4, 12), np.nan, np.float32)
    values[0, 1, 2:7] = [0, 0.25, 0.5, 0.75, 1]
    codes = np.ones((4, 12), np.uint8)
    codes[0, 0] = 2
    codes[1, 2] = 2  # damaged, but there is a value
    path = group([values], valid=codes, origin=(8.0, 16.0), size=(128, 64), name="a")
    assert export_png(path, tmp_path / "a.png", max_size=128, colormap="magma") is None
    picture = shown(tmp_path / "a.png", 128, 64)
    wanted = np.full((64, 128, 3), 255, np.uint8)
    wanted[16:24, 8:16] = figures.stripes(64, 128)[16:24, 8:16]
    colours = matplotlib.colormaps["magma"](values[0, 1, 2:7].astype(np.float64), bytes=True)
    for k in range(5):
        wanted[24:32, 24 + 8 * k : 32 + 8 * k] = colours[k, :3]
    np.testing.assert_array_equal(picture, wanted)


def test_a_range_clips_and_alpha_blends(group: MakeHeatmap, tmp_path: Path) -> None:
    values = np.array([[[-5, 0, 5, 10, 99]]], np.float32)
    path = group([values], size=(64, 64), name="a")
    write_svs(tmp_path / "a.svs", Size(64, 64), _grey, levels=1, quality=100)
    found = export_png(path, tmp_path / "a.png", value_range=(0, 10), alpha=0.25)
    assert found == tmp_path / "a.svs"
    # The picture is small: it is enlarged 8 times, and so are the cells.
    picture = shown(tmp_path / "a.png", 512, 512).astype(np.float64)
    colours = matplotlib.colormaps["viridis"]([0.0, 0.0, 0.5, 1.0, 1.0], bytes=True)[:, :3]
    for k in range(5):
        wanted = 0.75 * 100 + 0.25 * colours[k]
        assert np.abs(picture[:64, 64 * k : 64 * k + 64] - wanted).max() <= 2
    assert np.abs(picture[64:] - 100).max() <= 2


def _grey(box: Box) -> npt.NDArray[np.uint8]:
    return np.full((box.height, box.width, 3), 100, np.uint8)


def test_the_channel_is_chosen(group: MakeHeatmap, tmp_path: Path) -> None:
    values = np.zeros((2, 8, 8), np.float32)
    values[1, 0, 0] = 1
    path = group([values], channels=["a", "b"])
    with pytest.raises(ConfigError, match="several channels"):
        export_png(path, tmp_path / "a.png")
    export_png(path, tmp_path / "a.png", channel="b", max_size=64)
    picture = shown(tmp_path / "a.png", 64, 64)
    assert (picture[:8, :8] == picture[0, 0]).all()
    assert (picture[8:] == picture[8, 0]).all()
    assert (picture[0, 0] != picture[8, 0]).any()


def test_labels_have_their_own_colours(group: MakeHeatmap, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(8, dtype=np.uint8)[None], 8, axis=0)[None]
    named = {"colors": [{"label-value": 2, "rgba": [1, 200, 3, 255]}]}
    path = group([labels], fill=0, **{"image-label": named})
    export_png(path, tmp_path / "a.png", max_size=64)
    picture = shown(tmp_path / "a.png", 64, 64)
    assert (picture[:, :8] == 255).all()
    assert (picture[:, 16:24] == [1, 200, 3]).all()
    assert len({tuple(picture[0, 8 * k]) for k in range(8)}) == 8


def test_slides_are_found_beside_the_heatmap_or_where_they_are_said_to_be(
    group: MakeHeatmap, tmp_path: Path
) -> None:
    opened = open_heatmap(group([np.ones((1, 8, 8), np.float32)], name="a"))
    far = tmp_path / "far"
    far.mkdir()
    (far / "a.svs").write_text("")
    assert find_slide(opened, None) is None
    assert find_slide(opened, far) == far / "a.svs"
    assert find_slide(opened, far / "a.svs") == far / "a.svs"
    (far / "a.svs").rename(tmp_path / "a.svs")
    assert find_slide(opened, None) == tmp_path / "a.svs"
    assert find_slide(opened, far) == far  # a slide that is a folder
    # What cannot be opened is told; without the slide there is no need to.
    with pytest.raises(CannotOpen):
        export_png(opened.path, tmp_path / "a.png")
    with pytest.raises(CannotOpen, match=r"far holds no a.svs, the slide of .*, and is no slide"):
        export_png(opened.path, tmp_path / "a.png", slide=far)
    assert not (tmp_path / "a.png").exists()
    assert export_png(opened.path, tmp_path / "a.png", plain=True, max_size=64) is None


def test_another_slide_is_refused(group: MakeHeatmap, tmp_path: Path) -> None:
    path = group([np.ones((1, 8, 8), np.float32)], name="a")
    write_svs(tmp_path / "a.svs", Size(65, 64), _grey, levels=1)
    with pytest.raises(ConfigError, match=r"65×64 pixels, but .* a slide of 64×64"):
        export_png(path, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("fill", [np.nan, 0.0, -7.5, np.inf])
def test_a_map_of_one_value_has_a_picture(group: MakeHeatmap, tmp_path: Path, fill: float) -> None:
    path = group([np.full((1, 8, 8), fill, np.float32)], name="a $x_1$ \u4e2d")
    export_png(path, tmp_path / "a.png", max_size=64)
    assert len(np.unique(shown(tmp_path / "a.png", 64, 64).reshape(-1, 3), axis=0)) == 1


def test_infinite_values_have_the_last_colours(group: MakeHeatmap, tmp_path: Path) -> None:
    values = np.zeros((1, 2, 2), np.float32)
    values[0] = [[0.1, 0.3], [-np.inf, np.inf]]
    export_png(group([values]), tmp_path / "a.png", max_size=64)
    picture = shown(tmp_path / "a.png", 64, 64)
    np.testing.assert_array_equal(picture[48, 16], picture[16, 16])
    np.testing.assert_array_equal(picture[48, 48], picture[16, 48])
    assert (picture[16, 16] != picture[16, 48]).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.5}, "alpha must be from 0 to 1"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1"),
        ({"max_size": 10}, "size must be from 64 to 4096"),
        ({"max_size": 4097}, "size must be from 64 to 4096"),
        ({"value_range": (1, 1)}, "range 1 to 1 must be finite, and ascend"),
        ({"value_range": (0, float("inf"))}, "must be finite"),
        ({"colormap": "virids"}, "no colour map 'virids'; did you mean viridis"),
        ({"colormap": "!"}, "try viridis"),
        ({"channel": 7}, "no such channel"),
    ],
)
def test_arguments_out_of_range_are_refused(
    group: MakeHeatmap, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    path = group([np.ones((1, 8, 8), np.float32)])
    with pytest.raises(ConfigError, match=words):
        export_png(path, tmp_path / "a.png", **options)
    assert not (tmp_path / "a.png").exists()


def test_without_matplotlib_the_extra_is_named(
    group: MakeHeatmap, tmp_path: Path, uninstalled: Callable[[str], None]
) -> None:
    uninstalled("matplotlib")
    with pytest.raises(ConfigError, match=r'pip install "streamwsi\[export\]"'):
        export_png(group([np.ones((1, 2, 2), np.float32)]), tmp_path / "a.png")


def test_memory_does_not_grow_with_the_map(
    sparse: Callable[..., tuple[Path, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heatmap, "_BLOCK_BYTES", 256 << 10)
    monkeypatch.setattr(json_files, "_MAX_JSON_BYTES", 1 << 20)
    path, wide = sparse(2500, 3000, (1, 256, 256), size=(24000, 20000))
    wide[0, 2400:, 2900:] = 1
    frame = Frame(120, 100, (200.0, 200.0))
    opened = open_heatmap(path)
    tracemalloc.start()
    try:
        plane = frames.values(opened, 0, frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2500 * 3000 * 4 / 6
    assert np.isnan(plane[:96]).all()
    assert (plane[96:, 116:] == 1).all()


@pytest.mark.parametrize(
    ("most", "length"),
    [(1, 1), (1.99, 1), (2, 2), (4.9, 2), (5, 5), (10, 10), (499, 200), (0.7, 0.5)],
)
def test_scale_bars_have_round_lengths(most: float, length: float) -> None:
    assert figures._round_length(most) == pytest.approx(length)
