"""Pdmcsv: line k is piece k, as the format has it; and the errors of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamwsi.chunks import Placement
from streamwsi.errors import CannotWrite, ConfigError, StageMismatch
from streamwsi.geometry import Box, Grid, Size
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import pdmcsv
from streamwsi.sinks.pdmcsv import Pdmcsv
from streamwsi.slides import SlideRef
from streamwsi.stages import Recipe
from streamwsi.testing.outputs import grid_plan, recipe, stream, tree


async def write(out: Path, plan: Any, values: Any, **kwargs: Any) -> list[list[str]]:
    """The lines of a new file, split."""
    sink = Pdmcsv(out)
    how = Recipe({}, {}, sink.config)
    async with sink.open(plan, how, overwrite=False) as writer:
        receipt = await writer.write(stream(plan, values, **kwargs))
    assert receipt.outputs == (f"{out}/slide.csv",)
    text = (tree(out)["slide.csv"] or b"").decode("ascii")
    assert text.endswith("\n")
    return [*csv.reader(text.splitlines(), skipinitialspace=True)]


@pytest.mark.parametrize("panel", [0, 2])
@pytest.mark.parametrize(("stride", "shift"), [(Size(3, 5), None), (Size(3, 2), 1)])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)])
async def test_line_k_is_piece_k(
    tmp_path: Path, panel: int, stride: Size, shift: int | None, shape: tuple[int, ...]
) -> None:
    grid = Grid(Size(20, 13), Size(4, 4), stride, panel, shift=shift)
    assert grid.regular == (shift is None)
    plan = grid_plan(grid, downsample=4.00027)
    values = np.random.default_rng(0).normal(size=(plan.count, *shape)).astype(np.float32)
    values[3] = np.nan
    lines = await write(tmp_path, plan, values, batch=5)
    assert len(lines) == plan.count
    for k, line in enumerate(lines):
        box = plan.place(k).box
        geometry = [box.y, box.x, 13, 20, 1, 4]
        assert line[:7] == [*map(str, geometry), "4.00027"]
        assert line[7:10] == [str(n) for n in (shape if len(shape) == 3 else (*shape, 1, 1))]
        assert line[10:] == [repr(float(v)) for v in values[k].ravel()]


async def test_large_batches_are_formatted_in_parts_and_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = grid_plan(Grid(Size(40, 40), Size(4, 4), Size(4, 4)))
    values = np.random.default_rng(0).normal(size=(100, 7))
    whole = await write(tmp_path / "whole", plan, values, batch=100)
    monkeypatch.setattr(pdmcsv, "_FEW", 8)
    monkeypatch.setattr(pdmcsv, "_MANY", 20)
    monkeypatch.setattr(pdmcsv, "_BUFFER_BYTES", 100)
    assert await write(tmp_path / "parts", plan, values, batch=100) == whole


async def test_each_line_has_its_own_shape(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    sink = Pdmcsv(tmp_path)

    async def changing() -> Any:
        async for some in stream(plan, np.ones((4, 2)), stop=2):
            yield some
        async for some in stream(plan, np.ones((4, 3)), start=2):
            yield some

    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        await writer.write(changing())
    lines = (tree(tmp_path)["slide.csv"] or b"").decode().splitlines()
    assert [line.count("1.0") - 1 for line in lines] == [2, 2, 3, 3]  # the downsample is 1.0


class Scattered:
    """A plan without a grid: a window of a given size at each given corner."""

    grid = None

    def __init__(self, boxes: list[Box]) -> None:
        self._grid = grid_plan(Grid(Size(64, 64), Size(4, 4), Size(4, 4)))
        self.slide, self.level = self._grid.slide, self._grid.level
        self.boxes, self.count, self.config = boxes, len(boxes), {"seed": 1}

    def place(self, index: int) -> Placement:
        return replace(self._grid.place(0), box=self.boxes[index], index=index)

    def runs(self, start: int, stop: int) -> Iterator[Any]:
        raise AssertionError("there is no grid")


async def test_windows_anywhere(tmp_path: Path) -> None:
    plan = Scattered([Box(7, 1, 4, 4), Box(0, 60, 4, 4), Box(33, 2, 4, 4)])
    lines = await write(tmp_path, plan, np.arange(3.0)[:, None], batch=2)
    assert [line[:2] for line in lines] == [["1", "7"], ["60", "0"], ["2", "33"]]
    assert [line[10] for line in lines] == ["0.0", "1.0", "2.0"]


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([Box(0, 0, 4, 4), Box(0, 0, 8, 8)], StageMismatch, "the windows differ in size"),
        ([Box(0, 0, 4, 4)] * 4 + [Box(0, 0, 8, 8)], StageMismatch, "the windows differ in size"),
        ([Box(0, 0, 4, 8)], ConfigError, "cannot write windows of 4×8; choose a square kernel"),
    ],
)
async def test_windows_that_the_format_cannot_say(
    tmp_path: Path, boxes: list[Box], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await write(tmp_path, Scattered(boxes), np.zeros((len(boxes), 1)))


async def test_a_kernel_that_is_not_square_is_refused_at_once(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(20, 20), Size(4, 5), Size(4, 4)))
    with pytest.raises(ConfigError, match="windows of 4×5; choose a square kernel"):
        await write(tmp_path, plan, np.zeros((plan.count, 1)))
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 4, "the processor returned list"),
        (np.zeros((4, 1, 1)), r"the processor returned shape \(4, 1, 1\)"),
        (np.zeros((4, 0)), r"the processor returned shape \(4, 0\)"),
        (np.zeros((4, 1), np.complex64), "the processor returned complex64 numbers"),
    ],
)
async def test_values_that_are_no_rows(tmp_path: Path, values: Any, message: str) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    with pytest.raises(StageMismatch, match=message):
        await write(tmp_path, plan, values)


async def test_a_number_per_window_is_a_vector_of_one(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    for name, values in (("a", np.arange(4.0)), ("b", np.arange(4.0)[:, None])):
        await write(tmp_path / name, plan, values)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


async def test_the_sidecar_says_what_it_was_made_from(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    await write(tmp_path, plan, np.zeros((4, 1)), valid=np.array([True, False, False, True]))
    record = json.loads((tmp_path / "slide.csv.json").read_text())["streamwsi"]
    size = (tmp_path / "slide.csv").stat().st_size
    state = {"bytes": size, "complete": True, "invalid": 2, "pieces": 4, "total": 4}
    assert record["state"] == state
    assert record["sink"] == {"type": "pdmcsv"}
    assert record["slide"]["name"] == "slide.svs"
    assert [*tree(tmp_path)] == ["slide.csv", "slide.csv.json"]


def begun(tmp_path: Path) -> tuple[GridPlan, Any, Recipe]:
    plan = grid_plan(Grid(Size(16, 16), Size(4, 4), Size(4, 4)))
    sink = Pdmcsv(tmp_path)
    return plan, sink, recipe(plan, sink)


async def test_a_file_that_lost_lines_is_refused(tmp_path: Path) -> None:
    plan, sink, how = begun(tmp_path)
    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(Exception, match="the pieces ended at 6 of 16"):
            await writer.write(stream(plan, np.ones((16, 1)), stop=6))
    path = tmp_path / "slide.csv"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ConfigError, match=r"slide\.csv has lost lines .*--overwrite"):
        async with sink.open(plan, how, overwrite=False):
            pass


async def test_a_file_that_was_removed_begins_again(tmp_path: Path) -> None:
    plan, sink, how = begun(tmp_path)
    async with sink.open(plan, how, overwrite=False) as writer:
        await writer.write(stream(plan, np.ones((16, 1))))
    (tmp_path / "slide.csv").unlink()
    async with sink.open(plan, how, overwrite=False) as writer:
        assert writer.resume_at == 0


@pytest.mark.parametrize("few", [1, 1000])  # replaced after the first lines, or before them
async def test_a_file_that_is_replaced_meanwhile_is_noticed(
    few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sink, how = begun(tmp_path)
    path = tmp_path / "slide.csv"

    def replace_it(piece: int) -> None:
        if piece == 8:
            path.unlink()
            path.write_bytes(b"other")

    monkeypatch.setattr(pdmcsv, "_FEW", few)
    monkeypatch.setattr(pdmcsv, "_BUFFER_BYTES", few)
    async with sink.open(plan, how, overwrite=False) as writer:
        with pytest.raises(CannotWrite, match="the file was replaced by another one"):
            await writer.write(stream(plan, np.ones((16, 1)), between=replace_it))


async def test_overwriting_leaves_the_other_names_of_a_file_alone(tmp_path: Path) -> None:
    plan, sink, how = begun(tmp_path)
    (tmp_path / "other").write_text("precious")
    (tmp_path / "slide.csv").hardlink_to(tmp_path / "other")
    async with sink.open(plan, how, overwrite=True) as writer:
        await writer.write(stream(plan, np.ones((16, 1))))
    assert (tmp_path / "other").read_text() == "precious"


def test_outputs() -> None:
    assert Pdmcsv("out").outputs(SlideRef("a", "x/a.svs")) == ("out/a.csv",)
