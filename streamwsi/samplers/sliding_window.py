"""SlidingWindow: windows on a regular grid, with the meaning of ``torch.nn.Conv2d``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import BigChunk, Damage, Placement, Plan, Region, SmallChunks
from ..errors import ConfigError, ContractBroken
from ..geometry import Box, Grid, Run, Size
from ..slides import PyramidLevel, Slide

__all__ = ["GridPlan", "SlidingWindow", "windows_of"]

_REGION_PIXELS = 4 * 2**20
"""New pixels per region: enough that handing a region on costs nothing beside decoding it."""

_PANEL_BYTES = 768 * 2**20
"""Bytes of a region at most, before the level is walked in panels.

Part of the plan, not of the limits: it decides the windows' order, and the same pipeline must
write the same bytes whatever the limits. Large panels keep the tiles at their seams, which are
decoded once per panel, below 5 % even for a kernel of 4096 on a level 100 000 pixels wide.
"""


@dataclass(frozen=True, slots=True)
class GridPlan:
    """All windows of a grid; see `streamwsi.chunks.Plan`.

    Attributes:
        rows_per_region: rows of windows that a region holds.
    """

    slide: Slide
    level: PyramidLevel
    grid: Grid
    rows_per_region: int
    config: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return self.grid.count

    def place(self, index: int) -> Placement:
        """Where a window lies."""
        box = self.grid.box(*self.grid.cell(index))
        return Placement(self.slide.ref, self.level.index, box, index)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The windows ``start … stop - 1`` as runs of cells."""
        return self.grid.runs(start, stop)

    def regions(self, start: int = 0) -> Iterator[Region]:
        """The reads, from the first that holds window `start` or a later one."""
        grid, step, index = self.grid, self.rows_per_region, 0
        per_panel = -(-grid.rows // step)
        if start >= grid.count:
            return
        row, column = grid.cell(start)
        column -= column % grid.panel
        index = column // grid.panel * per_panel + row // step
        for first in range(column, grid.columns, grid.panel):
            columns = min(grid.panel, grid.columns - first)
            for top in range(row // step * step, grid.rows, step):
                rows = min(step, grid.rows - top)
                box = grid.cover(top, first, rows, columns)
                yield Region(index, self.level.index, box, grid.index(top, first), rows * columns)
                index += 1
            row = 0


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Windows at ``i · stride`` while they fit: ``floor((size - kernel) / stride) + 1`` per axis.

    Attributes:
        kernel_size: a window's size in pixels of the level: an int for squares, or
            ``(width, height)``.
        stride: the distance between windows, likewise; the kernel size where None.
        level: index of the pyramid level.

    Raises:
        ConfigError: a size is below 1; or, when planning, beyond the level.
    """

    kernel_size: int | tuple[int, int] = 256
    stride: int | tuple[int, int] | None = None
    level: int = 0

    def __post_init__(self) -> None:
        for name, size in (("kernel size", self.kernel), ("stride", self.step)):
            if min(size) < 1:
                raise ConfigError(f"{name} {size} must be at least 1 in both axes")
        if self.level < 0:
            raise ConfigError(f"level {self.level} must be 0 (the finest) or more")

    @property
    def kernel(self) -> Size:
        """A window's size."""
        return Size.of(self.kernel_size)

    @property
    def step(self) -> Size:
        """The distance between windows."""
        return self.kernel if self.stride is None else Size.of(self.stride)

    def plan(self, slide: Slide) -> GridPlan:
        """The windows of a slide.

        Raises:
            LevelNotFound: the slide lacks the level.
            ConfigError: the kernel or the stride is beyond the level.
        """
        level = slide.level(self.level)
        try:
            grid = Grid(level.size, self.kernel, self.step)
        except ConfigError as error:
            raise ConfigError(f"{slide.ref.uri}, level {self.level}: {error}") from error
        pixel = slide.channels * np.dtype(slide.dtype).itemsize
        grid = Grid(level.size, self.kernel, self.step, _panel(grid, level, pixel))
        advance = max(level.tile.height, _REGION_PIXELS // _tiled_width(grid, level))
        rows = max(1, min(grid.rows, advance // self.step.height))
        config = {
            "type": "sliding-window",
            "kernel_size": list(self.kernel),
            "stride": list(self.step),
            "level": self.level,
        }
        return GridPlan(slide, level, grid, rows, config)

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The windows of each region, a row at a time."""
        async for chunk in bigchunks:
            for windows in windows_of(plan, chunk):
                yield windows


def _tiled_width(grid: Grid, level: PyramidLevel) -> int:
    return grid.cover(0, 0, 1, grid.panel).snapped(level.tile, level.size).width


def _panel(grid: Grid, level: PyramidLevel, pixel: int) -> int:
    """Columns of windows per panel, so that a region stays below `_PANEL_BYTES`."""
    tile, stride = level.tile, grid.stride
    if tile.width >= level.size.width:
        return grid.columns  # strips are read whole: panels would decode them again
    # A row of windows touches at most this many rows of pixels, at any place.
    rows = min(level.size.height, grid.kernel.height + 2 * tile.height)
    most = max(_PANEL_BYTES // (rows * pixel) - 2 * tile.width, grid.kernel.width)
    fit = max(1, (most - grid.kernel.width) // stride.width + 1)
    panels = -(-grid.columns // fit)
    return -(-grid.columns // panels)


def windows_of(plan: Plan, chunk: BigChunk) -> Iterator[SmallChunks]:
    """The windows of a region as strided views of its pixels, a run of cells at a time.

    Raises:
        ContractBroken: the plan has no grid.
    """
    grid, region = plan.grid, chunk.region
    if grid is None:
        raise ContractBroken("windows can be cut from plans with a grid only")
    sy, sx, sc = chunk.pixels.strides
    kernel = grid.kernel
    for run in plan.runs(region.first, region.first + region.count):
        first = grid.box(run.row, run.column)
        view = np.lib.stride_tricks.as_strided(
            chunk.pixels[first.y - region.box.y :, first.x - region.box.x :],
            (run.count, kernel.height, kernel.width, chunk.pixels.shape[2]),
            (grid.stride.width * sx, sy, sx, sc),
            writeable=False,
        )
        valid = _valid(first, grid.stride.width, run.count, chunk.damage)
        yield SmallChunks(run.first, view, valid, chunk)


def _valid(
    first: Box, stride: int, count: int, damage: tuple[Damage, ...]
) -> npt.NDArray[np.bool_]:
    """Which of `count` windows in a row from `first` on touch no damaged pixel."""
    valid = np.ones(count, np.bool_)
    for box in (d.box for d in damage):
        if box.y < first.bottom and first.y < box.bottom:
            # Window i spans [x + i·stride, right + i·stride).
            begin = max(0, (box.x - first.right) // stride + 1)
            end = max(0, -(-(box.right - first.x) // stride))
            valid[begin:end] = False
    return valid
