"""Sinks under a mask: the cells that are left out, and resuming from wherever a run was killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from streamwsi import heatmaps
from streamwsi.geometry import Grid, Run, Size
from streamwsi.heatmaps import left_out
from streamwsi.samplers.masked import Masked, MaskedPlan
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import base
from streamwsi.sinks.heatmap_zarr import HeatmapZarr
from streamwsi.sinks.pdmcsv import Pdmcsv
from streamwsi.slides import Slide
from streamwsi.testing.outputs import Disk, Tree, grid_plan, recipe, restore, stream, tree

GRID = Grid(Size(60, 52), Size(4, 4), Size(4, 4), 5)
CELLS = np.zeros((13, 15), np.bool_)
CELLS[2:4, 1:13] = CELLS[9, 3] = CELLS[3:9, 11:14] = CELLS[12, 14] = True


def masked_plan(grid: Grid = GRID) -> MaskedPlan:
    inner = grid_plan(grid)

    class Given:
        def plan(self, slide: Slide) -> GridPlan:
            return inner

    sampler: Any = Given()
    return Masked(sampler, CELLS, 0.5).plan(inner.slide)


PLAN = masked_plan()
VALUES = np.random.default_rng(7).normal(size=(PLAN.count, 2, 1, 1)).astype(np.float32)
VALID = np.random.default_rng(8).random(PLAN.count) < 0.8


async def write(sink: Any, out: Path, **kwargs: Any) -> int:
    sink = sink(out)
    plan: Any = PLAN
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        at = int(writer.resume_at)
        await writer.write(stream(PLAN, VALUES, start=at, valid=VALID, **kwargs))
        return at


def read(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    group = zarr.open_group(path, mode="r")
    return np.asarray(group["0"][:]), np.asarray(group["valid"][:])  # type: ignore[index]


def expected(done: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both arrays when the first `done` windows are there."""
    image = np.full((2, *CELLS.shape), np.nan, np.float32)
    valid = np.where(CELLS, 0, 3).astype(np.uint8)
    for i in range(done):
        box = PLAN.place(i).box
        image[:, box.y // 4, box.x // 4] = VALUES[i, :, 0, 0]
        valid[box.y // 4, box.x // 4] = 1 if VALID[i] else 2
    return image, valid


def test_the_plan_keeps_the_cells() -> None:
    assert PLAN.count == np.count_nonzero(CELLS) < GRID.count
    runs = [*left_out(GRID, PLAN.runs(0, PLAN.count))]
    found = [(r.row, r.column + i) for r in runs for i in range(r.count)]
    assert sorted(found) == [*zip(*np.nonzero(~CELLS), strict=True)]
    assert next(left_out(GRID, iter([Run(0, *GRID.cell(0), 1)]))).first == 1


@pytest.mark.parametrize("chunk", [4, 7, 256])
@pytest.mark.parametrize("block", [32 << 20, 60])
async def test_cells_that_are_left_out_say_so_from_the_beginning(
    chunk: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heatmaps, "_BLOCK_BYTES", block)
    monkeypatch.setattr(base, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(base, "CHECKPOINT_SHARE", 0)
    seen: list[Tree] = []
    out = tmp_path / "out"

    def remember(piece: int) -> None:
        if piece:
            seen.append(tree(out))

    await write(lambda at: HeatmapZarr(at, chunk), out, between=remember)
    for done, content in [
        *zip(range(4, PLAN.count, 4), seen, strict=True),
        (PLAN.count, tree(out)),
    ]:
        restore(tmp_path / "then", content)
        found = await anyio.to_thread.run_sync(read, tmp_path / "then" / "slide.zarr")
        for array, wanted in zip(found, expected(done), strict=True):
            np.testing.assert_array_equal(array, wanted)


SINKS = [
    pytest.param(lambda out: HeatmapZarr(out, 4), id="zarr"),
    pytest.param(lambda out: HeatmapZarr(out, 256), id="zarr-one-chunk"),
    pytest.param(Pdmcsv, id="pdmcsv"),
]


@pytest.mark.parametrize("sink", SINKS)
async def test_killed_at_any_moment_and_resumed(
    sink: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(base, "CHECKPOINT_SHARE", 0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    out, left = tmp_path / "out", []
    out.mkdir()

    def remember(disk: Disk) -> None:
        left.extend([disk.living(), disk.durable()])

    with Disk(out, remember) as disk:
        await write(sink, out, between=lambda piece: remember(disk))
        finished = tree(out)
    starts = set()
    for content in left[:: max(1, len(left) // 20)]:
        restore(out, content)
        starts.add(await write(sink, out))
        assert tree(out) == finished
    assert len(starts) > 3


async def test_lines_of_kept_windows_only(tmp_path: Path) -> None:
    await write(Pdmcsv, tmp_path)
    lines = (tmp_path / "slide.csv").read_text().splitlines()
    corners = [tuple(map(int, line.split(",")[:2])) for line in lines]
    assert corners == [(box.y, box.x) for box in (PLAN.place(i).box for i in range(PLAN.count))]
