"""SlidingWindow: windows on a regular grid, with the meaning of ``torch.nn.Conv2d``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..chunks import BigChunk, Placement, Plan, Region, SmallChunks
from ..errors import ConfigError
from ..geometry import Grid, Run, Size
from ..resolutions import asked, assuming, chosen_level
from ..slides import Level, Microns, Power, PyramidLevel, Resolution, Slide
from .halos import check_halo, check_shift, inner
from .panels import panel_columns, region_rows
from .windows import windows_of

__all__ = ["GridPlan", "SlidingWindow", "windows_of"]


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
        level: what to read: the index of a pyramid level, or `Microns`, `Power`, or a function
            that is called with each `Slide` and returns one of these. 0 where it, `mpp` and
            `power` are None; only one of the three may be given.
        mpp: size of the windows' pixels in micrometres.
        power: their magnification. For both, the nearest level that is at least as fine is
            read and resampled (`streamwsi.resampling`).
        tolerance: a level that is this close to `mpp` or `power`, relative, is taken as it is.
        assume_mpp: micrometres of a level-0 pixel of slides that do not say it.
        padding: ``"valid"``: windows lie inside the level. ``"same"``: there are
            ``ceil(size / stride)`` per axis, and those at the edge reach beyond it.
            ``"shift"``: windows lie inside the level and cover it, for the last one of each axis
            is moved back to end where the level does. Where None: shift where there is a halo,
            valid where there is none.
        pad: what they see there: ``"white"``, or ``"reflect"``: the level, mirrored.
        offset: x and y of a window's corner, from which the others lie multiples of the stride
            away: to the right and below, and with padding in all directions, so that the whole
            level stays covered.
        halo: pixels at each edge of a window whose outputs are not to be used, for what lies
            beyond the window would have changed them; an int, or ``(width, height)``. The stride
            becomes the kernel size less twice the halo, so that each pixel of the level is a
            halo away from some window's edge, or from the level's own. With the halo that
            `streamwsi.processors.receptive_field` measures, a map made of the windows' centres
            is what the model would make of the whole level.
        align: with padding shift, windows lie at multiples of this many pixels: what a model
            needs whose output depends on where a window begins (pooling, strides;
            `receptive_field` measures it). The level is cut to a multiple of it, right and
            below.

    Raises:
        ConfigError: a size is below 1, or resolutions exclude each other, or halo, stride,
            padding and alignment do not go together; or, when planning, the
            windows are beyond the level, or the slide cannot have the resolution.
    """

    kernel_size: int | tuple[int, int] = 256
    stride: int | tuple[int, int] | None = None
    level: Resolution | None = field(default=None, metadata={"role": "function"})
    mpp: float | None = None
    power: float | None = None
    tolerance: float = 0.02
    assume_mpp: float | None = None
    padding: Literal["valid", "same", "shift"] | None = None
    pad: Literal["white", "reflect"] = "white"
    offset: tuple[int, int] = (0, 0)
    halo: int | tuple[int, int] | None = None
    align: int = 1

    def __post_init__(self) -> None:
        if self.halo is not None:
            check_halo(self.kernel, Size.of(self.halo), self.stride, self.padding)
        for name, size in (("kernel size", self.kernel), ("stride", self.step)):
            if min(size) < 1:
                raise ConfigError(f"{name} {size} must be at least 1 in both axes")
        if not isinstance(self.tolerance, int | float) or not 0 <= self.tolerance < 0.5:
            raise ConfigError(
                f"the tolerance of a resolution must be from 0 to below 0.5, not {self.tolerance}"
            )
        if self.assume_mpp is not None and not 0 < self.assume_mpp < float("inf"):
            raise ConfigError(f"assume_mpp must be positive, not {self.assume_mpp}")
        _ = self.resolution
        self._check_padding()

    def _check_padding(self) -> None:
        for name, value, known in (
            ("padding", self.edges, ("valid", "same", "shift")),
            ("pad", self.pad, ("white", "reflect")),
        ):
            if value not in known:
                choice = f"{', '.join(known[:-1])} or {known[-1]}"
                raise ConfigError(f"{name} must be {choice}, not {value!r}")
        object.__setattr__(self, "offset", tuple(Size.of(self.offset)))
        if self.edges == "valid" and min(self.offset) < 0:
            raise ConfigError(
                f"windows at the offset {self.offset} lie outside the level; with padding same "
                "they may"
            )
        if self.edges == "shift":
            halo = None if self.halo is None else Size.of(self.halo)
            check_shift(self.kernel, self.step, halo, self.offset, self.align)
        elif self.align < 1:
            raise ConfigError(f"align must be at least 1, not {self.align}")
        elif self.align != 1:
            raise ConfigError(f"align {self.align} needs padding shift, or a halo")

    @property
    def resolution(self) -> Resolution:
        """The one of level, mpp and power that was given; level 0 where none was.

        Raises:
            ConfigError: several were given, or one that cannot be.
        """
        given: list[Resolution] = [] if self.level is None else [self.level]
        given += [] if self.mpp is None else [Microns(self.mpp)]
        given += [] if self.power is None else [Power(self.power)]
        if len(given) > 1:
            raise ConfigError("level, mpp and power exclude each other; give one of them")
        one = given[0] if given else 0
        if not isinstance(one, int | Level | Microns | Power) and not callable(one):
            raise ConfigError(
                f"level {one!r} must be an index, Microns(…), Power(…) or a function of the slide"
            )
        return Level(one) if isinstance(one, int) else one

    @property
    def kernel(self) -> Size:
        """A window's size."""
        return Size.of(self.kernel_size)

    @property
    def step(self) -> Size:
        """The distance between windows."""
        if self.halo is not None:
            return inner(self.kernel, Size.of(self.halo))
        return self.kernel if self.stride is None else Size.of(self.stride)

    @property
    def edges(self) -> Literal["valid", "same", "shift"]:
        """The padding, where it is given or not."""
        return self.padding or ("valid" if self.halo is None else "shift")

    def plan(self, slide: Slide) -> GridPlan:
        """The windows of a slide.

        Raises:
            LevelNotFound: the slide lacks the level.
            ConfigError: the kernel or the stride is beyond the level, or the slide cannot have
                the resolution.
            SlideError: the function that chooses the level failed.
        """
        slide = assuming(slide, self.assume_mpp)
        resolution = asked(slide, self.resolution)
        level = chosen_level(slide, resolution, self.tolerance)
        try:
            grid = self._grid(level.size)
        except ConfigError as error:
            raise ConfigError(f"{slide.ref.uri}, level {level.index}: {error}") from error
        pixel = slide.channels * np.dtype(slide.dtype).itemsize
        grid = replace(grid, panel=panel_columns(grid, level, pixel))
        rows = region_rows(grid, level, pixel)
        config = {
            "type": "sliding-window",
            "kernel_size": list(self.kernel),
            "stride": list(self.step),
            "level": level.index,
            **self._padding_config,
            **self._resolution_config(resolution, level),
        }
        return GridPlan(slide, level, grid, rows, config)

    def _grid(self, size: Size) -> Grid:
        if self.edges == "same":
            return Grid.covering(size, self.kernel, self.step, self.offset, self.pad)
        shift = self.align if self.edges == "shift" else None
        return Grid(size, self.kernel, self.step, 0, self.offset, shift=shift)

    @property
    def _padding_config(self) -> Mapping[str, Any]:
        """What identifies the padding; nothing where there is none. (A halo is a stride.)"""
        config: dict[str, Any] = {}
        if self.edges == "same":
            config = {"padding": "same", "pad": self.pad}
        if self.edges == "shift":
            config = {"padding": "shift", "align": self.align}
        if any(self.offset):
            config["offset"] = [*self.offset]
        return config

    def _resolution_config(
        self, resolution: Level | Microns | Power, level: PyramidLevel
    ) -> Mapping[str, Any]:
        """What identifies the level besides its index."""
        config: dict[str, Any] = {}
        if not isinstance(resolution, Level):
            asked_for = (
                ("mpp", resolution.mpp)
                if isinstance(resolution, Microns)
                else (
                    "power",
                    resolution.power,
                )
            )
            config = dict((asked_for,), tolerance=self.tolerance, factor=[*level.factor])
        if self.assume_mpp is not None:
            config["assume_mpp"] = self.assume_mpp
        return config

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The windows of each region, a row at a time."""
        async for chunk in bigchunks:
            for windows in windows_of(plan, chunk):
                yield windows
