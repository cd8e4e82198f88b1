"""Cutting windows out of the pixels of a region.

Windows inside the level are strided views: nothing is copied. A window that reaches over the
level's edge (grids that pad) is put together in an array of its own, some windows at a time.
White is the largest number of an integer dtype, and 1.0 of floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import BigChunk, Damage, Pixels, Plan, SmallChunks
from ..errors import ContractBroken
from ..geometry import Box, Grid, Run

__all__ = ["windows_of"]

_PADDED_BYTES = 4 * 2**20
"""Bytes of padded windows at once, about."""


def windows_of(plan: Plan, chunk: BigChunk) -> Iterator[SmallChunks]:
    """The windows of a region, a run of cells at a time: views of its pixels, or padded copies.

    Raises:
        ContractBroken: the plan has no grid.
    """
    grid, region = plan.grid, chunk.region
    if grid is None:
        raise ContractBroken("windows can be cut from plans with a grid only")
    for run in plan.runs(region.first, region.first + region.count):
        if grid.pad is None:
            for part in _steady(grid, run):
                yield _views(grid, chunk, part)
            continue
        inside = grid.within(run.row)
        for part, whole in _split(run, inside):
            if whole:
                yield _views(grid, chunk, part)
            else:
                yield from _padded(grid, chunk, part)


def _steady(grid: Grid, run: Run) -> Iterator[Run]:
    """The parts of a run whose windows lie a stride apart: the last one may be nearer."""
    apart = grid.columns - 1 - run.column
    if grid.regular or not 0 < apart < run.count:
        yield run
        return
    yield Run(run.first, run.row, run.column, apart)
    yield Run(run.first + apart, run.row, run.column + apart, 1)


def _split(run: Run, inside: range) -> Iterator[tuple[Run, bool]]:
    """The parts of a run before, in and behind a range of columns, and whether they are in."""
    end = run.column + run.count
    left = min(max(run.column, inside.start), end) if inside else end
    right = max(left, min(end, inside.stop))
    for begin, stop, whole in ((run.column, left, False), (left, right, True), (right, end, False)):
        if begin < stop:
            yield Run(run.first + begin - run.column, run.row, begin, stop - begin), whole


def _views(grid: Grid, chunk: BigChunk, run: Run) -> SmallChunks:
    frame, kernel, stride = chunk.region.box, grid.kernel, grid.stride.width
    sy, sx, sc = chunk.pixels.strides
    first = grid.box(run.row, run.column)
    view = np.lib.stride_tricks.as_strided(
        chunk.pixels[first.y - frame.y :, first.x - frame.x :],
        (run.count, kernel.height, kernel.width, chunk.pixels.shape[2]),
        (stride * sx, sy, sx, sc),
        writeable=False,
    )
    return SmallChunks(run.first, view, _valid(first, stride, run.count, chunk.damage), chunk)


def _padded(grid: Grid, chunk: BigChunk, run: Run) -> Iterator[SmallChunks]:
    """Windows some of whose pixels lie beyond the edge, in arrays that the sampler owns."""
    shape = grid.kernel.height, grid.kernel.width, chunk.pixels.shape[2]
    step = max(1, _PADDED_BYTES // max(1, int(np.prod(shape)) * chunk.pixels.itemsize))
    for begin in range(0, run.count, step):
        count = min(step, run.count - begin)
        pixels = np.empty((count, *shape), chunk.pixels.dtype)
        valid = np.ones(count, np.bool_)
        for i in range(count):
            column = run.column + begin + i
            _pad(grid, chunk, grid.box(run.row, column), pixels[i])
            source = grid.cover(run.row, column, 1, 1)
            valid[i] = all(source.intersection(d.box).empty for d in chunk.damage)
        pixels.flags.writeable = False
        yield SmallChunks(run.first + begin, pixels, valid)


def _pad(grid: Grid, chunk: BigChunk, window: Box, out: Pixels) -> None:
    frame = chunk.region.box
    if grid.pad == "reflect":
        rows = _mirrored(window.y, window.height, grid.size.height) - frame.y
        columns = _mirrored(window.x, window.width, grid.size.width) - frame.x
        out[...] = chunk.pixels[np.ix_(rows, columns)]
        return
    inside = window.intersection(Box(0, 0, *grid.size))
    here, there = inside.shifted(-window.x, -window.y), inside.shifted(-frame.x, -frame.y)
    out[...] = _white(out.dtype)
    out[here.y : here.bottom, here.x : here.right] = chunk.pixels[
        there.y : there.bottom, there.x : there.right
    ]


def _mirrored(begin: int, count: int, size: int) -> npt.NDArray[np.int64]:
    """The pixels that are seen at ``begin …``, where 0 and ``size - 1`` are mirrors."""
    period = max(1, 2 * (size - 1))
    at = np.arange(begin, begin + count) % period
    return np.where(at < size, at, period - at)


def _white(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


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
