"""The row format, both ways, against loops over single values."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamwsi.errors import CannotRead, ConfigError
from streamwsi.pdmcsv import format_rows, reader
from streamwsi.pdmcsv.reader import OnError, Rows, read
from streamwsi.pdmcsv.rows import HEAD

SAMPLES = (
    "pydmed_sample_1_end_to_end",
    "pydmed_sample_2_stride_below_kernel",
    "pydmed_sample_3_overlap_C3_5x5_level2",
)
GOOD = b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 2,1, 2\n"
BAD = {
    b"1, 2, 3\n": "3 fields",
    b"\n": "blank",
    b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 2,1\n": "there are 1 values, but C × h × w = 1 × 1 × 2",
    b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 2,1, 2, 3\n": "there are 3 values",
    b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 2,1, x\n": "value 1 is 'x', which is not a number",
    b"0, 0, 10, 10, 0, 5, 1.0, 1, 1, 2,1, \n": "value 1 is '', which is not a number",
    b"0, 0.5, 10, 10, 0, 5, 1.0, 1, 1, 2,1, 2\n": "x is 0.5, but must be an integer",
    b"0, 0, 10, 10, -1, 5, 1.0, 1, 1, 2,1, 2\n": "level is -1",
    b"0, 0, 10, nan, 0, 5, 1.0, 1, 1, 2,1, 2\n": "W is nan",
    b"0, 0, 10, 10, 0, 0, 1.0, 1, 1, 2,1, 2\n": "kernel is 0",
    b"0, 0, 1e300, 10, 0, 5, 1.0, 1, 1, 2,1, 2\n": "H is 1e300",
    b"0, 0, 10, 10, 0, 5, -1.0, 1, 1, 2,1, 2\n": "downsample is -1.0, which is not positive",
    b"0, 0, 10, 10, 0, 5, 1.0, 1, -1, -2,1, 2\n": "h is -1",
    b"0, 0, 10, 10, 0, 5, 1.0, \xff, 1, 2,1, 2\n": "C is '\ufffd', which is not a number",
}


def naive_rows(
    y: list[int], x: list[int], fixed: tuple[Any, ...], values: npt.NDArray[Any]
) -> bytes:
    """One value at a time, as the format's description says."""
    text = ""
    for top, left, window in zip(y, x, values, strict=True):
        text += ", ".join(repr(each) for each in (top, left, *fixed, *window.shape)) + ","
        text += ", ".join(repr(value.item()) for value in window.ravel()) + "\n"
    return text.encode()


def joined(batches: list[Rows], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(rows, name) for rows in batches])


@pytest.fixture(params=[None, 64, 300])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads with small blocks too, so that lines lie across them."""
    if request.param:
        monkeypatch.setattr(reader, "_BLOCK", request.param)


@given(
    values=hnp.arrays(
        st.sampled_from([*map(np.dtype, ("f8", "f4", "f2", ">f8", "i4", "u1", "u8"))]),
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=3),
    ),
    corner=st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 2**40)),
    downsample=st.floats(1e-3, 1e20),
)
@settings(deadline=None, max_examples=100)
def test_rows_are_those_of_a_loop(
    values: npt.NDArray[Any], corner: tuple[int, int], downsample: float
) -> None:
    y = [corner[0] + 3 * i for i in range(len(values))]
    x = [corner[1] - 7 * i for i in range(len(values))]
    fixed = (913, 1107, 2, 160, downsample)
    text = format_rows(np.array(y), np.array(x), *fixed, values)
    assert text == naive_rows(y, x, fixed, values)


@pytest.mark.parametrize("shape", [(700, 1, 1, 1), (3, 2, 50, 60), (40, 3, 7, 5)])
def test_rows_of_many_values(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    values = (rng.normal(size=shape) * 10.0 ** rng.integers(-12, 20, shape)).astype(np.float32)
    values.ravel()[::17] = np.nan
    y, x = rng.integers(0, 10**6, (2, shape[0]))
    fixed = (90000, 100000, 1, 256, 4.000121)
    assert format_rows(y, x, *fixed, values) == naive_rows(y.tolist(), x.tolist(), fixed, values)


def test_the_example_of_the_format() -> None:
    values = [0.1, 0.25, -3.0, 1e-8, 1 / 3, np.nan, 7.0, np.inf]
    text = format_rows(
        np.array([256]),
        np.array([512]),
        4096,
        4096,
        1,
        256,
        4.000121,
        np.array(values, np.float32).reshape(1, 2, 2, 2),
    )
    assert text == (
        b"256, 512, 4096, 4096, 1, 256, 4.000121, 2, 2, 2,0.10000000149011612, 0.25, -3.0, "
        b"9.99999993922529e-09, 0.3333333432674408, nan, 7.0, inf\n"
    )


def test_no_rows() -> None:
    none = np.empty(0, np.int64)
    assert format_rows(none, none, 9, 9, 0, 3, 1.0, np.empty((0, 1, 2, 2))) == b""


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3), "f4"), ((2, 1, 0, 1), "f4"), ((3, 1, 1, 1), "f4"), ((2, 1, 1, 1), "c8")],
)
def test_values_that_cannot_be_rows(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"need values|real numbers"):
        format_rows(np.arange(2), np.arange(2), 9, 9, 0, 3, 1.0, np.zeros(shape, dtype))


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_read_and_write_back_byte_by_byte(shared: Path, name: str) -> None:
    path = shared / "pdmcsv" / f"{name}.csv"
    text = b""
    for rows in read(path):
        fixed = [int(each[0]) for each in (rows.H, rows.W, rows.level, rows.kernel)]
        H, W, level, kernel = fixed
        text += format_rows(
            rows.y, rows.x, H, W, level, kernel, float(rows.downsample[0]), rows.values
        )
    assert text == path.read_bytes()


@pytest.mark.usefixtures("block")
def test_round_trip_of_lines_of_several_shapes(tmp_path: Path) -> None:
    path = tmp_path / "slide.csv"
    rng = np.random.default_rng(3)
    shapes = [(1, 1, 1), (2, 3, 4), (2, 3, 4), (1, 1, 1), (3, 5, 1)]
    windows = [rng.normal(size=shape) for shape in shapes]
    lines = [
        format_rows(np.array([-i]), np.array([i * i]), 50, 60 + i, i, 7, 1 + i / 7, window[None])
        for i, window in enumerate(windows)
    ]
    path.write_bytes(b"".join(lines))
    batches = [*read(path)]
    assert joined(batches, "line").tolist() == [1, 2, 3, 4, 5]
    assert joined(batches, "y").tolist() == [0, -1, -2, -3, -4]
    assert joined(batches, "x").tolist() == [0, 1, 4, 9, 16]
    assert joined(batches, "H").tolist() == [50] * 5
    assert joined(batches, "W").tolist() == [60, 61, 62, 63, 64]
    assert joined(batches, "level").tolist() == [0, 1, 2, 3, 4]
    assert joined(batches, "kernel").tolist() == [7] * 5
    assert joined(batches, "downsample").tolist() == [1 + i / 7 for i in range(5)]
    values = itertools.chain.from_iterable(rows.values for rows in batches)
    for found, wanted in zip(values, windows, strict=True):
        assert np.array_equal(found, wanted)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_an_error_that_names_it(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(GOOD * 20 + line + GOOD)
    with pytest.raises(CannotRead, match=f"slide.csv, line 21: .*{BAD[line]}"):
        [*read(path)]


@pytest.mark.usefixtures("block")
def test_bad_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(b"".join(GOOD + line for line in BAD) + GOOD + GOOD[:-1])
    reader = read(path, errors="skip")
    for _ in range(2):
        assert joined([*reader], "line").tolist() == [2 * i + 1 for i in range(len(BAD) + 1)]
        assert reader.skipped == len(BAD) + 1
        assert len(reader.problems) == 10
        assert f"{path}, line 4: the line is blank" in reader.problems


@pytest.mark.usefixtures("block")
def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "slide.csv"
    for cut in range(1, len(GOOD)):
        path.write_bytes(GOOD + GOOD[:-cut])
        with pytest.raises(CannotRead, match="line 2: the file ends within the line"):
            [*read(path)]
        reader = read(path, errors="skip")
        assert joined([*reader], "line").tolist() == [1]
        assert reader.skipped == 1


@given(st.lists(st.tuples(st.integers(0, 37), st.sampled_from(b"0123456789.,- e\nnx")), max_size=3))
@settings(deadline=None, max_examples=200)
def test_lines_with_garbage_are_taken_as_a_loop_takes_them(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    line = bytearray(GOOD)
    for at, byte in changes:
        line[min(at, len(line) - 2)] = byte
    path = tmp_path_factory.mktemp("garbage") / "slide.csv"
    path.write_bytes(bytes(line))
    wanted = [naive_line(each) for each in bytes(line).split(b"\n")[:-1]]
    reader = read(path, errors="skip")
    found = [row for rows in reader for row in rows.values.reshape(len(rows), -1).tolist()]
    assert repr(found) == repr([values for values in wanted if values is not None])
    assert reader.skipped == len(reader.problems) == wanted.count(None)


SHARED = b", 9, 8, 0, 3, 1.0, 1, 1, 1,"
PIECES = st.sampled_from([b"1, 1", b"1, -7", b"1, 0.5", b"1", b"1, 1, 1", b"", b"1, x"])


@given(
    st.lists(
        st.one_of(
            st.integers(-99, 99).map(lambda x: b"5, %d%b0.25" % (x, SHARED)),
            st.lists(PIECES, min_size=1, max_size=4).map(SHARED.join),
        ),
        min_size=1,
        max_size=4,
    )
)
@example([SHARED.join([b"1, 1", b"1", b"1, 1"]), b"1"])
@example([b"1, 1, 1, 1, 1, 1, 1, 1, 1, 1,7"] * 2)  # the shared fields fit in two places
@settings(deadline=None, max_examples=200)
def test_shared_fields_are_cut_out_only_where_each_line_has_them_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shared.csv"
    path.write_bytes(b"\n".join([*lines, b""]))
    reader = read(path, errors="skip")
    found = {
        n: row
        for rows in reader
        for n, *row in zip(rows.line, rows.y, rows.x, rows.values, strict=True)
    }
    naive = {n: naive_line(line) for n, line in enumerate(lines, 1)}
    wanted = {n: values for n, values in naive.items() if values is not None}
    assert {n: values.ravel().tolist() for n, (_, _, values) in found.items()} == wanted
    for n, (y, x, _) in found.items():
        assert [y, x] == [float(field) for field in lines[n - 1].split(b",")[:2]]
    assert reader.skipped == len(lines) - len(wanted)


def naive_line(line: bytes) -> list[float] | None:
    """The values of a line, None where it is not right."""
    try:
        numbers = [float(field) for field in line.split(b",")]
    except ValueError:
        return None
    if len(numbers) < 10:
        return None
    *integers, downsample = [*numbers[:6], *numbers[7:10], numbers[6]]
    if any(abs(number) > 2**53 or number != int(number) for number in integers):
        return None
    if min(integers[2], integers[3], integers[5], *integers[6:]) < 1 or integers[4] < 0:
        return None
    if not 0 < downsample < float("inf"):
        return None
    values = numbers[10:]
    return values if len(values) == integers[6] * integers[7] * integers[8] else None


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRead, match=r"missing\.csv cannot be read: No such file"):
        [*read(tmp_path / "missing.csv")]
    with pytest.raises(CannotRead, match="cannot be read: Is a directory"):
        [*read(tmp_path)]
    (tmp_path / "empty.csv").write_bytes(b"")
    assert [*read(tmp_path / "empty.csv")] == []
    wrong: Any = "ignore"
    with pytest.raises(ConfigError, match='errors must be "raise" or "skip"'):
        read(tmp_path, errors=wrong)
    monkeypatch.setattr(reader, "_LONGEST_LINE", 1000)
    (tmp_path / "long.csv").write_bytes(GOOD + b"1" * 300000)
    with pytest.raises(CannotRead, match=r"long.csv, line 2: the line is longer"):
        [*read(tmp_path / "long.csv")]


@pytest.mark.parametrize("errors", ["raise", "skip"])
def test_numbers_without_shape_take_no_memory(tmp_path: Path, errors: OnError) -> None:
    path = tmp_path / "slide.csv"
    path.write_bytes(b"0, 0, 9, 9, 0, 5, 1.0, 99999999, 99999999, 99999999,1\n")
    reader = read(path, errors)
    if errors == "skip":
        assert list(reader) == []
        assert reader.skipped == 1
    else:
        with pytest.raises(CannotRead, match="there are 1 values"):
            list(reader)


def test_names() -> None:
    assert HEAD == ("y", "x", "H", "W", "level", "kernel", "downsample", "C", "h", "w")
