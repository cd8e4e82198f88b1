"""Batches: where they are cut, what they hold, and what they give back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.batches import batches
from streamwsi.chunks import Batch, BigChunk, Pixels, SmallChunks
from streamwsi.errors import ContractBroken
from streamwsi.geometry import Grid, Size
from streamwsi.samplers.sliding_window import GridPlan, windows_of
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef

SIZE = Size(31, 23)
ARRAY = np.random.default_rng(0).integers(0, 200, (SIZE.height, SIZE.width, 3), np.uint8)


def plan(panel: int = 0, rows_per_region: int = 2, kernel: int = 5, stride: int = 3) -> GridPlan:
    level = PyramidLevel(0, SIZE, (1.0, 1.0), Size(8, 8))
    slide = Slide(SlideRef("a", "a.svs"), Pyramid((level,)), "uint8", 3)
    grid = Grid(SIZE, Size.of(kernel), Size.of(stride), panel)
    return GridPlan(slide, level, grid, rows_per_region, {})


class Lender:
    """Big chunks over one memory, of which at most one is lent out at a time: the next one
    comes only when nobody holds the last, and the pixels of that are gone by then.

    With `lasting` the next one comes while the last is held, if those before it are not.
    """

    def __init__(self, of: GridPlan, *, lasting: bool = False) -> None:
        self.plan = of
        self.lasting = lasting
        self.held: set[int] = set()

    async def windows(self, start: int) -> AsyncIterator[SmallChunks]:
        for region in self.plan.regions(start):
            may_be = {region.index - 1} if self.lasting else set()
            assert self.held <= may_be, "the reader would wait for ever"
            box = region.box
            pixels = ARRAY[box.y : box.bottom, box.x : box.right].copy()
            self.held.add(region.index)
            give_back = partial(self.held.discard, region.index)
            chunk = BigChunk(region, pixels, (), give_back, lasting=self.lasting)
            for windows in windows_of(self.plan, chunk):
                yield windows
            # As the lane does: the chunk is given back when the next one is asked for.
            chunk.release()
            if region.index not in self.held:
                pixels[:] = 255


def expected(of: GridPlan, start: int, stop: int) -> Pixels:
    boxes = [of.place(i).box for i in range(start, stop)]
    return np.stack([ARRAY[b.y : b.bottom, b.x : b.right] for b in boxes])


@settings(deadline=None, max_examples=150)
@given(
    panel=st.integers(0, 9),
    rows=st.integers(1, 7),
    size=st.integers(1, 80),
    skipped=st.integers(0, 70),
    lasting=st.booleans(),
)
async def test_batches_are_cut_at_multiples_wherever_they_begin(
    panel: int, rows: int, size: int, skipped: int, lasting: bool
) -> None:
    """Across rows, regions and panels, with memory for one region, or for two."""
    of = plan(panel, rows)
    start = skipped // size * size
    if start >= of.count:
        return
    lender = Lender(of, lasting=lasting)
    given_: list[tuple[int, int]] = []
    async with aclosing(batches(of, lender.windows(start), size, start)) as all_:
        async for batch in all_:
            places = batch.places
            given_.append((places.start, places.stop))
            assert len(batch) == len(places) == len(batch.valid) == sum(map(len, batch.parts))
            np.testing.assert_array_equal(batch.pixels, expected(of, places.start, places.stop))
            batch.release()
    ends = [*range(start + size, of.count, size), of.count]
    assert given_ == [*zip([start, *ends[:-1]], ends, strict=True)]
    assert not lender.held


async def test_a_batch_within_a_region_is_not_copied() -> None:
    of = plan(rows_per_region=4)
    lender = Lender(of)
    async with aclosing(batches(of, lender.windows(0), 4)) as all_:
        batch = await anext(all_)
        assert batch.chunks
        assert all(part.base is not None for part in batch.parts)
        assert not any(part.flags.owndata for part in batch.parts)
        batch.release()


async def test_a_batch_across_two_regions_is_not_copied_where_the_first_lasts() -> None:
    of = plan(rows_per_region=2)
    size = of.grid.columns * 2 + 5
    for lasting in (True, False):
        lender = Lender(of, lasting=lasting)
        async with aclosing(batches(of, lender.windows(0), size)) as all_:
            batch = await anext(all_)
            assert len({id(chunk) for chunk in batch.chunks}) == 1 + lasting
            assert any(part.flags.owndata for part in batch.parts) is not lasting
            batch.release()


async def test_a_batch_holds_its_chunk_until_its_release() -> None:
    of = plan(rows_per_region=9)
    lender = Lender(of)
    async with aclosing(batches(of, lender.windows(0), of.count)) as all_:
        batch = await anext(all_)
        batch.keep()
        batch.release()
        assert lender.held == {0}
        batch.release()
        assert lender.held == {0}  # the reader's own loan, given back when the next is asked for
        assert await anext(all_, None) is None
    assert not lender.held


async def test_pixels_of_the_sampler_are_copied() -> None:
    """It may use its memory again for the next windows."""
    of = plan()
    memory = np.zeros((1, 5, 5, 3), np.uint8)

    async def windows() -> AsyncIterator[SmallChunks]:
        for i in range(of.count):
            memory[...] = i
            yield SmallChunks(i, memory, np.ones(1, np.bool_))

    seen = [batch.pixels[:, 0, 0, 0].tolist() async for batch in batches(of, windows(), 7)]
    assert [i for batch in seen for i in batch] == [*range(of.count)]
    assert len(seen[0]) == 7


async def test_damage_stays_with_its_window() -> None:
    of = plan()

    async def windows() -> AsyncIterator[SmallChunks]:
        for first in range(0, of.count, 3):
            n = min(3, of.count - first)
            valid = (np.arange(first, first + n) % 5) > 0
            yield SmallChunks(first, np.zeros((n, 5, 5, 3), np.uint8), valid)

    valid = [v async for batch in batches(of, windows(), 4) for v in batch.valid.tolist()]
    assert valid == [i % 5 > 0 for i in range(of.count)]


async def only(spans: list[tuple[int, int]], start: int = 0) -> list[Batch]:
    """What comes of windows with these numbers."""

    async def windows() -> AsyncIterator[SmallChunks]:
        for first, count in spans:
            pixels = np.zeros((count, 5, 5, 3), np.uint8)
            yield SmallChunks(first, pixels, np.ones(count, np.bool_))

    return [batch async for batch in batches(plan(), windows(), 10, start)]


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([(0, 5), (6, 57)], "gave window 6 where 5 comes next"),
        ([(1, 62)], "gave window 1 where 0 comes next"),
        ([(0, 5), (3, 60)], "gave window 3 where 5 comes next"),
        ([(0, 62)], "ended after 62 of the 63 windows"),
        ([], "ended after 0 of the 63 windows"),
        ([(0, 63), (63, 1)], "gave window 63, beyond the 63 that it promised"),
        ([(0, 64)], "gave window 63, beyond the 63 that it promised"),
    ],
)
async def test_a_sampler_that_breaks_the_order_is_told_so(
    spans: list[tuple[int, int]], says: str
) -> None:
    assert plan().count == 63
    with pytest.raises(ContractBroken, match=says):
        await only(spans)


async def test_windows_before_the_start_are_passed_over() -> None:
    given_ = await only([(0, 8), (8, 15), (23, 40)], start=20)
    assert [(b.places.start, b.places.stop) for b in given_][:2] == [(20, 30), (30, 40)]
