"""Numbers to text against ``repr`` and ``str``, text to numbers against ``float``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.pdmcsv.decimals import FLOAT_WIDTH, float_text, integer_text
from streamwsi.pdmcsv.fields import parse_fields

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
    "decimals": RNG.integers(-(10**6), 10**6, 20000) / 1000,
    "integers": RNG.integers(-(2**60), 2**60, 5000).astype(np.float64),
    "powers": POWERS,
    "beside powers": np.concatenate([np.nextafter(POWERS, 0), -np.nextafter(POWERS[:-1], 1e308)]),
    "special": np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, 1e16, 9999e12]),
}


def texts(rows: npt.NDArray[np.uint8]) -> list[str]:
    return [bytes(row).replace(b"\0", b"").decode() for row in rows]


def bits(values: npt.NDArray[np.float64]) -> list[int]:
    """Bit patterns, one for all NaN."""
    return np.where(np.isnan(values), np.nan, values).view(np.uint64).tolist()  # type: ignore[no-any-return]


def naive_float(text: str) -> float | None:
    try:
        return float(text.encode())
    except ValueError:
        return None


def check_parsed(tokens: list[str]) -> None:
    fields = parse_fields((",".join(tokens) + "\n").encode())
    wanted = [naive_float(token) for token in tokens]
    assert fields.bad.tolist() == [i for i, number in enumerate(wanted) if number is None]
    numbers = np.array([np.nan if number is None else number for number in wanted])
    assert bits(fields.numbers) == bits(numbers)
    assert fields.first.tolist() == [0, len(tokens)]


@pytest.mark.parametrize("name", ARRAYS)
def test_floats_are_written_as_repr_writes_them(name: str) -> None:
    values = ARRAYS[name]
    rows = float_text(values)
    assert rows.shape == (len(values), FLOAT_WIDTH)
    assert not rows[:, -3:].any()
    assert texts(rows) == [repr(value) for value in values.tolist()]


@given(st.lists(st.floats(width=64), max_size=20))
@settings(deadline=None, max_examples=100)
def test_any_floats(values: list[float]) -> None:
    assert texts(float_text(np.array(values, np.float64))) == [repr(value) for value in values]


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.bool_, ">i4"]
)
def test_integers(dtype: npt.DTypeLike) -> None:
    kind = np.dtype(dtype)
    ends = [0, 1] if kind == np.bool_ else [np.iinfo(kind).min, 0, 9, 10, 99, np.iinfo(kind).max]
    values = np.array(ends).astype(kind) if kind == np.bool_ else np.array(ends, kind)
    assert texts(integer_text(values)) == [str(int(value)) for value in ends]
    assert texts(integer_text(values[:0])) == []


@pytest.mark.parametrize("name", ARRAYS)
def test_what_was_written_reads_back_bit_by_bit(name: str) -> None:
    values = ARRAYS[name]
    text = ", ".join(texts(float_text(values))) + "\n"
    assert bits(parse_fields(text.encode()).numbers) == bits(values)


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


def test_lines_are_told_apart() -> None:
    fields = parse_fields(b"1, 2,3\n\nx\n-4\n")
    assert fields.first.tolist() == [0, 3, 4, 5, 6]
    assert fields.bad.tolist() == [3, 4]
    assert parse_fields(b"").first.tolist() == [0]
    assert parse_fields(b"\n").first.tolist() == [0, 1]
