"""Reports: numbers, JSON, and what failed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from streamwsi.chunks import Damage
from streamwsi.errors import ConfigError, PlanChanged, SlideFailed
from streamwsi.geometry import Box
from streamwsi.reports import RunReport, SlideOutcome, StageTimes
from streamwsi.stages import ReadTally

DONE = SlideOutcome(
    "a",
    "/x/a.svs",
    "done",
    outputs=("out/a.zarr",),
    pieces=10,
    total=12,
    resumed_at=2,
    seconds=1.5,
    tiles_decoded=21,
    distinct_tiles=20,
    damaged_tiles=1,
    damage=(Damage(0, 7, Box(0, 256, 256, 256), "JPEG data end early"),),
    stages={"read": StageTimes(0.5, 0.25)},
)
FAILED = SlideOutcome(
    "b",
    "/x/b.svs",
    "failed",
    "it is broken",
    "read",
    cause=SlideFailed("b", "read", "it is broken"),
)
MISUSED = SlideOutcome("c", "/x/c.svs", "failed", "wrong", "open", cause=PlanChanged("wrong"))


def test_an_outcome_is_json() -> None:
    record = json.loads(json.dumps(DONE.to_json()))
    assert record["outputs"] == ["out/a.zarr"]
    assert record["amplification"] == 1.05
    assert record["damage"] == [
        {
            "level": 0,
            "tile": 7,
            "box": {"x": 0, "y": 256, "width": 256, "height": 256},
            "reason": "JPEG data end early",
        }
    ]
    assert record["stages"] == {"read": {"starved_s": 0.5, "blocked_s": 0.25}}
    assert (record["slide"], record["status"], record["error"]) == ("a", "done", None)
    assert (record["pieces"], record["resumed_at"], record["total"]) == (10, 2, 12)
    failed = json.loads(json.dumps(FAILED.to_json()))
    assert (failed["status"], failed["error"], failed["stage"]) == (
        "failed",
        "it is broken",
        "read",
    )


def test_a_report_is_json() -> None:
    report = RunReport((DONE, FAILED), 2.5)
    record = json.loads(json.dumps(report.to_json()))
    assert record["seconds"] == 2.5
    assert [slide["slide"] for slide in record["slides"]] == ["a", "b"]


def test_failures_are_raised_together() -> None:
    report = RunReport((DONE, FAILED, MISUSED), 1.0)
    assert report.failures == (FAILED, MISUSED)
    with pytest.raises(ExceptionGroup, match="2 of 3 slides failed") as caught:
        report.raise_for_failures()
    assert [*caught.value.exceptions] == [FAILED.cause, MISUSED.cause]
    RunReport((DONE,), 1.0).raise_for_failures()


@pytest.mark.parametrize(
    ("outcomes", "misconfigured"),
    [
        ((MISUSED,), True),
        ((MISUSED, replace(MISUSED, cause=ConfigError("x"))), True),
        ((MISUSED, DONE), False),
        ((MISUSED, FAILED), False),
        ((), False),
    ],
)
def test_a_run_is_misconfigured_where_all_of_it_was(
    outcomes: tuple[SlideOutcome, ...], misconfigured: bool
) -> None:
    assert RunReport(outcomes, 1.0).misconfigured == misconfigured


def test_nothing_decoded_is_no_amplification() -> None:
    assert FAILED.amplification == ReadTally().amplification == 1.0
    assert ReadTally(21, 20).amplification == 1.05


def test_outcomes_compare_without_their_causes() -> None:
    assert replace(FAILED, cause=None) == FAILED
    assert "cause" not in repr(FAILED)
