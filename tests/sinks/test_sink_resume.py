"""Killed at any moment, by whatever, and resumed: the outputs have the same bytes.

All sinks go through all of it; a checkpoint after each batch makes the moments many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.chunks import Receipt
from streamwsi.errors import CannotWrite, ContractBroken
from streamwsi.geometry import Grid, Size
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, HeatmapZarr, Pdmcsv, base, features_zarr
from streamwsi.testing.outputs import Disk, Tree, grid_plan, recipe, restore, stream, tree

Make = Callable[[Path], Any]

#: A sink and the shape of a window's value; the grid's panels cut through zarr's chunks.
LANES = [
    pytest.param(lambda out: HeatmapZarr(out, 4), (2,), id="zarr-vectors"),
    pytest.param(lambda out: HeatmapZarr(out, 7), (1, 3, 2), id="zarr-maps"),
    pytest.param(Pdmcsv, (2,), id="pdmcsv"),
    pytest.param(FeaturesZarr, (24,), id="features-zarr"),
    pytest.param(lambda out: FeaturesHdf5(out, "float16"), (24,), id="features-hdf5"),
]
GRID = Grid(Size(28, 20), Size(4, 4), Size(4, 4), 5)


@pytest.fixture(autouse=True, scope="module")
def often() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CHECKPOINT_S", 0.0)
        patch.setattr(base, "CHECKPOINT_SHARE", 0)
        # What real disks do then is not tested here; it only takes its time.
        patch.setattr(os, "fsync", lambda fd: None)
        # Chunks of three rows of 24 floats, and of eight narrow ones.
        patch.setattr(features_zarr, "_CHUNK_BYTES", 300)
        patch.setattr(features_zarr, "_NARROW", 8)
        yield


class Job:
    """One output, to be written as often as one likes."""

    def __init__(self, make: Make, shape: tuple[int, ...], grid: Grid = GRID) -> None:
        self.make = make
        self.plan: GridPlan = grid_plan(grid)
        rng = np.random.default_rng(7)
        self.values = rng.normal(size=(grid.count, *shape)).astype(np.float32)
        self.valid = rng.random(grid.count) < 0.8
        self.values[~self.valid] = np.nan

    async def write(self, out: Path, batch: int = 4, **kwargs: Any) -> tuple[int, Receipt]:
        """Open and write all that is missing; where it resumed, and the receipt."""
        sink = self.make(out)
        how = recipe(self.plan, sink)
        async with sink.open(self.plan, how, overwrite=False) as writer:
            at = writer.resume_at
            pieces = stream(
                self.plan, self.values, start=at, valid=self.valid, batch=batch, **kwargs
            )
            return at, await writer.write(pieces)


def distinct(trees: list[Tree]) -> list[Tree]:
    found: list[Tree] = []
    for one in trees:
        if one not in found:
            found.append(one)
    return found


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_killed_at_any_moment(
    make: Make, shape: tuple[int, ...], every: int, tmp_path: Path
) -> None:
    job, out = Job(make, shape), tmp_path / "out"
    out.mkdir()
    killed: list[Tree] = []
    cut: list[Tree] = []

    def remember(disk: Disk) -> None:
        killed.append(disk.living())
        cut.append(disk.durable())

    with Disk(out, remember) as disk:
        await job.write(out, between=lambda piece: remember(disk))
        finished = tree(out)
        # Without power from now on: nothing is lost any more, but for the lock's removal.
        assert {n: d for n, d in disk.durable().items() if not n.endswith(".lock")} == finished
    starts = set()
    for left in distinct(killed)[::every] + distinct(cut)[::every]:
        restore(out, left)
        at, receipt = await job.write(out)
        starts.add(at)
        assert tree(out) == finished
        assert receipt.pieces == GRID.count - at
        assert receipt.invalid == np.count_nonzero(~job.valid)
    # Batches of 4 are cut at multiples of 4, and a checkpoint follows each.
    possible = {*range(0, GRID.count, 4), GRID.count}
    assert starts == possible if every == 1 else starts <= possible and len(starts) > 3


@settings(deadline=None, max_examples=5)
@given(data=st.data())
@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_killed_again_and_again(
    make: Make, shape: tuple[int, ...], data: st.DataObject, tmp_path_factory: Any
) -> None:
    columns, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    grid = Grid(Size(columns * 4, rows * 4), Size(4, 4), Size(4, 4), data.draw(st.integers(1, 9)))
    job = Job(make, shape, grid)
    batch = data.draw(st.integers(1, 9))
    out = tmp_path_factory.mktemp("out")
    whole = tmp_path_factory.mktemp("whole")
    await job.write(whole, batch)
    finished = tree(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        moment, power = data.draw(st.integers(1, 60)), data.draw(st.booleans())
        left: list[Tree] = []

        def remember(disk: Disk, power: bool = power, left: list[Tree] = left) -> None:
            nonlocal moment
            moment -= 1
            if moment == 0:
                left.append(disk.durable() if power else disk.living())

        with Disk(out, remember):
            await job.write(out, batch)
        if left:
            restore(out, left[0])
    await job.write(out, batch)
    assert tree(out) == finished


CHILD = """
import os, sys, anyio, numpy as np
from pathlib import Path
from streamwsi.geometry import Grid, Size
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, HeatmapZarr, Pdmcsv, base
from streamwsi.testing.outputs import grid_plan, recipe, stream

base.CHECKPOINT_S = base.CHECKPOINT_SHARE = 0
out, name, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def fsync(fd):
    global left
    left -= 1
    if left == 0:
        os._exit(9)
os.fsync = fsync
sink = {
    "zarr": lambda out: HeatmapZarr(out, 4),
    "pdmcsv": Pdmcsv,
    "features-zarr": FeaturesZarr,
    "features-hdf5": FeaturesHdf5,
}[name](out)
plan = grid_plan(Grid(Size(28, 20), Size(4, 4), Size(4, 4), 5))
values = np.arange(70, dtype=np.float32).reshape(35, 2)

async def main():
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        await writer.write(stream(plan, values, start=writer.resume_at))

anyio.run(main)
"""


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("zarr", (30, 20)),
        ("pdmcsv", (11, 9)),
        ("features-zarr", (30, 20)),
        ("features-hdf5", (11, 9)),
    ],
)
def test_a_process_that_dies(name: str, moments: tuple[int, ...], tmp_path: Path) -> None:
    def run(out: Path, moment: int) -> int:
        return subprocess.run(
            [sys.executable, "-c", CHILD, str(out), name, str(moment)], check=False
        ).returncode

    for moment in moments:
        assert run(tmp_path / "out", moment) == 9
    assert any(path.name.endswith(".lock") for path in (tmp_path / "out").iterdir())
    assert run(tmp_path / "out", -1) == 0
    assert run(tmp_path / "whole", -1) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_an_error_upstream_loses_nothing(
    make: Make, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 1e9)
    job = Job(make, shape)

    def fail(piece: int) -> None:
        if piece == 16:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await job.write(tmp_path / "out", between=fail)
    at, receipt = await job.write(tmp_path / "out")
    assert (at, receipt.pieces) == (16, GRID.count - 16)
    await job.write(tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_cancellation_loses_nothing(
    make: Make, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 1e9)
    job = Job(make, shape)
    with anyio.CancelScope() as scope:
        await job.write(tmp_path, between=lambda piece: scope.cancel() if piece == 16 else None)
    assert scope.cancelled_caught
    at, _ = await job.write(tmp_path)
    # The batch that was under way when it was cancelled is written to its end.
    assert at in (16, 20)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_finished_output_is_left_alone(
    make: Make, shape: tuple[int, ...], tmp_path: Path
) -> None:
    job = Job(make, shape)
    await job.write(tmp_path)
    before = times(tmp_path)
    at, receipt = await job.write(tmp_path)
    assert at == GRID.count
    assert receipt.pieces == 0
    assert receipt.invalid == np.count_nonzero(~job.valid)
    assert receipt.outputs == job.make(tmp_path).outputs(job.plan.slide.ref)
    assert times(tmp_path) == before


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_checkpoints_are_rare(
    make: Make, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, now, saved = Job(make, shape), [0.0], list[float]()
    monkeypatch.setattr(base, "CHECKPOINT_S", 2.0)
    monkeypatch.setattr(base, "CHECKPOINT_SHARE", 10)
    monkeypatch.setattr(anyio, "current_time", lambda: now[0])
    save = base.ResumableWriter._checkpoint

    async def slow(writer: base.ResumableWriter) -> None:
        saved.append(now[0])
        await save(writer)
        now[0] += 0.5

    monkeypatch.setattr(base.ResumableWriter, "_checkpoint", slow)

    def half_a_second(piece: int) -> None:
        now[0] += 1.0

    await job.write(tmp_path, batch=2, between=half_a_second)
    # After 2 s, then 10 × 0.5 s after each end, and at the end.
    assert saved == [2.0, 7.5, 13.0, 18.5, 20.0]


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_pieces_that_are_missing_or_out_of_order(
    make: Make, shape: tuple[int, ...], tmp_path: Path
) -> None:
    job = Job(make, shape)
    with pytest.raises(ContractBroken, match=r"slide\.[\w.]+: the pieces ended at 10 of 35"):
        await job.write(tmp_path, stop=10)
    sink = make(tmp_path)
    async with sink.open(job.plan, recipe(job.plan, sink), overwrite=False) as writer:
        assert writer.resume_at == 10
        with pytest.raises(ContractBroken, match="piece 12 came where piece 10 was due"):
            await writer.write(stream(job.plan, job.values, start=12))


# Disks that fail.


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_disk_that_fails_at_any_moment(
    make: Make, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(make, shape)
    await job.write(tmp_path / "whole")
    left = 0

    def fsync(fd: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    message = "cannot be written: Input/output error; once that is solved"
    for moment in range(1, 35, 11):
        out = tmp_path / f"out{moment}"
        left = moment
        with pytest.raises(CannotWrite, match=rf"^{out}/slide\.[\w.]+ {message}"):
            await job.write(out)
        left = 0
        await job.write(out)
        assert tree(out) == tree(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    out = tmp_path / "small"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield out
    subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_full_disk(
    make: Make,
    shape: tuple[int, ...],
    small_disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Files take whole blocks: tiny ones would fill the disk before the first checkpoint.
    monkeypatch.setattr(features_zarr, "_CHUNK_BYTES", 20_000)
    grid, out = Grid(Size(240, 160), Size(4, 4), Size(4, 4)), small_disk
    job = Job(make, (max(3, shape[0]), *shape[1:]), grid)
    (out / "other").write_bytes(bytes(40_000))
    with pytest.raises(CannotWrite, match=r"slide\.[\w.]+ cannot be written: No space left"):
        await job.write(out, batch=100)
    with pytest.raises(CannotWrite, match="No space left"):
        await job.write(out, batch=100)
    # What was written is valid; with some more room, it goes on.
    restore(tmp_path / "large", tree(out))
    (tmp_path / "large" / "other").unlink()
    at, _ = await job.write(tmp_path / "large", batch=100)
    assert 0 < at < job.plan.count
    await job.write(tmp_path / "whole", batch=100)
    assert tree(tmp_path / "large") == tree(tmp_path / "whole")


def test_a_line_that_does_not_fit_is_cut_off(tmp_path: Path) -> None:
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" + CHILD
    command = [sys.executable, "-c", code, str(tmp_path), "pdmcsv", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "CannotWrite" in done.stderr
    assert "slide.csv cannot be written: File too large" in done.stderr
    data = (tmp_path / "slide.csv").read_bytes()
    record = json.loads((tmp_path / "slide.csv.json").read_text())["streamwsi"]
    assert data.endswith(b"\n")
    assert 0 < len(data) == record["state"]["bytes"] <= 1000


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_folder_that_vanishes(make: Make, shape: tuple[int, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"

    def vanish(piece: int) -> None:
        if piece == 16:
            out.rename(tmp_path / "elsewhere")

    with pytest.raises(CannotWrite, match=r"slide\.[\w.]+ cannot be written: No such file"):
        await Job(make, shape).write(out, between=vanish)
    assert not out.exists()


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_folder_that_cannot_be_made(
    make: Make, shape: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match=r"slide\.[\w.]+ cannot be written: Not a directory"):
        await Job(make, shape).write(tmp_path / "file" / "out")


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder in which this user may not write, even where the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.rmdir()


@pytest.mark.parametrize(("make", "shape"), LANES)
async def test_a_folder_without_permission(
    make: Make, shape: tuple[int, ...], forbidden: Path
) -> None:
    with pytest.raises(CannotWrite, match=r"slide\.[\w.]+ cannot be written: Permission denied"):
        await Job(make, shape).write(forbidden)
