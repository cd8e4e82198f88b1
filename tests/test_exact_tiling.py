"""Windows with a halo, merged by their depth, give what the model makes of the whole level."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from streamwsi import Limits, Pipeline, SlideRef, run
from streamwsi.chunks import Places
from streamwsi.geometry import Box, Grid, Size
from streamwsi.processors import TorchModule, receptive_field, receptive_fields
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks.heatmap_zarr import HeatmapZarr
from streamwsi.sinks.memory import MemorySink
from streamwsi.sinks.tee import Tee
from streamwsi.sources import MemorySource
from streamwsi.testing.outputs import grid_plan, recipe, stream

Array = npt.NDArray[Any]


class UNet(nn.Module):
    """Two levels deep; an output for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.top = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.one(x))
        two = torch.relu(self.two(nn.functional.max_pool2d(one, 2)))
        deep = self.deep(nn.functional.avg_pool2d(two, 2))
        up = self.up(torch.cat([two, nn.functional.interpolate(deep, scale_factor=2)], 1))
        up = nn.functional.interpolate(up, scale_factor=2, mode="bilinear")
        out: Tensor = self.top(torch.cat([one, up], 1))
        return out


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "u-net":
        return UNet()
    if name == "strided":
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=2, padding=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(4, 2, 3, padding=1),
        )
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 5), padding=(3, 6), dilation=3),
        nn.ELU(),
        nn.Conv2d(4, 2, 3, padding=1),
    )


def whole(of: nn.Module, level: Array, align: int) -> Array:
    """The model on the whole level, cut to a multiple of the alignment, in float64."""
    height, width = (n // align * align for n in level.shape[:2])
    image = torch.from_numpy(level[:height, :width].transpose(2, 0, 1)[None] / 255)
    with torch.inference_mode():
        out: Array = of.double().eval()(image)[0].numpy()
    return out


def deepest(values: Array, places: Places, covered: Size) -> Array:
    """Each cell's value in the window in which it lies deepest, one window after the other.

    The nearest edge counts, then the nearest one of the other axis: halos may differ.
    """
    _, channels, rows, columns = values.shape
    cell = places[0].box.height // rows
    shape = covered.height // cell, covered.width // cell
    merged, depths = np.full((channels, *shape), np.nan), np.full((*shape, 2), -1.0)
    for place, value in zip(places, values, strict=True):
        box: Box = place.box
        for row in range(rows):
            above = row * cell if box.y > 0 else np.inf
            below = (rows - row - 1) * cell if box.bottom < covered.height else np.inf
            y = box.y // cell + row
            for column in range(columns):
                left = column * cell if box.x > 0 else np.inf
                right = (columns - column - 1) * cell if box.right < covered.width else np.inf
                x = box.x // cell + column
                depth = sorted((min(above, below), min(left, right)))
                if depth > depths[y, x].tolist():
                    depths[y, x], merged[:, y, x] = depth, value[:, row, column]
    return merged


@pytest.fixture
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receptive_fields, "_SHORTEST", 128)
    monkeypatch.setattr(receptive_fields, "_ACROSS", 16)


async def merged(of: nn.Module, level: Array, sampler: SlidingWindow, out: Path) -> list[Array]:
    """The map by the slow loop above, and the heatmap's."""
    memory = MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (level,)}, tile=32),
        sampler=sampler,
        processor=TorchModule(of.float(), device="cpu", batch_size=4),
        sink=Tee(memory, HeatmapZarr(out, chunk=24, blend="crop")),
    )
    limits = Limits(workers=1, worker_kind="threads")
    report = await run(pipeline, [SlideRef("a", "a")], limits=limits)
    report.raise_for_failures()
    height, width = (n // sampler.align * sampler.align for n in level.shape[:2])
    values: Any = memory.values["a"]
    group: Any = zarr.open_group(str(out / "a.zarr"), mode="r")
    return [deepest(values, memory.places["a"], Size(width, height)), np.asarray(group["0"])]


@pytest.mark.usefixtures("_small_images")
@pytest.mark.parametrize("size", [(131, 150), (96, 97), (64, 133)])
@pytest.mark.parametrize("name", ["dilated", "strided", "u-net"])
async def test_the_merged_map_is_that_of_the_whole_level(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    level = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    of = model(name)
    field = receptive_field(of)
    assert field.aligned
    sampler = SlidingWindow(64, halo=field.halo, align=field.align)
    expected = whole(of, level, field.align)
    for found in await merged(of, level, sampler, tmp_path):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@st.composite
def shifted(draw: st.DrawFn) -> tuple[Grid, Size]:
    """A grid whose last windows were moved, in panels, and the cells of a window."""
    align = draw(st.integers(1, 3))
    cells = Size(draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    kernel = Size(cells.width * align, cells.height * align)
    stride = Size(align * draw(st.integers(1, cells.width - 1)), align * draw(st.integers(1, cells.height)))  # fmt: skip # noqa: E501
    size = Size(draw(st.integers(kernel.width, 50)), draw(st.integers(kernel.height, 50)))
    grid = Grid(size, kernel, stride, shift=align)
    return replace(grid, panel=draw(st.integers(1, grid.columns))), cells


@settings(deadline=None, max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(case=shifted(), chunk=st.integers(3, 12), batch=st.integers(1, 9))
async def test_shifted_windows_are_merged_where_they_lie(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Grid, Size], chunk: int, batch: int
) -> None:
    grid, cells = case
    plan, out = grid_plan(grid), tmp_path_factory.mktemp("out")
    values = np.random.default_rng(0).normal(size=(plan.count, 2, cells.height, cells.width))
    sink = HeatmapZarr(out, chunk=chunk, blend="crop")
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        await writer.write(stream(plan, values, batch=batch))
    group: Any = await anyio.to_thread.run_sync(partial(zarr.open_group, out / "slide.zarr"))
    found = await anyio.to_thread.run_sync(np.asarray, group["0"])
    covered = grid.cover(0, 0, grid.rows, grid.columns)
    expected = deepest(values, Places(plan, 0, plan.count), Size(covered.width, covered.height))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.usefixtures("_small_images")
async def test_a_smaller_halo_would_not_do(tmp_path: Path) -> None:
    """A pixel less is seen, inside and nowhere at the level's own borders."""
    level = np.random.default_rng(0).integers(0, 256, (150, 131, 3), np.uint8)
    of = model("dilated")
    field = receptive_field(of)
    assert field.halo == Size(8, 5)
    less = SlidingWindow(64, halo=(field.halo.width - 1, field.halo.height - 1))
    expected = whole(of, level, 1)
    for found in await merged(of, level, less, tmp_path):
        wrong = (np.abs(found - expected) > 1e-3).any(0)
        assert wrong.any()
        first = 64 - field.halo.width, 64 - field.halo.height
        assert not wrong[: first[1], : first[0]].any()
        assert not wrong[-first[1] :, -first[0] :].any()
