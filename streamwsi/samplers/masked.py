"""Masked: of another sampler's windows on a grid, those that lie on a mask.

The mask knows, for windows anywhere on the slide, the share of their area that it covers
(`streamwsi.samplers.masks`); the windows that reach the wanted share are kept and numbered
anew, 0 … n-1, in the order of the grid. The grid stays what it was: a heatmap has a cell for
every window of it, and the cells of those left out say so.

A masked plan holds its windows as runs of neighbours in a row, in arrays: tissue gives a few
runs a row, however many windows they have. Its regions are those of the other plan, without
the ones that hold no kept window, cut to the columns in use; and they name the boxes that the
kept windows need, so that a reader decodes no other tile. They are all of one height, like
those of the other plan: readers take the first one for the measure of what they need.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import BigChunk, Placement, Plan, Region, SmallChunks
from ..errors import ConfigError, ContractBroken, SlideError
from ..geometry import Box, Grid, Run
from ..slides import PyramidLevel, Slide, SlideRef
from ..stages import NeedsPixels, Sampler, SlideReader
from .masks import ArrayMask, Mask, MaskSource

__all__ = ["Masked", "MaskedPlan"]

_ROUNDING = 1e-9
"""A window on exactly the wanted share is kept, whichever way its area was rounded."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskedPlan:
    """Some windows of another plan; see `streamwsi.chunks.Plan`.

    Attributes:
        inner: the plan that has all of them.
        config: the other plan's, the mask's and the share.
    """

    inner: Plan
    config: Mapping[str, Any]
    _runs: _Runs = field(repr=False, compare=False)

    @property
    def slide(self) -> Slide:
        """Whose windows they are."""
        return self.inner.slide

    @property
    def level(self) -> PyramidLevel:
        """The level that is read."""
        return self.inner.level

    @property
    def grid(self) -> Grid:
        """The grid of all windows, those left out included."""
        return _grid(self.inner)

    @property
    def count(self) -> int:
        """How many windows are kept."""
        return self._runs.count

    @property
    def tiles_saved(self) -> int:
        """Tiles that all windows of the grid would need, but those that are kept do not."""
        everything = _needed_tiles(self, self.grid.runs(0, self.grid.count))
        return everything - _needed_tiles(self, self.runs(0, self.count))

    def place(self, index: int) -> Placement:
        """Where a window lies."""
        return replace(self.inner.place(self._runs.number_before(index)), index=index)

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The windows ``start … stop - 1`` as runs of cells."""
        return self._runs.between(start, stop)

    def regions(self, start: int = 0) -> Iterator[Region]:
        """The reads, from the first that holds window `start` or a later one."""
        if start >= self.count:
            return
        grid = self.grid
        left, width = 0, grid.size.width
        if grid.panel == grid.columns:
            first, behind = self._runs.columns_used
            used = grid.cover(0, first, 1, behind - first)
            left, width = used.x, used.width
        for region in self.inner.regions(self._runs.number_before(start)):
            first = self._runs.kept_before(region.first)
            behind = self._runs.kept_before(region.first + region.count)
            runs = [*self.runs(first, behind)]
            if not runs:
                continue
            yield Region(
                region.index,
                region.level,
                region.box.intersection(Box(left, region.box.y, width, region.box.height)),
                first,
                behind - first,
                tuple(box for run in runs for box in _boxes(self.level, grid, run)),
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """The runs that a masked plan keeps, in order, as columns of numbers.

    Attributes:
        numbers: of each run's first window: in the other plan.
        firsts: likewise, in the masked plan.
        rows, columns, counts: where the runs lie, and how many windows they have.
    """

    numbers: Numbers
    firsts: Numbers
    rows: Numbers
    columns: Numbers
    counts: Numbers

    @classmethod
    def of(cls, runs: Iterator[Run]) -> _Runs:
        """From runs that are numbered as in the other plan."""
        table = np.array([(r.first, r.row, r.column, r.count) for r in runs], np.int64)
        numbers, rows, columns, counts = table.reshape(-1, 4).T
        return cls(numbers, np.cumsum(counts) - counts, rows, columns, counts)

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def number_before(self, index: int) -> int:
        """The number, in the other plan, of a kept window."""
        if not 0 <= index < self.count:
            raise IndexError(f"there is no window {index}; the plan has {self.count}")
        i = int(np.searchsorted(self.firsts, index, "right")) - 1
        return int(self.numbers[i]) + index - int(self.firsts[i])

    def kept_before(self, number: int) -> int:
        """How many windows are kept of those before a number of the other plan."""
        i = int(np.searchsorted(self.numbers, number, "right")) - 1
        if i < 0:
            return 0
        return int(self.firsts[i]) + min(number - int(self.numbers[i]), int(self.counts[i]))

    def between(self, start: int, stop: int) -> Iterator[Run]:
        i = int(np.searchsorted(self.firsts, start, "right")) - 1
        while start < stop:
            skip = start - int(self.firsts[i])
            count = min(stop - start, int(self.counts[i]) - skip)
            yield Run(start, int(self.rows[i]), int(self.columns[i]) + skip, count)
            start += count
            i += 1

    @property
    def columns_used(self) -> tuple[int, int]:
        """The first column that holds a kept window, and the one behind the last."""
        return int(self.columns.min()), int((self.columns + self.counts).max())


@dataclass(frozen=True, slots=True)
class Masked:
    """Those windows of another sampler that lie on a mask.

    Attributes:
        sampler: has all windows, on a grid.
        mask: what to keep: a boolean array ``(height, width)`` that covers the slide from
            edge to edge, a mask of `streamwsi.samplers`, or one that is made from the slide's
            pixels (`TissueMask`).
        fraction: a window is kept where at least this share of its area lies on the mask.

    Raises:
        ConfigError: the fraction is not above 0 and at most 1; or, when planning, the windows
            do not lie on a grid.
        SlideError: when planning: no window is kept.
    """

    sampler: Sampler = field(metadata={"role": "sampler"})
    mask: Mask | MaskSource | npt.NDArray[np.bool_] = field(metadata={"role": "mask"})
    fraction: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"a window's share of the mask must be above 0 and at most 1, not {self.fraction}"
            )
        if isinstance(self.mask, np.ndarray):
            object.__setattr__(self, "mask", ArrayMask(self.mask))

    def needs_pixels(self, slide: SlideRef) -> bool:
        """Whether the mask, or the other sampler, does."""
        sampler = self.sampler
        inner = isinstance(sampler, NeedsPixels) and sampler.needs_pixels(slide)
        return inner or isinstance(self.mask, MaskSource)

    async def prepare(self, reader: SlideReader, memory: int) -> Masked:
        """The same sampler with a mask that needs no pixels any more."""
        sampler, mask = self.sampler, self.mask
        if isinstance(sampler, NeedsPixels) and sampler.needs_pixels(reader.slide.ref):
            sampler = await sampler.prepare(reader, memory)
        if isinstance(mask, MaskSource):
            mask = await mask.prepare(reader, memory)
        return replace(self, sampler=sampler, mask=mask)

    def plan(self, slide: Slide) -> MaskedPlan:
        """The windows of a slide.

        Raises:
            ContractBroken: the mask is made from pixels, and `prepare` was not called.
            ConfigError, LevelNotFound: as the other sampler does.
            SlideError: no window is kept.
        """
        mask = self.mask
        if isinstance(mask, np.ndarray | MaskSource):
            raise ContractBroken(f"{type(mask).__name__} must be prepared with the slide's reader")
        inner = self.sampler.plan(slide)
        grid = _grid(inner)
        runs = _Runs.of(_kept(inner, grid, mask, self.fraction - _ROUNDING))
        if not runs.count:
            raise SlideError(
                f"{slide.ref.uri}: none of the {inner.count:,} windows has {self.fraction:.3g} of "
                f"its area on the {mask.name}; look at the mask, or ask for a smaller fraction"
            )
        config = {
            "type": "masked",
            "sampler": dict(inner.config),
            "mask": dict(mask.config),
            "fraction": self.fraction,
        }
        return MaskedPlan(inner, config, runs)

    def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The kept windows, cut by the other sampler."""
        return self.sampler.smallchunks(plan, bigchunks)


def _grid(plan: Plan) -> Grid:
    if plan.grid is None:
        raise ConfigError("a mask chooses among windows on a grid, and this sampler's are not")
    return plan.grid


def _kept(inner: Plan, grid: Grid, mask: Mask, least: float) -> Iterator[Run]:
    """The runs of windows with at least that share on the mask, numbered as in `inner`."""
    base = inner.slide.level(0).size
    scale_x, scale_y = inner.level.downsample
    for run in inner.runs(0, inner.count):
        box = grid.box(run.row, run.column)
        lefts = _lefts(grid, run).astype(np.float64) * scale_x
        shares = mask.shares(
            base, box.y * scale_y, box.bottom * scale_y, lefts, lefts + box.width * scale_x
        )
        edges = np.flatnonzero(np.diff((shares >= least).astype(np.int8), prepend=0, append=0))
        for begin, end in edges.reshape(-1, 2).tolist():
            yield Run(run.first + begin, run.row, run.column + begin, end - begin)


def _lefts(grid: Grid, run: Run) -> Numbers:
    """Where the windows of a run begin, ``(n,)``."""
    first = grid.origin[0] + run.column * grid.stride.width
    return np.minimum(first + np.arange(run.count) * grid.stride.width, grid.last[0])


def _boxes(level: PyramidLevel, grid: Grid, run: Run) -> Iterator[Box]:
    """Boxes that hold the windows of a run, and touch no tile that none of them touches."""
    lefts = _lefts(grid, run)
    last = np.minimum(lefts + grid.kernel.width, level.size.width) - 1
    first = np.maximum(lefts, 0)
    gaps = np.flatnonzero(first[1:] // level.tile.width > last[:-1] // level.tile.width) + 1
    for begin, end in pairwise([0, *gaps.tolist(), run.count]):
        yield grid.cover(run.row, run.column + begin, 1, end - begin)


def _needed_tiles(plan: MaskedPlan, runs: Iterator[Run]) -> int:
    """How many tiles the windows of some runs touch (of a level that is resampled: but for what
    the filter needs around them)."""
    read = plan.level.source or plan.level
    tile, (factor_x, factor_y) = read.tile, plan.level.factor
    shape = -(-read.size.height // tile.height), -(-read.size.width // tile.width)
    needed = np.zeros(shape, np.bool_)
    for box in (box for run in runs for box in _boxes(plan.level, plan.grid, run)):
        needed[
            int(box.y * factor_y) // tile.height : ceil(box.bottom * factor_y / tile.height),
            int(box.x * factor_x) // tile.width : ceil(box.right * factor_x / tile.width),
        ] = True
    return int(np.count_nonzero(needed))
