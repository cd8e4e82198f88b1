"""Whose output it is: fingerprints, locks, and what is never touched."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamwsi.errors import CannotWrite, ConfigError, PlanChanged
from streamwsi.geometry import Grid, Size
from streamwsi.json_files import read_json
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, HeatmapZarr, Pdmcsv
from streamwsi.sinks.durable import Lock
from streamwsi.slides import Mpp
from streamwsi.stages import Recipe, Sink
from streamwsi.testing.outputs import grid_plan, recipe, stream, tree

SINKS = [
    pytest.param(HeatmapZarr, "slide.zarr", id="zarr"),
    pytest.param(Pdmcsv, "slide.csv"),
    pytest.param(FeaturesZarr, "slide.features.zarr", id="features-zarr"),
    pytest.param(FeaturesHdf5, "slide.h5", id="features-hdf5"),
]
Make = Callable[[Path], Any]
PLAN = grid_plan(Grid(Size(16, 16), Size(4, 4), Size(4, 4)))


async def write(
    sink: Any,
    plan: GridPlan = PLAN,
    how: Recipe | None = None,
    *,
    overwrite: bool = False,
    value: float = 1.0,
    stop: int | None = None,
) -> int:
    """Write what is missing; how many pieces that was."""
    async with sink.open(plan, how or recipe(plan, sink), overwrite=overwrite) as writer:
        values = np.full((plan.count, 1), value, np.float32)
        pieces = stream(plan, values, start=writer.resume_at, stop=stop)
        return int((await writer.write(pieces)).pieces)


def changed_slide(**changes: Any) -> GridPlan:
    return replace(PLAN, slide=replace(PLAN.slide, **changes))


@pytest.mark.parametrize(("make", "name"), SINKS)
@pytest.mark.parametrize(
    ("plan", "processor", "difference"),
    [
        (changed_slide(nbytes=99), {}, "slide.bytes 1234 → 99"),
        (changed_slide(identity="x"), {}, 'slide.identity "abc" → "x"'),
        (
            changed_slide(pyramid=replace(PLAN.slide.pyramid, mpp=Mpp(0.5, 0.25))),
            {},
            "slide.mpp [0.25, 0.25] → [0.5, 0.25]",
        ),
        (
            changed_slide(pyramid=replace(PLAN.slide.pyramid, mpp=None)),
            {},
            "slide.mpp [0.25, 0.25] → null",
        ),
        (
            replace(PLAN, config={**PLAN.config, "kernel_size": [2, 2]}),
            {},
            "sampler.kernel_size [4, 4] → [2, 2]",
        ),
        (PLAN, {"model": {"sha": "b"}}, 'processor.model.sha "a" → "b"'),
        (PLAN, {"model": {}}, 'processor.model.sha "a" → absent; processor.model absent → {}'),
        (
            PLAN,
            {"model": {"sha": "a"}, "x": 1, "y": "z" * 200},
            f'processor.x absent → 1; processor.y absent → "{"z" * 79}…',
        ),
        (
            grid_plan(Grid(Size(16, 16), Size(4, 4), Size(3, 4))),
            {},
            "sampler.panel 4 → 5; sampler.stride [4, 4] → [3, 4]; windows 16 → 20",
        ),
    ],
)
async def test_another_plan_is_named_and_nothing_is_touched(
    make: Make,
    name: str,
    plan: GridPlan,
    processor: dict[str, Any],
    difference: str,
    tmp_path: Path,
) -> None:
    sink = make(tmp_path)
    how = Recipe(PLAN.config, {"model": {"sha": "a"}}, sink.config)
    with pytest.raises(Exception, match="ended at 6"):
        await write(sink, PLAN, how, stop=6)
    before = tree(tmp_path)
    how = Recipe(plan.config, processor or how.processor, sink.config)
    with pytest.raises(PlanChanged) as caught:
        await write(sink, plan, how)
    assert f"{tmp_path / name} was begun by another plan ({difference}); " in str(caught.value)
    assert "--overwrite starts afresh" in str(caught.value)
    assert tree(tmp_path) == before
    assert await write(sink, plan, how, overwrite=True) == plan.count
    assert await write(sink, plan, how) == 0


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_an_output_that_holds_nothing_is_begun_anew(
    make: Make, name: str, tmp_path: Path
) -> None:
    """After a first attempt that failed at once: there is nothing that could be lost."""
    sink = make(tmp_path)
    with pytest.raises(Exception, match="ended at 0"):
        await write(sink, how=Recipe(PLAN.config, {"output": "no"}, sink.config), stop=0)
    how = Recipe(PLAN.config, {"output": "yes"}, sink.config)
    async with sink.open(PLAN, Recipe(PLAN.config, {}, sink.config), overwrite=False):
        with pytest.raises(ConfigError, match="is being written by another run"):
            await write(sink, how=how)
    assert await write(sink, how=how) == PLAN.count
    await write(make(tmp_path / "whole"), how=how)
    whole = tree(tmp_path / "whole")
    assert {name: tree(tmp_path)[name] for name in whole} == whole


async def test_a_difference_at_the_end_of_a_long_text_counts(tmp_path: Path) -> None:
    sink = HeatmapZarr(tmp_path)
    await write(sink, how=Recipe(PLAN.config, {"model": "m" * 100 + "1"}, sink.config))
    with pytest.raises(PlanChanged, match=r'processor\.model "m+… → "m+…'):
        await write(sink, how=Recipe(PLAN.config, {"model": "m" * 100 + "2"}, sink.config))


async def test_another_chunk_is_another_plan(tmp_path: Path) -> None:
    await write(HeatmapZarr(tmp_path, 256))
    with pytest.raises(PlanChanged, match=r"sink\.chunk 256 → 8"):
        await write(HeatmapZarr(tmp_path, 8))


@pytest.mark.parametrize(("make", "name"), SINKS)
def test_they_are_sinks(make: Make, name: str, tmp_path: Path) -> None:
    sinks: list[Sink[Any]] = [HeatmapZarr(tmp_path), Pdmcsv(tmp_path)]  # mypy has a say, too
    sinks += [FeaturesZarr(tmp_path), FeaturesHdf5(tmp_path)]
    assert all(isinstance(sink, Sink) for sink in [*sinks, make(tmp_path)])


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_the_folder_does_not_matter(make: Make, name: str, tmp_path: Path) -> None:
    await write(make(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = replace(
        PLAN, slide=replace(PLAN.slide, ref=replace(PLAN.slide.ref, uri="/x/slide.svs"))
    )
    assert await write(make(tmp_path / "b"), moved) == 0


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_overwriting_a_finished_output(make: Make, name: str, tmp_path: Path) -> None:
    await write(make(tmp_path / "two"), value=2.0)
    await write(make(tmp_path / "one"))
    assert await write(make(tmp_path / "one"), overwrite=True, value=2.0) == PLAN.count
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_a_configuration_that_is_no_json(make: Make, name: str, tmp_path: Path) -> None:
    sink = make(tmp_path)
    for value in (Path("x"), float("nan")):
        how = Recipe(PLAN.config, {"weights": value}, sink.config)
        with pytest.raises(ConfigError, match=r"slide slide: .* cannot be recorded as JSON"):
            await write(sink, PLAN, how)


# What is not ours.


def csv_file(out: Path) -> None:
    (out / "slide.csv").write_text("a,b\n")


def sidecar(out: Path) -> None:
    (out / "slide.csv.json").write_text("{}")


def csv_folder(out: Path) -> None:
    (out / "slide.csv").mkdir()


def zarr_folder(out: Path) -> None:
    (out / "slide.zarr").mkdir()
    (out / "slide.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')


def zarr_two(out: Path) -> None:
    (out / "slide.zarr").mkdir()
    (out / "slide.zarr" / ".zgroup").write_text('{"zarr_format": 2}')


def folder(out: Path) -> None:
    (out / "slide.zarr").mkdir()
    (out / "slide.zarr" / "thesis.docx").write_text("…")


def zarr_file(out: Path) -> None:
    (out / "slide.zarr").write_text("…")


def deep(out: Path) -> None:
    (out / "slide.zarr").mkdir()
    (out / "slide.zarr" / "zarr.json").write_text("[" * 100_000)


def bad_state(out: Path) -> None:
    (out / "slide.zarr").mkdir()
    state = {"total": 16, "pieces": 17, "invalid": 0}
    attributes = {"streamwsi": {"version": 1, "state": state}}
    (out / "slide.zarr" / "zarr.json").write_text(json.dumps({"attributes": attributes}))


@pytest.mark.parametrize(
    ("make", "there", "replaceable"),
    [
        (Pdmcsv, csv_file, True),
        (Pdmcsv, sidecar, False),
        (Pdmcsv, csv_folder, False),
        (HeatmapZarr, zarr_folder, False),
        (HeatmapZarr, zarr_two, False),
        (HeatmapZarr, folder, False),
        (HeatmapZarr, zarr_file, False),
        (HeatmapZarr, deep, False),
        (HeatmapZarr, bad_state, True),
    ],
)
async def test_what_is_not_ours(
    make: Make, there: Callable[[Path], None], replaceable: bool, tmp_path: Path
) -> None:
    there(tmp_path)
    before = tree(tmp_path)
    sink = make(tmp_path)
    with pytest.raises(
        ConfigError, match=r"slide\.\S+ exists and was not made by streamwsi's"
    ) as caught:
        await write(sink)
    assert ("--overwrite" in str(caught.value)) == replaceable
    assert tree(tmp_path) == before
    if replaceable:
        assert await write(sink, overwrite=True) == PLAN.count
        await write(make(tmp_path / "fresh"))
        fresh = tree(tmp_path / "fresh")
        assert {name: tree(tmp_path)[name] for name in fresh} == fresh
    else:
        with pytest.raises(ConfigError, match=r"slide\.\S+ exists and .*choose another folder"):
            await write(sink, overwrite=True)
        assert tree(tmp_path) == before


@pytest.mark.parametrize(("make", "name"), [*SINKS, (Pdmcsv, "slide.csv.json")])
@pytest.mark.parametrize("overwrite", [False, True])
async def test_links_are_not_followed(
    make: Make, name: str, overwrite: bool, tmp_path: Path
) -> None:
    await write(make(tmp_path / "else"), value=2.0)
    before = tree(tmp_path / "else")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "else" / name)
    with pytest.raises(ConfigError, match=f"{name} is a symbolic link"):
        await write(make(tmp_path / "out"), overwrite=overwrite)
    assert tree(tmp_path / "else") == before


async def test_links_inside_a_heatmap_are_not_followed(tmp_path: Path) -> None:
    sink = HeatmapZarr(tmp_path / "out")
    with pytest.raises(Exception, match="ended at 6"):
        await write(sink, stop=6)
    chunks = tmp_path / "out" / "slide.zarr" / "0" / "c"
    chunks.rename(tmp_path / "else")
    chunks.symlink_to(tmp_path / "else")
    before = tree(tmp_path / "else")
    with pytest.raises(ConfigError, match=r"0/c is a symbolic link"):
        await write(sink)
    assert tree(tmp_path / "else") == before
    assert await write(sink, overwrite=True) == PLAN.count
    assert tree(tmp_path / "else") == before


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_names_that_no_output_can_have(make: Make, name: str, tmp_path: Path) -> None:
    plan = grid_plan(PLAN.grid, id="x" * 300)
    with pytest.raises(CannotWrite, match="File name too long"):
        await write(make(tmp_path), plan)
    # `SlideRef` refuses such ids; a sink does not rely on it.
    object.__setattr__(plan.slide.ref, "id", "../slide")
    with pytest.raises(ConfigError, match=r"'\.\./slide\.[\w.]+' cannot be the name of an output"):
        await write(make(tmp_path / "out"), plan)
    assert tree(tmp_path) == {}


# Locks.


@pytest.mark.parametrize(("make", "name"), SINKS)
@pytest.mark.parametrize("overwrite", [False, True])
async def test_one_run_at_a_time(make: Make, name: str, overwrite: bool, tmp_path: Path) -> None:
    sink = make(tmp_path)
    async with sink.open(PLAN, recipe(PLAN, sink), overwrite=False):
        with pytest.raises(ConfigError, match=rf"{name} is being written by another run; wait"):
            await write(make(tmp_path), overwrite=overwrite)
    assert await write(make(tmp_path), overwrite=overwrite) == PLAN.count
    assert not [path for path in tree(tmp_path) if path.startswith(".")]


@pytest.mark.parametrize(("make", "name"), SINKS)
async def test_what_dead_runs_leave_is_removed(make: Make, name: str, tmp_path: Path) -> None:
    await write(make(tmp_path / "whole"))
    lock, whole = tmp_path / "out" / f".{name}.lock", tree(tmp_path / "whole")
    with pytest.raises(Exception, match="ended at 6"):
        await write(make(tmp_path / "out"), stop=6)
    lock.touch()
    if make is HeatmapZarr:
        (tmp_path / "out" / name / ".0.c.7.7.7.partial").touch()
    await write(make(tmp_path / "out"))
    assert tree(tmp_path / "out") == whole
    # One died when all was written.
    lock.touch()
    await write(make(tmp_path / "out"))
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("blank", [False, True])
async def test_overwriting_that_was_interrupted(blank: bool, tmp_path: Path) -> None:
    await write(HeatmapZarr(tmp_path / "whole"))
    removed = tmp_path / "out" / ".slide.zarr.removed"
    removed.mkdir(parents=True)
    (removed / "rest").touch()
    if blank:
        (tmp_path / "out" / "slide.zarr").mkdir()
        (tmp_path / "out" / "slide.zarr" / ".zarr.json.partial").touch()
    await write(HeatmapZarr(tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


HOLD = """
import os, sys
from pathlib import Path
from streamwsi.sinks.durable import Lock
lock = Lock(Path(sys.argv[1]), Path("out"))
print("held", flush=True)
sys.stdin.read()
os._exit(9)
"""


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="out is being written by another run"):
            Lock(path, Path("out"))
    assert path.exists()
    Lock(path, Path("out")).release()
    assert not path.exists()


def test_a_lock_file_that_its_last_holder_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "lock", fcntl.flock, 0

    def flock(fd: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = Lock(path, Path("out"))
    assert calls == 2
    with pytest.raises(ConfigError):
        Lock(path, Path("out"))
    lock.release()


def test_a_lock_that_cannot_be_had_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    before = [*Path("/proc/self/fd").iterdir()]
    with pytest.raises(OSError, match="No locks available"):
        Lock(tmp_path / "lock", Path("out"))
    assert [*Path("/proc/self/fd").iterdir()] == before


def test_reading_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("[]")
    (tmp_path / "text").write_text("no")
    (tmp_path / "large").write_text(" " * (17 << 20) + "{}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "good").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    os.mkfifo(tmp_path / "pipe")
    names = ("missing", "list", "text", "large", "binary", "link", "pipe", ".", "good/under")
    assert [read_json(tmp_path / name) for name in names] == [None] * len(names)
    assert read_json(tmp_path / "good") == {}
