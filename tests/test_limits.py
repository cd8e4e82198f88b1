"""Limits: amounts of memory as people write them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from streamwsi.errors import ConfigError
from streamwsi.limits import Limits, parse_bytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("2 GiB", 2 * 2**30),
        ("2GiB", 2 * 2**30),
        ("2gi", 2 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5 k", 1500),
        ("1048576", 2**20),
        (" 3 T ", 3 * 10**12),
        ("7B", 7),
        (12345, 12345),
    ],
)
def test_amounts_of_memory(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 GiBs", "two", "1,5 GB", "2 PiB", "0x10"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not an amount of memory; write it like 2GiB"):
        parse_bytes(text)


def test_the_defaults_fit_this_machine() -> None:
    limits = Limits()
    assert limits.memory_bytes == 2 * 2**30
    assert limits.worker_count >= 1
    assert Limits(workers=3).worker_count == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"slides": 0}, r"limits\.slides must be at least 1, not 0"),
        ({"workers": 0}, r"limits\.workers must be at least 1, not 0"),
        ({"worker_kind": "fork"}, r"limits\.worker_kind must be .*'fork'"),
        ({"memory": 0}, r"limits\.memory must be positive"),
        ({"memory": "0 GiB"}, r"limits\.memory must be positive"),
        ({"memory": "lots"}, "'lots' is not an amount"),
        ({"memory": None}, "None is not an amount"),
        ({"read_timeout_s": 0}, r"limits\.read_timeout_s must be positive, not 0"),
        ({"grace_s": float("nan")}, r"limits\.grace_s must be positive, not nan"),
    ],
)
def test_impossible_limits_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Limits(**wrong)


def test_limits_compare_whatever_the_spelling() -> None:
    assert Limits(memory="1 GiB") == Limits(memory=2**30)
