"""Overlapping maps, against a merge of the whole level in float64, number by number."""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt
import pytest
import yaozarrs
import zarr
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05 import Image, ImageLabel

from streamwsi.blending import BLENDS, Canvas
from streamwsi.errors import CannotWrite, ConfigError, StageMismatch
from streamwsi.geometry import Grid, Run, Size
from streamwsi.mosaics import Mosaic
from streamwsi.samplers.masked import MaskedPlan, _Runs
from streamwsi.sinks import HeatmapZarr
from streamwsi.sinks.zarr_arrays import DurableStore
from streamwsi.testing.outputs import grid_plan, recipe, stream, tree
from streamwsi.values import ValueType

Array = npt.NDArray[Any]
#: Making a failing example smaller takes minutes here.
GENERATE = (Phase.explicit, Phase.reuse, Phase.generate)


async def write(sink: HeatmapZarr, plan: Any, values: Array, **kwargs: Any) -> Path:
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        receipt = await writer.write(stream(plan, values, start=writer.resume_at, **kwargs))
    return Path(receipt.outputs[0])


def read(path: Path) -> tuple[Array, Array]:
    group = zarr.open_group(path, mode="r")
    return np.asarray(group["0"][:]), np.asarray(group["valid"][:])  # type: ignore[index]


def gaussian(cells: int) -> Array:
    x = np.arange(cells) + 0.5 - cells / 2
    weights: Array = np.exp(-0.5 * (x / (cells / 8)) ** 2)
    return weights


def reference(plan: Any, values: Array, valid: Array, blend: str) -> tuple[Array, Array]:
    """Every window on a raster without edges, in float64; cut at the level afterwards."""
    grid, (_, channels, h, w) = plan.grid, values.shape
    cell_x, cell_y = grid.kernel.width / w, grid.kernel.height / h
    left, top = grid.origin

    def at(run: Run) -> tuple[int, int]:
        box = grid.box(run.row, run.column)
        return round((box.y - top) / cell_y), round((box.x - left) / cell_x)

    rows, columns = at(Run(0, grid.rows - 1, grid.columns - 1, 1))
    rows, columns = rows + h, columns + w
    numbers: dict[tuple[int, int], list[tuple[float, ...]]] = defaultdict(list)
    lost = np.zeros((rows, columns), bool)
    planned = np.zeros((rows, columns), bool)
    for index in range(grid.count):
        y, x = at(next(grid.runs(index, index + 1)))
        planned[y : y + h, x : x + w] = True
    wy, wx = gaussian(h), gaussian(w)
    for run in plan.runs(0, plan.count):
        for k in range(run.count):
            one = Run(run.first + k, run.row, run.column + k, 1)
            y, x = at(one)
            box = grid.box(one.row, one.column)
            for i in range(h):
                for j in range(w):
                    if not valid[one.first]:
                        lost[y + i, x + j] = True
                        continue
                    far, size = h + w, grid.size
                    to_left = far if box.x <= 0 else j + 1
                    to_right = far if box.right >= size.width else w - j
                    up = far if box.y <= 0 else i + 1
                    to_bottom = far if box.bottom >= size.height else h - i
                    across, down = min(to_left, to_right), min(up, to_bottom)
                    depth = min(across, down) * (2 * far + 1) + across + down
                    weight = wy[i] * wx[j] if blend == "gaussian" else 1.0
                    numbers[y + i, x + j].append((weight, depth, *values[one.first, :, i, j]))
    merged = np.full((channels, rows, columns), np.nan)
    for (i, j), entries in numbers.items():
        table = np.array(entries, np.float64)
        cells = table[:, 2:]
        merged[:, i, j] = {
            "mean": lambda t=table, c=cells: c.mean(0),
            "gaussian": lambda t=table, c=cells: (t[:, :1] * c).sum(0) / t[:, 0].sum(),
            "max": lambda t=table, c=cells: c.max(0),
            "crop": lambda t=table, c=cells: c[np.argmax(t[:, 1])],
            "last": lambda t=table, c=cells: c[-1],
        }[blend]()
    codes = np.where(planned & (plan.count < grid.count), 3, 0)
    codes[lost] = 2
    codes[~np.isnan(merged[0])] = 1
    # What begins inside the level, or ends there, is part of the map.
    skip_y, skip_x = (math.floor(-min(0, o) / c) for o, c in ((top, cell_y), (left, cell_x)))
    stop_y = math.ceil((grid.size.height - top) / cell_y)
    stop_x = math.ceil((grid.size.width - left) / cell_x)
    inside = slice(skip_y, stop_y), slice(skip_x, stop_x)
    return merged[(slice(None), *inside)], codes[inside]


@dataclass(frozen=True)
class Case:
    """A grid and the maps that its windows give."""

    grid: Grid
    cells: Size
    channels: int
    chunk: int
    kept: Any  # one of: None, a share of the windows
    invalid: float

    @property
    def plan(self) -> Any:
        plan: Any = grid_plan(self.grid)
        if self.kept is None:
            return plan
        chance = np.random.default_rng(3).random(self.grid.count) < self.kept
        chance[self.grid.count // 2] = True
        runs = [
            Run(i, row, column, 1)
            for i in np.flatnonzero(chance).tolist()
            for row, column in [self.grid.cell(i)]
        ]
        return MaskedPlan(plan, {}, _Runs.of(iter(runs)))

    def values(self, count: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(count)
        shape = (count, self.channels, self.cells.height, self.cells.width)
        values = rng.normal(size=shape).astype(np.float32)
        valid = rng.random(count) >= self.invalid
        values[~valid] = np.nan  # as processors do
        return values, valid


@st.composite
def axes(draw: Any) -> tuple[int, int, int, int, int]:
    """Size, kernel, stride, cells and offset along an axis, all of which fit."""
    cells, unit = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    kernel = cells * unit
    stride = unit * draw(st.integers(1, cells + 1))
    return (
        draw(st.integers(max(kernel, stride), 40)),
        kernel,
        stride,
        cells,
        draw(st.integers(-3, 3)),
    )


@st.composite
def cases(draw: Any) -> Case:
    x, y = draw(axes()), draw(axes())
    size, kernel, stride, cells = (Size(x[i], y[i]) for i in range(4))
    assume(cells != Size(1, 1))  # a vector, whatever its axes
    if draw(st.booleans()):
        grid = Grid.covering(size, kernel, stride, (x[4], y[4]), "white")
    else:
        grid = Grid(size, kernel, stride)
    panel = draw(st.integers(1, grid.columns))
    return Case(
        replace(grid, panel=panel),
        cells,
        draw(st.integers(1, 2)),
        draw(st.integers(3, 12)),
        draw(st.none() | st.sampled_from([0.1, 0.6])),
        draw(st.sampled_from([0.0, 0.3])),
    )


async def merged(folder: Path, sink: HeatmapZarr, case: Case, batch: int) -> Path:
    plan = case.plan
    values, valid = case.values(plan.count)
    return await write(sink, plan, values, valid=valid, batch=batch)


@pytest.mark.parametrize("blend", BLENDS)
@settings(deadline=None, max_examples=12, phases=GENERATE)
@given(case=cases(), batch=st.integers(1, 9))
async def test_each_cell_is_what_the_whole_level_in_float64_gives(
    tmp_path_factory: pytest.TempPathFactory, blend: Any, case: Case, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("out")
    path = await merged(folder, HeatmapZarr(folder, case.chunk, blend), case, batch)
    image, codes = await anyio.to_thread.run_sync(read, path)
    values, valid = case.values(case.plan.count)
    expected, expected_codes = reference(case.plan, values, valid, blend)
    if codes.shape == image.shape[1:]:
        np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(image, expected, rtol=2e-6, atol=2e-6)
    assert not [*folder.glob(".*")], "seams are left"


@pytest.mark.parametrize("blend", BLENDS)
@settings(deadline=None, max_examples=6, phases=GENERATE)
@given(case=cases(), constant=st.floats(-1e6, 1e6, width=32))
async def test_constant_in_is_constant_out(
    tmp_path_factory: pytest.TempPathFactory, blend: Any, case: Case, constant: float
) -> None:
    folder, plan = tmp_path_factory.mktemp("out"), replace(case, kept=None).plan
    shape = (plan.count, case.channels, case.cells.height, case.cells.width)
    sink = HeatmapZarr(folder, case.chunk, blend)
    path = await write(sink, plan, np.full(shape, constant, np.float32))
    image, _ = await anyio.to_thread.run_sync(read, path)
    known = image[~np.isnan(image)]
    np.testing.assert_allclose(known, constant, rtol=3e-7, atol=1e-30)
    assert known.size


@settings(deadline=None, max_examples=12, phases=GENERATE)
@given(
    case=cases(),
    blend=st.sampled_from(BLENDS),
    stops=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    batch=st.integers(1, 7),
)
async def test_an_interrupted_merge_has_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    case: Case,
    blend: Any,
    stops: list[float],
    batch: int,
) -> None:
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    await merged(whole, HeatmapZarr(whole, case.chunk, blend), case, batch)
    plan, sink = case.plan, HeatmapZarr(broken, case.chunk, blend)
    values, valid = case.values(plan.count)
    for stop in stops:

        class Stopped(Exception):
            pass

        async def some(start: int, end: int) -> Any:
            async for pieces in stream(
                plan, values, start=start, stop=end, valid=valid, batch=batch
            ):
                yield pieces
            raise Stopped

        async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
            if writer.resume_at == plan.count:
                break
            end = max(writer.resume_at, int(stop * plan.count))
            with pytest.raises(Stopped):
                await writer.write(some(writer.resume_at, end))
    await write(sink, plan, values, valid=valid, batch=batch)
    assert tree(broken) == tree(whole)


DENSE = Case(Grid(Size(1200, 900), Size(64, 64), Size(24, 40)), Size(16, 16), 3, 16, None, 0.1)


async def test_nothing_is_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of all levels; the documents of arrays that do not change, too."""
    written: Counter[str] = Counter()
    put = DurableStore.set_sync

    def counted(self: DurableStore, key: str, value: Any) -> None:
        written[key] += 1
        put(self, key, value)

    monkeypatch.setattr(DurableStore, "set_sync", counted)
    case = replace(DENSE, grid=replace(DENSE.grid, panel=17))
    path = await merged(tmp_path, HeatmapZarr(tmp_path, case.chunk), case, 16)
    files = {str(p.relative_to(path)) for p in path.rglob("c/**/*") if p.is_file()}
    assert {key for key in written if "/c/" in key} == files
    assert {written[key] for key in files} == {1}


@pytest.mark.parametrize("count", [1, 3, 8])
async def test_a_band_that_cannot_be_written_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Bands are written while the next windows come."""
    case = replace(DENSE, grid=replace(DENSE.grid, panel=17))
    sink, broken = (HeatmapZarr(tmp_path / name, case.chunk) for name in ("whole", "broken"))
    await merged(tmp_path, sink, case, 16)
    put, left = DurableStore.set_sync, [count]

    def full(self: DurableStore, key: str, value: Any) -> None:
        if "/c/" in key:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, key, value)

    monkeypatch.setattr(DurableStore, "set_sync", full)
    with pytest.raises(CannotWrite, match=r"zarr cannot be written: No space left on device"):
        await merged(tmp_path, broken, case, 16)
    assert left[0] == -1  # no second attempt
    monkeypatch.undo()
    await merged(tmp_path, broken, case, 16)
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["float32", "float16", "labels"])
async def test_all_levels_are_valid_images_and_right(tmp_path: Path, dtype: Any) -> None:
    case = replace(DENSE, grid=replace(DENSE.grid, size=Size(3000, 2600)), chunk=64)
    plain = await merged(tmp_path / "plain", HeatmapZarr(tmp_path / "plain", 64, "max"), case, 16)
    sink = HeatmapZarr(tmp_path, 64, "max", dtype)
    path = await merged(tmp_path, sink, case, 16)
    whole, codes = await anyio.to_thread.run_sync(read, plain)
    expected = whole
    if dtype == "labels":
        expected = np.where(np.isnan(whole[0]), 0, 1 + np.argmax(whole, 0)).astype(np.uint8)
        assert (expected == 0).any()
    if dtype == "float16":
        expected = whole.astype(np.float16)

    def check() -> None:
        group = zarr.open_group(path, mode="r")
        image = Image.from_zarr(group)
        yaozarrs.validate_zarr_store(str(path))
        prefix = "labels/classes/" if dtype == "labels" else ""
        paths = [d.path for d in image.ome_attributes.multiscales[0].datasets]
        assert paths == [f"{prefix}{k}" for k in range(3)]
        found = np.asarray(group[paths[0]][:])  # type: ignore[index]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        half = np.asarray(group[paths[1]][:])  # type: ignore[index]
        if dtype == "labels":
            for i, j in np.random.default_rng(0).integers(0, half.shape, (200, 2)).tolist():
                covered = expected[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].ravel().tolist()
                known = [label for label in covered if label]
                most = max(known, key=lambda x: (known.count(x), x)) if known else 0
                assert half[i, j] == most
            classes = ImageLabel.from_zarr(group["labels/classes"])  # type: ignore[arg-type]
            label = classes.ome_attributes.image_label
            assert label is not None
            colors = label.colors
            assert colors is not None
            assert [c.label_value for c in colors] == [1, 2, 3]
        else:
            four = expected[:, :200, :200].astype(np.float64).reshape(3, 100, 2, 100, 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # where all four are NaN
                mean = np.nanmean(four, axis=(2, 4))
            np.testing.assert_allclose(half[:, :100, :100], mean, rtol=1e-3)

    await anyio.to_thread.run_sync(check)
    _, again = await anyio.to_thread.run_sync(read, plain)
    np.testing.assert_array_equal(codes, again)


@pytest.mark.parametrize("width", [32_000, 46_000, 50_000])
def test_crop_of_one_huge_window(width: int) -> None:
    """How deep its cells lie is counted in 32 bits."""
    values = np.full((1, 3, width), 7, np.float32)
    canvas = Canvas("crop", 1, Size(width, 3), 3, 1, width)
    canvas.add(0, 0, values, (True, True, True, True))
    assert (canvas.take().final(3, width) == 7).all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"blend": "sum"}, "blend must be one of mean, gaussian"),
        ({"dtype": "int8"}, "dtype must be"),
    ],
)
def test_settings_that_make_no_sense(settings_: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HeatmapZarr("out", **settings_)


async def test_more_classes_than_labels(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(8, 8), Size(4, 4), Size(4, 4)))
    with pytest.raises(StageMismatch, match="uint8 labels name 255 at most"):
        await write(HeatmapZarr(tmp_path, dtype="labels"), plan, np.zeros((4, 256), np.float32))


def test_the_memory_of_a_merge_is_known_and_does_not_grow_with_the_height() -> None:
    sink, values = HeatmapZarr("out"), ValueType((2, 256, 256), np.dtype("f4"))
    taken = [
        sink.memory(grid_plan(Grid(Size(16384, h), Size(512, 512), Size(256, 256))), values)
        for h in (16384, 160000)
    ]
    assert taken[0] == taken[1]
    cells = Mosaic.of(
        Grid(Size(16384, 16384), Size(512, 512), Size(256, 256)), 2, Size(256, 256), 256
    )
    canvas = cells.front * 8192 * (2 * 4 + 4 + 1)
    assert canvas <= taken[0] <= 3 * canvas
