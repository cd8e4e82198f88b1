"""Rasters against loops over single values, and against what PyDmed returned."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import CannotRead, CannotWrite, ConfigError
from streamwsi.pdmcsv import format_rows, mean, order, pydmed, raster, reader
from streamwsi.pdmcsv.raster import to_raster

Array = npt.NDArray[np.float64]
SAMPLES = (
    "pydmed_sample_1_end_to_end",
    "pydmed_sample_2_stride_below_kernel",
    "pydmed_sample_3_overlap_C3_5x5_level2",
)
LINE = b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 1,3\n"


class Window(NamedTuple):
    y: int
    x: int
    kernel: int
    values: Array

    def line(self, H: int, W: int) -> bytes:
        at = np.array([self.y]), np.array([self.x])
        return format_rows(*at, H, W, 0, self.kernel, 1.0, self.values[None])


def naive_mean(windows: list[Window], H: int, W: int, scale: int) -> Array:
    """Each value into each cell it touches, by exact areas."""
    _, h, w = windows[0].values.shape
    cell_y = Fraction(windows[0].kernel, h * scale)
    cell_x = Fraction(windows[0].kernel, w * scale)
    rows, columns = math.ceil(H / cell_y), math.ceil(W / cell_x)
    sums = np.zeros((rows, columns, len(windows[0].values)))
    areas = np.zeros((rows, columns, 1))
    for window in windows:
        values = window.values.repeat(scale, 1).repeat(scale, 2)
        for i, j in np.ndindex(values.shape[1:]):
            top, left = window.y / cell_y + i, window.x / cell_x + j
            for row in {math.floor(top), math.ceil(top)} & {*range(rows)}:
                for column in {math.floor(left), math.ceil(left)} & {*range(columns)}:
                    area = (1 - abs(row - top)) * (1 - abs(column - left))
                    sums[row, column] += float(area) * values[:, i, j]
                    areas[row, column] += float(area)
    return np.divide(sums, areas, out=np.full_like(sums, np.nan), where=areas > 0)


def naive_pydmed(windows: list[Window], scale: int) -> Array:
    """The rules in README order: a dict of cells, then only what occurs."""
    cells: dict[tuple[int, int], Array] = {}
    for window in windows:
        C, h, w = window.values.shape
        size = window.kernel / h
        points = window.values.reshape(C, h * w)
        for k in range(h * h):
            i, j = divmod(k, h)
            cell = math.floor(i + window.y / size), math.floor(j + window.x / size)
            cells[cell] = points[:, k]
    ys, xs = sorted({y for y, _ in cells}), sorted({x for _, x in cells})
    raster = np.zeros((len(ys), len(xs), len(windows[-1].values)))
    for (y, x), values in cells.items():
        raster[ys.index(y), xs.index(x)] = values
    return raster.repeat(scale, 0).repeat(scale, 1)


@st.composite
def slides(draw: st.DrawFn, square: bool = False) -> tuple[list[Window], int, int]:
    """Windows with overlaps, gaps, and parts outside; sizes may be multiples of each other."""
    H, W = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    C, kernel, h = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    w = h if square else draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    step = draw(st.sampled_from([1, kernel]))
    windows = []
    for _ in range(draw(st.integers(1, 8))):
        times = draw(st.sampled_from([1, 1, 2]))
        y = draw(st.integers(-kernel // step, H // step)) * step
        x = draw(st.integers(-kernel // step, W // step)) * step
        values = rng.integers(-9, 9, (C, h * times, w * times)) / 4
        windows.append(Window(y, x, kernel * times, values))
    return windows, H, W


def write(path: Path, windows: list[Window], H: int, W: int) -> Path:
    path.write_bytes(b"".join(window.line(H, W) for window in windows))
    return path


def same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rasters")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, groups and bands of a few values, so that windows lie across them."""
    monkeypatch.setattr(reader, "_BLOCK", 100)
    monkeypatch.setattr(order, "_READ_BYTES", 100)
    monkeypatch.setattr(mean, "_GROUP", 20)
    monkeypatch.setattr(mean, "_BAND", 50)
    monkeypatch.setattr(pydmed, "_KEPT", 20000)


@pytest.mark.parametrize("name", SAMPLES)
def test_pydmed_mode_gives_pydmeds_arrays(shared: Path, name: str, tmp_path: Path) -> None:
    path = shared / "pdmcsv" / f"{name}.csv"
    wanted = np.load(path.with_suffix(".npy"))
    assert same(to_raster(path, "pydmed"), wanted)
    assert same(to_raster(path, "pydmed", out=tmp_path / "raster.npy"), wanted)


@pytest.mark.parametrize("name", SAMPLES)
def test_means_of_the_samples(shared: Path, name: str) -> None:
    path = shared / "pdmcsv" / f"{name}.csv"
    windows = []
    for rows in reader.read(path):
        corners = zip(rows.y.tolist(), rows.x.tolist(), rows.kernel.tolist(), strict=True)
        windows += [Window(*at, each) for at, each in zip(corners, rows.values, strict=True)]
    with np.errstate(invalid="ignore"):
        wanted = naive_mean(windows, int(rows.H[0]), int(rows.W[0]), 1)
    np.testing.assert_allclose(to_raster(path), wanted, rtol=1e-12, atol=1e-14)


@given(slide=slides(), scale=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_means_are_those_of_a_loop(
    folder: Path, slide: tuple[list[Window], int, int], scale: int
) -> None:
    windows, H, W = slide
    found = to_raster(write(folder / "mean.csv", *slide), scale=scale)
    np.testing.assert_allclose(found, naive_mean(windows, H, W, scale), rtol=1e-12, atol=1e-12)


@given(slide=slides(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_the_order_of_the_lines_does_not_matter(
    folder: Path, slide: tuple[list[Window], int, int], seed: int
) -> None:
    windows, H, W = slide
    rng = np.random.default_rng(seed)
    thirds = [
        each._replace(values=each.values / 3 * 10.0 ** rng.integers(-9, 9)) for each in windows
    ]
    path = folder / "order.csv"
    wanted = to_raster(write(path, sorted(thirds, key=lambda each: each[:2]), H, W))
    for _ in range(3):
        shuffled = [thirds[i] for i in rng.permutation(len(thirds))]
        assert same(to_raster(write(path, shuffled, H, W)), wanted)


def test_the_order_of_lines_for_the_same_place_does_not_matter(tmp_path: Path) -> None:
    values = [1e16, 1.0, -1e16, 0.1, 1.0, 3.0]  # the sum depends on the order
    windows = [Window(3, 3, 3, np.full((1, 1, 1), value)) for value in values]
    found = set()
    for turn in range(len(windows)):
        path = write(tmp_path / "slide.csv", windows[turn:] + windows[:turn], 9, 9)
        found.add(float(to_raster(path)[1, 1, 0]))
    assert len(found) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seed", range(4))
def test_blocks_and_bands_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(-9, 200, (60, 2)).tolist()
    windows = [Window(y, x, 9, rng.normal(size=(2, 3, 4))) for y, x in corners + corners[:9]]
    path, lines = tmp_path / "slide.csv", sorted(windows, key=lambda each: each[:2])
    shuffled = to_raster(write(path, windows, 150, 190))
    np.testing.assert_allclose(shuffled, naive_mean(windows, 150, 190, 1), rtol=1e-11, atol=1e-12)
    assert same(to_raster(write(path, lines, 150, 190)), shuffled)
    compacted = to_raster(path, "pydmed")
    monkeypatch.undo()
    assert same(to_raster(path), shuffled)
    assert same(to_raster(path, "pydmed"), compacted)


def test_a_window_on_the_cells_keeps_its_values_exactly(tmp_path: Path) -> None:
    values = np.array([0.1, -0.0, 1e300, 5e-324, np.inf, np.nan]).reshape(1, 3, 2)
    raster = to_raster(write(tmp_path / "slide.csv", [Window(7, 14, 7, values)], 21, 28))
    assert raster.shape == (9, 8, 1)
    assert raster[3:6, 4:6, 0].tobytes() == values.tobytes()
    assert np.isnan(np.delete(raster.ravel(), [28, 29, 36, 37, 44, 45])).all()


def test_an_overlap_is_averaged_and_a_nan_in_it_stays(tmp_path: Path) -> None:
    windows = [Window(0, 0, 2, np.array([[[1.0, 2.0]]])), Window(0, 1, 2, np.array([[[5.0, 9.0]]]))]
    path = write(tmp_path / "slide.csv", windows, 2, 3)
    assert to_raster(path)[:, :, 0].tolist() == [[1.0, 3.5, 9.0]]
    windows.append(Window(0, 0, 2, np.array([[[np.nan, np.inf]]])))
    raster = to_raster(write(path, windows, 2, 3))[:, :, 0].tolist()
    assert repr(raster) == "[[nan, inf, 9.0]]"


@given(slide=slides(square=True), scale=st.integers(1, 2), repeats=st.booleans())
@settings(deadline=None, max_examples=30)
def test_pydmed_mode_is_that_of_a_loop(
    folder: Path, slide: tuple[list[Window], int, int], scale: int, repeats: bool
) -> None:
    windows, H, W = slide
    if repeats:
        windows = [
            *windows,
            *(each._replace(values=each.values[:1]) for each in windows),
            windows[0],
        ]
    found = to_raster(write(folder / "pydmed.csv", windows, H, W), "pydmed", scale=scale)
    assert same(found, naive_pydmed(windows, scale))


def test_pydmed_mode_floors_what_float64_gives(tmp_path: Path) -> None:
    windows = [Window(0, x, 224, np.ones((1, 3, 3)) * x) for x in (0, 224, 448, 1120)]
    assert math.floor(1120 / (224 / 3)) == 14  # not 15
    found = to_raster(write(tmp_path / "slide.csv", windows, 224, 2000), "pydmed")
    assert same(found, naive_pydmed(windows, 1))


def test_pydmed_mode_reads_wide_maps_from_the_front(tmp_path: Path) -> None:
    wide = Window(0, 0, 4, np.arange(12.0).reshape(2, 2, 3))
    found = to_raster(write(tmp_path / "slide.csv", [wide], 4, 4), "pydmed")
    assert found.tolist() == [[[0, 6], [1, 7]], [[2, 8], [3, 9]]]


def test_pydmed_mode_takes_what_is_no_number_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(b"0, 0, 9, 9, 0, 4, x, 1, 2, 2,1, None, abc, inf")  # no LF, no downsample
    assert repr(to_raster(path, "pydmed")[..., 0].tolist()) == "[[1.0, nan], [nan, inf]]"


def test_pydmed_mode_takes_lines_of_the_wrong_length_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "slide.csv"
    head = b"0, %d, 9, 9, 0, 2, 1.0, 1, 1, 1,"
    path.write_bytes(
        head % 0 + b"5\n" + head % 2 + b"6, 7\n" + head % 4 + b"8\n" + head % 0 + b"\n"
    )
    with pytest.warns(UserWarning, match=r"count as zeros: 1; the first is line 2"):
        # The empty text after the last comma is one value, NaN.
        raster = to_raster(path, "pydmed")
    assert repr(raster[0, :, 0].tolist()) == "[nan, 0.0, 8.0]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no lines"),
        (LINE + b"\n", "line 2: the line has 1 fields"),
        (LINE + b"0, 0, 10, 10, 0, 5, 1.0, 1, 1\n", "line 2: the line has 9 fields"),
        (LINE + b"y, 0, 10, 10, 0, 5, 1.0, 1, 1, 1,3\n", "line 2: PyDmed cannot place .* y, 0"),
        (b"0, 0, 10, W, 0, 5, 1.0, 1, 1, 1,3\n", "line 1: PyDmed cannot place"),
        (LINE + b"0, 0, 10, 10, 0, 0, 1.0, 1, 1, 1,3\n", "line 2: PyDmed cannot place"),
        (LINE + b"0, 0, 10, 10, 0, 5, 1.0, 1, 2, 1,3, 4\n", "line 2: PyDmed cannot place"),
        (LINE + b"0, 0, 10, 10, 0, 5, 1.0, 1, 9e9, 9e9,3\n", "line 2: PyDmed cannot place"),
        (b"0, 0, 9, 9, 0, 5, 1.0, 2, 1, 1,3, 4\n" + LINE, "some lines have C = 2"),
    ],
)
def test_files_that_pydmed_cannot_read(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(text)
    with pytest.raises(CannotRead, match=message):
        to_raster(path, "pydmed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "has no lines"),
        (LINE * 3 + b"\n", "line 4: the line is blank"),
        (b"5" + LINE + LINE + LINE[:-1] + b"x\n", "line 3: value 0 is '3x'"),
        (LINE + LINE.replace(b"10,", b"11,"), "line 2: level, H, W, C and the size"),
        (LINE + LINE.replace(b" 5,", b" 4,"), "line 2: level, H, W, C and the size"),
        (LINE + LINE.replace(b"1, 1, 1,3", b"2, 1, 1,3, 4"), "line 2: level, H, W, C and"),
        (LINE + LINE.replace(b"1, 1, 1,3", b"1, 1, 2,3, 4"), "line 2: level, H, W, C and"),
    ],
)
def test_files_that_make_no_mean(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(text)
    with pytest.raises(CannotRead, match=message):
        to_raster(path)


@pytest.mark.parametrize("text", [b"7, 0" + LINE[4:] + LINE, LINE + b"7, 0" + LINE[4:]])
def test_lines_left_out_are_reported(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(text + b"torn\n" + LINE[:-2] + b"x\n" + LINE[:-1])
    with pytest.warns(UserWarning, match=r"lines left out: 3; the first: .*slide.csv, line 3: "):
        raster = to_raster(path, errors="skip")
    assert raster[:, 0, 0].tolist() == [3.0, 3.0]


def test_rasters_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(LINE.replace(b"10, 10", b"99999999, 99999999"))
    with pytest.raises(ConfigError, match=r"takes? .* bytes; give out="):
        to_raster(path)
    with pytest.raises(ConfigError, match=r"bytes, but .* has .* bytes free"):
        to_raster(path, out=tmp_path / "raster.npy")
    path.write_bytes(LINE.replace(b"10, 10", b"10, 9007199254740992").replace(b"1,3", b"2,3, 4"))
    with pytest.raises(CannotRead, match=r"H, W or kernel is too large: 10, 9007199254740992, 5"):
        to_raster(path, scale=256)
    path.write_bytes(LINE)
    monkeypatch.setattr(raster, "_LARGEST_IN_MEMORY", 31)
    with pytest.raises(ConfigError, match=r"2 × 2 × 1 numbers, which take 32 bytes"):
        to_raster(path)
    assert {each.name for each in tmp_path.iterdir()} == {"slide.csv"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "median"}, 'mode must be "mean" or "pydmed"'),
        ({"scale": 0}, "scale must be between"),
        ({"errors": "ignore"}, 'errors must be "raise" or "skip"'),
        ({"mode": "pydmed", "errors": "skip"}, "PyDmed's rules leave no line out"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(LINE)
    with pytest.raises(ConfigError, match=message):
        to_raster(path, **settings)


def test_a_raster_in_a_file(tmp_path: Path) -> None:
    path, out = tmp_path / "slide.csv", tmp_path / "raster.npy"
    out.write_bytes(b"older")
    path.write_bytes(LINE + b"not a line\n")
    with pytest.raises(CannotRead, match="line 2"):
        to_raster(path, out=out)
    assert out.read_bytes() == b"older"
    path.write_bytes(LINE)
    raster = to_raster(path, out=out)
    assert isinstance(raster, np.memmap)
    assert not raster.flags.writeable
    assert same(np.load(out), to_raster(path))
    assert {each.name for each in tmp_path.iterdir()} == {"slide.csv", "raster.npy"}
    with pytest.raises(CannotWrite, match=r"missing.raster\.npy cannot be written: No such file"):
        to_raster(path, out=tmp_path / "missing" / "raster.npy")
    with pytest.raises(CannotRead, match=r"none\.csv cannot be read"):
        to_raster(tmp_path / "none.csv", out=out)


def write_maps(path: Path, n: int, shuffled: bool) -> int:
    """``n × n`` windows with 4 maps of 16 × 16 values; returns the bytes of their raster."""
    rng = np.random.default_rng(5)
    corners = np.divmod(np.arange(n * n), n)
    places = rng.permutation(n * n) if shuffled else np.arange(n * n)
    with open(path, "wb") as file:
        for part in np.array_split(places, n):
            y, x = (64 * corner[part] for corner in corners)
            values = rng.random((len(part), 4, 16, 16), np.float32)
            file.write(format_rows(y, x, 64 * n, 64 * n, 0, 64, 1.0, values))
    return n * n * 1024 * 8


@pytest.mark.parametrize(("mode", "shuffled"), [("mean", True), ("pydmed", False)])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, shuffled: bool
) -> None:
    monkeypatch.setattr(pydmed, "_KEPT", 1 << 20)
    path = tmp_path / "slide.csv"
    write_maps(path, 40, shuffled)
    assert path.stat().st_size > 30e6
    tracemalloc.start()
    try:
        raster = to_raster(path, mode, out=tmp_path / "raster.npy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert raster.shape == (640, 640, 4)
    assert peak < 20e6


LIMITED = """
import resource, sys
from pathlib import Path
from streamwsi.pdmcsv import to_raster
path, out, mode, room = sys.argv[1:]
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(room)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
raster = to_raster(path, mode, out=out)
try:
    Path(path).read_bytes()
except MemoryError:
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(("mode", "shuffled"), [("mean", False), ("mean", True), ("pydmed", True)])
def test_a_file_larger_than_the_memory_allowed(tmp_path: Path, mode: str, shuffled: bool) -> None:
    path, out = tmp_path / "slide.csv", tmp_path / "raster.npy"
    mapped = write_maps(path, 120, shuffled)
    room = 2 * mapped + (64 << 20)  # the raster is mapped, to be written and to be looked at
    assert path.stat().st_size > room - mapped
    command = [sys.executable, "-c", LIMITED, str(path), str(out), mode, str(room)]
    done = subprocess.run(command, capture_output=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (7, b"")  # the file itself did not fit
    assert np.load(out, mmap_mode="r").shape == (1920, 1920, 4)
