"""One pass, several outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch, Pieces, Receipt
from streamwsi.errors import CannotWrite, ConfigError, ContractBroken, PlanChanged
from streamwsi.geometry import Grid, Size
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr, MemorySink, Pdmcsv, Tee, base
from streamwsi.sources.memory import MemorySource
from streamwsi.testing.outputs import Disk, Tree, grid_plan, recipe, restore, stream, tree

GRID = Grid(Size(28, 20), Size(4, 4), Size(4, 4), 5)
PLAN = grid_plan(GRID)
VALUES = np.random.default_rng(7).normal(size=(GRID.count, 2)).astype(np.float32)
VALID = np.random.default_rng(8).random(GRID.count) < 0.8


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(base, "CHECKPOINT_SHARE", 0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


async def write(sink: Any, **kwargs: Any) -> tuple[int, Receipt]:
    """Write all that is missing; where it resumed, and the receipt."""
    async with sink.open(PLAN, recipe(PLAN, sink), overwrite=False) as writer:
        at = writer.resume_at
        return at, await writer.write(stream(PLAN, VALUES, start=at, valid=VALID, **kwargs))


def both(out: Path) -> Tee[Any]:
    return Tee(HeatmapZarr(out, 4), Pdmcsv(out))


async def finished(out: Path) -> Tree:
    """What the sinks write alone."""
    await write(HeatmapZarr(out, 4))
    await write(Pdmcsv(out))
    return tree(out)


async def test_each_output_is_what_its_sink_writes_alone(tmp_path: Path) -> None:
    at, receipt = await write(both(tmp_path / "tee"))
    assert tree(tmp_path / "tee") == await finished(tmp_path / "alone")
    assert (at, receipt.pieces) == (0, GRID.count)
    assert receipt.invalid == np.count_nonzero(~VALID)
    assert receipt.outputs == both(tmp_path / "tee").outputs(PLAN.slide.ref)
    assert [Path(path).name for path in receipt.outputs] == ["slide.zarr", "slide.csv"]


async def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left: list[Tree] = []

    def remember(disk: Disk) -> None:
        for one in (disk.living(), disk.durable()):
            if one not in left:
                left.append(one)

    with Disk(out, remember) as disk:
        await write(both(out), between=lambda piece: remember(disk))
    whole = await finished(tmp_path / "alone")
    assert tree(out) == whole
    starts = set()
    for one in left[::9]:
        restore(out, one)
        at, receipt = await write(both(out))
        starts.add(at)
        assert tree(out) == whole
        assert receipt.pieces == GRID.count - at
        assert receipt.invalid == np.count_nonzero(~VALID)
    assert len(starts) > 3


CHILD = """
import os, sys, anyio
from pathlib import Path
import numpy as np
from streamwsi import Pipeline, run
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr, Pdmcsv, Tee, base
from streamwsi.sources.memory import MemorySource

base.CHECKPOINT_S = base.CHECKPOINT_SHARE = 0
out, left = Path(sys.argv[1]), int(sys.argv[2])
def fsync(fd):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
os.fsync = fsync
pixels = np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)
report = anyio.run(lambda: run(
    Pipeline(
        source=MemorySource({"a": (pixels,)}),
        sampler=SlidingWindow(kernel_size=20, stride=9),
        processor=FunctionProcessor(
            lambda batch: batch.pixels.mean(axis=(1, 2), dtype=np.float32), batch_size=7
        ),
        sink=Tee(HeatmapZarr(out, 4), Pdmcsv(out)),
    ),
    ["a"], limits=Limits(worker_kind="inline", memory="64MiB"),
))
report.raise_for_failures()
print(report.outcomes[0].resumed_at)
"""


def test_a_process_that_dies_in_a_run(tmp_path: Path) -> None:
    def child(out: Path, moment: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CHILD, str(out), str(moment)],
            check=False,
            capture_output=True,
            text=True,
        )

    assert child(tmp_path / "out", 60).returncode == 9
    last = child(tmp_path / "out", -1)
    assert last.returncode == 0, last.stderr
    assert 0 < int(last.stdout) < 72
    assert child(tmp_path / "whole", -1).stdout == "0\n"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


async def test_what_a_tee_began_a_sink_completes_and_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(ContractBroken, match="ended at 12 of 35"):
        await write(both(tmp_path / "a"), stop=12)
    assert (await write(Pdmcsv(tmp_path / "a")))[0] == 12
    assert (await write(HeatmapZarr(tmp_path / "a", 4)))[0] == 12
    with pytest.raises(ContractBroken, match="ended at 20 of 35"):
        await write(Pdmcsv(tmp_path / "b"), stop=20)
    at, receipt = await write(both(tmp_path / "b"))
    assert (at, receipt.pieces) == (0, 35)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == await finished(tmp_path / "alone")


async def test_a_finished_output_beside_a_new_one(tmp_path: Path) -> None:
    await write(Pdmcsv(tmp_path))
    before = (tmp_path / "slide.csv").stat().st_mtime_ns
    at, _ = await write(both(tmp_path))
    assert at == 0
    assert (tmp_path / "slide.csv").stat().st_mtime_ns == before
    at, receipt = await write(both(tmp_path))
    assert (at, receipt.pieces) == (GRID.count, 0)
    assert tree(tmp_path) == await finished(tmp_path.with_name("alone"))


# Sinks of these tests.


@dataclass(frozen=True)
class Scripted:
    """Notes what it gets, and fails where it is told to."""

    resume_at: int = 0
    fails_at: int | None = None
    slow: bool = False
    takes: int | None = None
    got: list[int] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    config: Any = field(default_factory=lambda: {"type": "scripted"})

    def outputs(self, slide: Any) -> tuple[str, ...]:
        return ()

    @asynccontextmanager
    async def open(self, plan: Any, recipe: Any, *, overwrite: bool) -> AsyncIterator[Any]:
        yield self

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        try:
            async for some in pieces:
                before = np.array(some.values)
                if self.slow:
                    await anyio.sleep(0.002)
                np.testing.assert_array_equal(before, some.values)  # it is on loan
                if self.fails_at == some.places.start:
                    raise CannotWrite("the disk is full")
                self.got.extend(range(some.places.start, some.places.stop))
                if self.takes is not None and len(self.got) >= self.takes:
                    break
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("done")
        return Receipt(PLAN.slide.ref.id, len(self.got), ())


async def test_each_gets_what_it_needs(tmp_path: Path) -> None:
    sinks = [Scripted(), Scripted(resume_at=10, slow=True), Scripted(resume_at=35)]
    at, receipt = await write(Tee(*sinks))
    assert at == 0
    assert [sink.got for sink in sinks] == [[*range(35)], [*range(10, 35)], []]
    assert receipt.pieces == 35
    later = [Scripted(resume_at=11), Scripted(resume_at=23)]
    at, receipt = await write(Tee(*later))
    assert (at, receipt.pieces) == (11, 24)
    assert [sink.got for sink in later] == [[*range(11, 35)], [*range(23, 35)]]


@pytest.mark.parametrize("order", [1, -1])
async def test_a_sink_that_fails_fails_the_slide_with_its_own_error(order: int) -> None:
    sinks = [Scripted(slow=True), Scripted(fails_at=8), Scripted()][::order]
    with pytest.raises(CannotWrite, match="the disk is full"):
        await write(Tee(*sinks))
    assert sinks[1].ended == ["CannotWrite"]
    for other in (sinks[0], sinks[2]):
        assert other.ended == ["CancelledError"]
        assert other.got in ([*range(8)], [*range(12)])


async def test_a_full_disk_leaves_the_other_output_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 1e9)
    with pytest.raises(CannotWrite, match="the disk is full"):
        await write(Tee(Pdmcsv(tmp_path), Scripted(fails_at=12)))
    at, _ = await write(Pdmcsv(tmp_path))
    assert at in (12, 16)
    await write(Pdmcsv(tmp_path / "whole"))
    whole = tree(tmp_path / "whole")
    assert {name: tree(tmp_path)[name] for name in whole} == whole


async def test_an_error_upstream_is_no_end(tmp_path: Path) -> None:
    def fail(piece: int) -> None:
        if piece == 16:
            raise ZeroDivisionError

    scripted = Scripted()
    with pytest.raises(ZeroDivisionError):
        await write(Tee(*both(tmp_path).sinks, scripted), between=fail)
    assert scripted.ended == ["CancelledError"]
    at, _ = await write(both(tmp_path))
    assert at == 16


async def test_cancellation_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 1e9)
    with anyio.CancelScope() as scope:
        await write(both(tmp_path), between=lambda p: scope.cancel() if p == 16 else None)
    assert scope.cancelled_caught
    at, _ = await write(both(tmp_path))
    assert at in (16, 20)
    assert tree(tmp_path) == await finished(tmp_path.with_name("alone"))


async def test_a_writer_that_ends_too_early() -> None:
    with pytest.raises(ContractBroken, match="a sink of a Tee ended at piece 8, before the others"):
        await write(Tee(Scripted(takes=6), Scripted()))
    _, receipt = await write(Tee(Scripted(takes=33), Scripted()))
    assert receipt.pieces == 35


async def test_writers_work_at_the_same_time() -> None:
    inside = most = 0

    @dataclass(frozen=True)
    class Waits(Scripted):
        async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
            nonlocal inside, most
            async for _ in pieces:
                inside += 1
                most = max(most, inside)
                await anyio.sleep(0.001)
                inside -= 1
            return Receipt("slide", 35, ())

    await write(Tee(Waits(), Waits(), Waits()))
    assert most == 3


# Opening.


async def test_two_sinks_of_one_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 sinks of a Tee would write .*slide\.csv; give them"):
        await write(Tee(Pdmcsv(tmp_path), Pdmcsv(tmp_path)))
    assert tree(tmp_path) == {}


async def test_one_that_cannot_be_opened_lets_go_of_the_others(tmp_path: Path) -> None:
    await write(HeatmapZarr(tmp_path, 7))
    with pytest.raises(PlanChanged, match=r"sink\.chunk 7 → 4"):
        await write(Tee(Pdmcsv(tmp_path), HeatmapZarr(tmp_path, 4)))
    assert (await write(Pdmcsv(tmp_path)))[0] == 0


def test_a_recipe_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one sink"):
        Tee()
    tee = both(tmp_path)
    assert tee == both(tmp_path) != Tee(Pdmcsv(tmp_path))
    assert repr(tee) == f"Tee({HeatmapZarr(tmp_path, 4)!r}, {Pdmcsv(tmp_path)!r})"
    assert tee.config == {
        "type": "tee",
        "sinks": [dict(HeatmapZarr(tmp_path, 4).config), {"type": "pdmcsv"}],
    }
    assert tee.memory(PLAN, None) == sum(sink.memory(PLAN, None) for sink in (tee.sinks))  # type: ignore[attr-defined]


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)


async def test_a_whole_run_equals_the_slow_reference(pixels: Any, tmp_path: Path) -> None:
    def mean(batch: Batch) -> Any:
        return batch.pixels.mean(axis=(1, 2), dtype=np.float32)

    memory = MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (pixels,)}),
        sampler=SlidingWindow(kernel_size=20, stride=9),
        processor=FunctionProcessor(mean, batch_size=7),
        sink=Tee(memory, Pdmcsv(tmp_path)),
    )
    report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="64MiB"))
    report.raise_for_failures()
    corners = [(y, x) for y in range(0, 81, 9) for x in range(0, 71, 9)]
    expected = [pixels[y : y + 20, x : x + 20].mean(axis=(0, 1)) for y, x in corners]
    np.testing.assert_allclose(np.array(memory.values["a"]), expected, rtol=1e-5)
    lines = [
        [float(number) for number in line.split(",")]
        for line in (tmp_path / "a.csv").read_text().splitlines()
    ]
    assert [(line[0], line[1]) for line in lines] == corners
    assert report.outcomes[0].outputs == (str(tmp_path / "a.csv"),)
