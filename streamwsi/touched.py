"""How many windows damage touches, counted window by window.

Where damage makes windows NaN, samplers mark them on the way, and sinks count them. This is for
damage that was painted over, which windows do not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .chunks import Damage, Plan, Region
from .geometry import Box

__all__ = ["windows_touched"]


def windows_touched(plan: Plan, region: Region, damage: Iterable[Damage], since: int) -> int:
    """Windows of a region, from number `since` on, that are made of damaged pixels too.

    Args:
        plan: what is sampled.
        region: one of its reads.
        damage: in pixels of the region's level.
        since: windows before this one do not count.
    """
    lost = [d.box for d in damage]
    start, stop = max(since, region.first), region.first + region.count
    if not lost or start >= stop:
        return 0
    windows = _pixels(plan, start, stop)
    return sum(any(not box.intersection(w).empty for box in lost) for w in windows)


def _pixels(plan: Plan, start: int, stop: int) -> Iterator[Box]:
    """The pixels of the level that each window is made of."""
    if plan.grid is None:
        yield from (plan.place(index).box for index in range(start, stop))
        return
    for run in plan.runs(start, stop):
        for column in range(run.column, run.column + run.count):
            yield plan.grid.cover(run.row, column, 1, 1)
