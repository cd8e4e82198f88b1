"""Workers that die or hang, tiles that cannot be read: the rest of the slide is right.

The slide is cut into jobs of one row of tiles, so that a job that fails takes little with it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from typer.testing import CliRunner

from streamwsi import Limits, Pipeline, SlideOutcome, run
from streamwsi.cli import app
from streamwsi.errors import ConfigError, SlideFailed
from streamwsi.geometry import Box, Grid, Size
from streamwsi.reports import Event, PiecesWritten
from streamwsi.samplers import SlidingWindow
from streamwsi.sources import Filled, Strict, TiffSource, scroll
from streamwsi.stages import Source
from streamwsi.testing.faults import Checksums, Fault, RecordingSink, ScriptedSource
from streamwsi.testing.synthetic import memory_pyramid, slide_array, write_slide
from streamwsi.testing.worker_faults import children

SIZE, TILE, KERNEL = Size(1100, 1300), 256, 128
GRID = Grid(SIZE, Size(KERNEL, KERNEL), Size(KERNEL, KERNEL))
#: A pixel of the third row of tiles, and all that is lost with it: the row, as far as it is read.
PLACE = (600, 600)
ROW = Box(0, 512, 1024, 256)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.svs"
    write_slide(path, SIZE, levels=1)
    return path


@pytest.fixture
def slide(painted: Path, tmp_path: Path) -> Path:
    path = tmp_path / "slide.svs"
    path.write_bytes(painted.read_bytes())
    return path


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of sources that break their workers, which these can import too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "importable"))
    monkeypatch.setattr(scroll, "_JOB_PIXELS", ROW.width * TILE)
    return pytest.importorskip("breaking_source")


def expected(lost: Box | None = None) -> Iterator[bool]:
    """For each window whether it is valid."""
    for index in range(GRID.count):
        box = GRID.box(*GRID.cell(index))
        yield lost is None or box.intersection(lost).empty


def checksums(slide: Path) -> npt.NDArray[np.float64]:
    """The windows' checksums, the slow way."""
    import zlib

    pixels = tifffile.imread(slide)
    boxes = (GRID.box(*GRID.cell(index)) for index in range(GRID.count))
    windows = (pixels[b.y : b.bottom, b.x : b.right] for b in boxes)
    return np.array([zlib.crc32(window.tobytes()) for window in windows], float)


async def compute(
    slide: Path, source: Source, observers: tuple[Any, ...] = (), **limits: Any
) -> tuple[SlideOutcome, npt.NDArray[np.float64]]:
    sink = RecordingSink()
    report = await run(
        Pipeline(
            source=source,
            sampler=SlidingWindow(KERNEL),
            processor=Checksums(batch_size=4),
            sink=sink,
        ),
        [slide],
        limits=Limits(workers=2, memory="64 MiB", **limits),
        observers=observers,
    )
    (outcome,) = report.outcomes
    values = sink.records["slide"].values
    return outcome, np.array([values.get(i, np.inf) for i in range(GRID.count)])


def check_lost(outcome: SlideOutcome, values: npt.NDArray[np.float64], slide: Path) -> None:
    """The row is lost, the rest is right, and the report says so."""
    valid = np.array([*expected(ROW)])
    np.testing.assert_array_equal(values, np.where(valid, checksums(slide), np.nan))
    assert outcome.status == "done"
    assert outcome.invalid == np.count_nonzero(~valid) > 0
    assert outcome.damaged_tiles == 1
    (damage,) = outcome.damage
    assert (damage.level, damage.tile, damage.box) == (0, -1, ROW)


async def test_a_worker_that_is_killed_costs_nothing(slide: Path, breaking: Any) -> None:
    breaking.script(slide, die_once=PLACE)
    outcome, values = await compute(slide, breaking.BreakingSource())
    np.testing.assert_array_equal(values, checksums(slide))
    assert (outcome.status, outcome.invalid, outcome.damage) == ("done", 0, ())


@pytest.mark.parametrize("who", ["workers", "zygote", "all"])
async def test_workers_killed_from_outside_cost_nothing(
    slide: Path, breaking: Any, who: str
) -> None:
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, PiecesWritten) and not killed:
            # Other tests may have left children of this process.
            (zygote,) = (pid for pid in children(os.getpid()) if is_zygote(pid))
            killed.extend([zygote] if who != "workers" else [])
            killed.extend(children(zygote) if who != "zygote" else [])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    outcome, values = await compute(slide, TiffSource(), (kill,))
    assert killed
    np.testing.assert_array_equal(values, checksums(slide))
    assert (outcome.invalid, outcome.damage) == (0, ())


def is_zygote(pid: int) -> bool:
    return b"zygote_child" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_job_that_always_kills_its_worker_loses_its_tiles(
    slide: Path, breaking: Any
) -> None:
    breaking.script(slide, die=PLACE)
    outcome, values = await compute(slide, breaking.BreakingSource())
    check_lost(outcome, values, slide)
    assert "ended by signal 9 in the middle of a job" in outcome.damage[0].reason


async def test_a_job_that_hangs_loses_its_tiles(slide: Path, breaking: Any) -> None:
    breaking.script(slide, hang=PLACE)
    outcome, values = await compute(slide, breaking.BreakingSource(), read_timeout_s=1.5)
    check_lost(outcome, values, slide)
    assert "took over 1.5 s" in outcome.damage[0].reason


# Policies.

DAMAGED = Fault(Box(300, 300, 1, 1), "damage")
TILE_BOX = Box(256, 256, 256, 256)


def scripted(dtype: str = "uint8") -> tuple[ScriptedSource, npt.NDArray[Any]]:
    pixels = slide_array(SIZE, dtype=dtype)
    slides = {"slide": tuple(memory_pyramid(pixels, 1))}
    return ScriptedSource(slides, TILE, (DAMAGED,)), pixels


async def test_damage_makes_nan_and_is_reported() -> None:
    source, _ = scripted()
    outcome, values = await compute(Path("slide"), source)
    valid = [*expected(TILE_BOX)]
    assert np.isfinite(values).tolist() == valid
    assert (outcome.status, outcome.invalid) == ("done", valid.count(False))
    assert [(d.level, d.tile, d.reason) for d in outcome.damage] == [(0, 6, "scripted damage")]


@pytest.mark.parametrize(("dtype", "colour"), [("uint8", (255, 0, 7)), ("uint16", (1, 999, 65535))])
async def test_damage_can_be_filled_with_a_colour(
    dtype: str, colour: tuple[int, ...], tmp_path: Path
) -> None:
    source, pixels = scripted(dtype)
    outcome, values = await compute(Path("slide"), Filled(source, colour))
    filled = pixels.copy()
    filled[256:512, 256:512] = colour
    tifffile.imwrite(tmp_path / "filled.tif", filled)
    np.testing.assert_array_equal(values, checksums(tmp_path / "filled.tif"))
    assert (outcome.invalid, outcome.filled) == (0, [*expected(TILE_BOX)].count(False))
    assert outcome.filled > 0
    assert (outcome.status, outcome.invalid, outcome.damaged_tiles) == ("done", 0, 1)
    assert outcome.damage[0].box == TILE_BOX


@pytest.mark.parametrize(
    "sampler",
    [
        SlidingWindow(96, 40),
        SlidingWindow(70, 100, offset=(13, 29)),
        SlidingWindow(100, 70, padding="same"),
        SlidingWindow(300, 70, padding="same", pad="reflect", offset=(13, -7)),
        SlidingWindow(64, 48, mpp=0.75, assume_mpp=0.5),
    ],
    ids=repr,
)
async def test_as_many_windows_are_filled_as_would_be_nan(sampler: SlidingWindow) -> None:
    source, _ = scripted()
    found = []
    for policy in (source, Filled(source)):
        stages: Any = {"source": policy, "sampler": sampler, "sink": RecordingSink()}
        report = await run(Pipeline(processor=Checksums(batch_size=4), **stages), ["slide"])
        report.raise_for_failures()
        (outcome,) = report.outcomes
        found.append((outcome.invalid, outcome.filled))
    assert found == [(found[0][0], 0), (0, found[0][0])]
    assert found[0][0] > 0


async def test_damage_can_end_the_slide() -> None:
    source, _ = scripted()
    outcome, _ = await compute(Path("slide"), Strict(source))
    assert (outcome.status, outcome.stage, outcome.damaged_tiles) == ("failed", "read", 1)
    assert isinstance(outcome.cause, SlideFailed)
    assert "tile 6 of level 0 cannot be had (scripted damage;" in (outcome.error or "")


async def test_policies_without_damage_change_nothing(slide: Path) -> None:
    for source in (Strict(TiffSource()), Filled(TiffSource())):
        outcome, values = await compute(slide, source)
        assert outcome.status == "done"
        np.testing.assert_array_equal(values, checksums(slide))


@pytest.mark.parametrize("colour", [(), (1, float("nan"), 2)])
def test_what_is_no_colour(colour: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="no colour"):
        Filled(TiffSource(), colour)


@pytest.mark.parametrize(
    ("colour", "words"),
    [((1, 2), "has 2 value"), ((0, 0, 256), "from 0 to 255"), ((0.5, 0, 0), "whole numbers")],
)
async def test_a_colour_that_does_not_fit_the_slide(
    colour: tuple[float, ...], words: str, slide: Path
) -> None:
    outcome, _ = await compute_only(slide, Filled(TiffSource(), colour))
    assert isinstance(outcome.cause, ConfigError)
    assert words in (outcome.error or "")


async def compute_only(slide: Path, source: Source) -> tuple[SlideOutcome, RecordingSink]:
    sink = RecordingSink()
    pipeline = Pipeline(
        source=source, sampler=SlidingWindow(KERNEL), processor=Checksums(), sink=sink
    )
    report = await run(pipeline, [slide], limits=Limits(workers=1, memory="64 MiB"))
    return report.outcomes[0], sink


# The command line.


def zero_tile(slide: Path, number: int) -> None:
    """Take the bytes of a tile away: its byte count becomes 0, its offset stays."""
    with tifffile.TiffFile(slide, mode="r+") as file:
        tag = file.pages.first.tags["TileByteCounts"]
        counts = [*tag.value]
        counts[number] = 0
        tag.overwrite(counts)


def heatmap(slide: Path, out: Path, *options: str) -> Any:
    command = ["heatmap", str(slide), "--model", "hematoxylin", "--out", str(out), "--json"]
    return CliRunner().invoke(
        app, [*command, "--kernel-size", "128", "--workers", "1", "--sink", "pdmcsv", *options]
    )


def test_the_command_line_knows_the_policies(slide: Path, tmp_path: Path) -> None:
    zero_tile(slide, 6)
    found = {}
    for policy in ("nan", "fail", "255,255,255"):
        done = heatmap(slide, tmp_path / policy, "--invalid", policy)
        found[policy] = json.loads(done.stdout)["slides"][0] | {"code": done.exit_code}
    assert {p: f["code"] for p, f in found.items()} == {"nan": 0, "fail": 1, "255,255,255": 0}
    assert {p: f["invalid"] for p, f in found.items()} == {"nan": 4, "fail": 0, "255,255,255": 0}
    assert {p: f["filled"] for p, f in found.items()} == {"nan": 0, "fail": 0, "255,255,255": 4}
    for facts in found.values():
        (damage,) = facts["damage"]
        assert (damage["level"], damage["tile"]) == (0, 6)
        assert "no bytes" in damage["reason"]
    assert "tile 6 of level 0 cannot be had" in found["fail"]["error"]


def test_another_policy_is_another_plan(slide: Path, tmp_path: Path) -> None:
    assert heatmap(slide, tmp_path).exit_code == 0
    for policy in ("fail", "0,0,0"):
        done = heatmap(slide, tmp_path, "--invalid", policy)
        assert done.exit_code == 2
        assert "source.invalid" in done.stderr


def test_a_policy_that_is_none(slide: Path, tmp_path: Path) -> None:
    done = heatmap(slide, tmp_path, "--invalid", "ignore")
    assert done.exit_code == 2
    assert "'ignore' is none of nan, fail and a colour" in done.stderr
