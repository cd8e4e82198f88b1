"""Numbers to text against ``repr`` and ``str``, text to numbers against ``float``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.pdmcsv import fields, format_rows
from streamwsi.pdmcsv.fields import Table, parse_lines
from streamwsi.pdmcsv.rows import HEAD

RNG = np.random.default_rng(7)
POWERS = np.concatenate(
    [2.0 ** np.arange(-1074, 1024), [float(f"1e{i}") for i in range(-323, 309)]]
)
ARRAYS = {
    "bit patterns": RNG.integers(0, 2**64, 30000, dtype=np.uint64).view(np.float64),
    "subnormal": RNG.integers(0, 2**52, 3000, dtype=np.uint64).view(np.float64),
    "few bits": (2 ** RNG.integers(0, 53, 500).astype(np.uint64)).view(np.float64),
    "float32": RNG.random(20000, np.float32).astype(np.float64),
    "normal": RNG.normal(size=20000) * 10 ** RNG.uniform(-9, 20, 20000),
    "small": RNG.normal(size=20000) * 10 ** RNG.uniform(-12, -3, 20000),
    "large": RNG.normal(size=20000) * 10 ** RNG.uniform(14, 24, 20000),
    "decimals": RNG.integers(-(10**6), 10**6, 20000) / 1000,
    "integers": RNG.integers(-(2**60), 2**60, 5000).astype(np.float64),
    "powers": POWERS,
    "beside powers": np.concatenate([np.nextafter(POWERS, 0), -np.nextafter(POWERS[:-1], 1e308)]),
    "special": np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, 1e16, 9999e12]),
}


def texts(values: npt.NDArray[Any]) -> list[str]:
    """How the values of a line are written."""
    none = np.zeros(1, np.int64)
    line = format_rows(none, none, 1, 1, 0, 1, 1.0, values.reshape(1, -1, 1, 1))
    return line.decode().split(",", 10)[10].removesuffix("\n").split(", ")


def bits(values: npt.NDArray[np.float64]) -> list[int]:
    """Bit patterns, one for all NaN."""
    return np.where(np.isnan(values), np.nan, values).view(np.uint64).tolist()  # type: ignore[no-any-return]


def naive_float(text: str) -> float | None:
    try:
        return float(text.encode())
    except ValueError:
        return None


def parsed(tokens: list[str]) -> Table:
    """The texts as the only line."""
    return parse_lines((",".join(tokens) + "\n").encode())


def all_fields(table: Table) -> npt.NDArray[np.float64]:
    """The numbers of an only line."""
    if table.counts[0] <= len(HEAD):
        return table.flat
    return np.concatenate([table.head[:, 0], table.values(slice(0, 1))[0]])


def check_parsed(tokens: list[str]) -> None:
    """In whatever company: as a line, and as values of two lines that are alike."""
    wanted = [naive_float(token) for token in tokens]
    numbers = np.array([np.nan if number is None else number for number in wanted])
    table = parsed(tokens)
    assert table.counts.tolist() == [len(tokens)]
    assert table.odd.tolist() == [None in wanted]
    assert bits(all_fields(table)) == bits(numbers)
    line = ", 3, 4, 5, 6, 7, 8, 9.5, 1, 1," + ",".join(tokens) + "\n"
    table = parse_lines(f"2{line}-1{line}".encode())
    assert table.odd.tolist() == [None in wanted] * 2
    assert table.corner.tolist() == [[2, -1], [3, 3]]
    assert table.head[2:].T.tolist() == [[4, 5, 6, 7, 8, 9.5, 1, 1]] * 2
    assert [bits(values) for values in table.values(slice(0, 2))] == [bits(numbers)] * 2


@pytest.mark.parametrize("name", ARRAYS)
def test_floats_are_written_as_repr_writes_them(name: str) -> None:
    values = ARRAYS[name]
    assert texts(values) == [repr(value) for value in values.tolist()]


@given(st.lists(st.floats(width=64), min_size=1, max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_floats(values: list[float]) -> None:
    assert texts(np.array(values, np.float64)) == [repr(value) for value in values]


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.bool_, ">i4"]
)
def test_integers(dtype: npt.DTypeLike) -> None:
    kind = np.dtype(dtype)
    ends = [0, 1] if kind == np.bool_ else [np.iinfo(kind).min, 0, 9, 10, 99, np.iinfo(kind).max]
    values = np.array(ends).astype(kind) if kind == np.bool_ else np.array(ends, kind)
    assert texts(values) == [str(int(value)) for value in ends]


@pytest.mark.parametrize("name", ARRAYS)
def test_what_was_written_reads_back_bit_by_bit(name: str) -> None:
    values = ARRAYS[name]
    assert bits(all_fields(parsed(texts(values)))) == bits(values)


def test_decimals_of_all_lengths_read_as_float_reads_them() -> None:
    whole, fraction = RNG.integers(0, 10**9, 4000), RNG.integers(0, 10**18, 4000)
    check_parsed([f"{a}.{b:0{1 + b % 25}}" for a, b in zip(whole, fraction, strict=True)])
    check_parsed([f"0.{a:018}{b % 100:0{1 + b % 6}}" for a, b in zip(fraction, whole, strict=True)])
    check_parsed([f"{a}e{b % 700 - 350}" for a, b in zip(fraction * 9, whole, strict=True)])


def test_halves_between_doubles_round_to_even() -> None:
    odd = 2 * RNG.integers(2**52, 2**53, 1000).astype(object) + 1
    check_parsed([str(n) for n in odd] + [f"{n}.0" for n in odd])
    check_parsed([f"{n // 2}.5" for n in odd] + [f"{n // 2}.50000000000000000001" for n in odd])


ODD = """
0 -0 .5 5. -.5 . - + +1 1e 1e+ e5 1e5 1E5 1e-5 1.5e+300 1e400 -1e400 1e-400 1e99999
1e00000000000000000005 nan -nan NaN inf -inf Infinity nan(1) abc None 0x10 1_0 1.2.3 1e5e5 --1
1-1 1e1.5 00000000001.5 12345678.5 123456789.5 18446744073709551616 1844674407370955162 é \0
0.000000000000000000000000000001 2.4703282292062327e-324 2.4703282292062328e-324
1.7976931348623159e308 2.2250738585072011e-308 9007199254740993
"""


def test_odd_texts() -> None:
    check_parsed([*ODD.split(), "\r7", "8\r"])
    check_parsed([""])
    check_parsed(["", "1", "", " ", " 2", "3 ", "4  ", "1 2", "- 1", "\t5"])


@given(st.lists(st.text("0123456789.eE+- naif_", max_size=12), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_any_texts(tokens: list[str]) -> None:
    check_parsed(tokens)


def test_whole_numbers_beyond_the_doubles() -> None:
    check_parsed([str(2**53 + i) for i in range(9)])
    check_parsed(
        [str(sign * (2**e + i)) for e in (63, 64, 70) for i in (-1, 0, 1) for sign in (1, -1)]
    )
    check_parsed(["1" * 400, "9" * 308, f"0.{'0' * 400}1"])


@pytest.mark.parametrize(
    "token", ["null", "true", "[]", "[1]", "{}", '"1"', "1;2", "nann", "anan", "NaN", "- 0", "1 2"]
)
def test_what_json_takes_is_no_number_for_that(token: str) -> None:
    check_parsed(["1.5", token, "2.5"])


@pytest.mark.parametrize(
    "token", ["-0", " -0", "-0 ", "-0.0", "-0e5", "-0e-05", "nan", "inf", " nan "]
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_texts_that_json_reads_otherwise(token: str, at: int) -> None:
    tokens = ["1.5", "0", "1e-05"]
    tokens[at] = token
    check_parsed(tokens)


def test_parts_of_long_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_PART", 3)
    check_parsed(["1.25", "0", "x", "77777777", "nan", "-1", "", "5", "-0", "33"])
    check_parsed(["1", ""])
    check_parsed(["", "", "1"])


def test_lines_are_told_apart() -> None:
    table = parse_lines(b"1, 2,3\n\nx\n-4\n")
    assert table.counts.tolist() == [3, 1, 1, 1]
    assert table.odd.tolist() == [False, True, True, False]
    assert bits(table.flat) == bits(np.array([1, 2, 3, np.nan, np.nan, -4]))
    table = parse_lines(b"\n")
    assert (table.counts.tolist(), table.odd.tolist()) == ([1], [True])
