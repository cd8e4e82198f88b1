"""The scroll reader against the arrays that its tiles come from."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from unittest import mock

import anyio
import anyio.lowlevel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwsi.blocks import ArrayRef
from streamwsi.chunks import BigChunk, Damage, Pixels, Region
from streamwsi.errors import CannotRead, ConfigError
from streamwsi.geometry import Box, Grid, Size
from streamwsi.limits import Limits
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.slides import PyramidLevel, Slide, SlideRef
from streamwsi.sources import scroll
from streamwsi.sources.base import ScrollReader
from streamwsi.testing.faults import GARBAGE, Fault, ScriptedSource
from streamwsi.workers import Workers, open_workers

REF = SlideRef("slide", "slide.tif")
PATTERN = 0x5C


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Pixels that avoid the two values that tests write on purpose."""
    values = np.random.default_rng(seed).integers(0, 80, (height, width, channels))
    return values.astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """A level, how it is cut into regions, and the memory to do it in."""

    array: Pixels
    tile: Size
    grid: Grid
    rows_per_region: int
    spare: int
    job_pixels: int
    jitter: int
    seed: int

    def plan(self, slide: Slide) -> GridPlan:
        return GridPlan(slide, slide.level(0), self.grid, self.rows_per_region, {})

    def memory(self, slide: Slide) -> int:
        """The least that the largest region needs, and some bytes more."""
        level, pixel = slide.level(0), slide.channels * np.dtype(slide.dtype).itemsize
        return self.spare + max(
            level_bytes(level, region.box, pixel) for region in self.plan(slide).regions()
        )


def level_bytes(level: PyramidLevel, box: Box, pixel: int) -> int:
    """The most bytes that a box of that size takes in whole tiles, at any place: by trying."""

    def most(length: int, tile: int, size: int) -> int:
        spans = ((at // tile * tile, -(-(at + length) // tile) * tile) for at in range(tile))
        return min(size, max(end - begin for begin, end in spans))

    width = most(box.width, level.tile.width, level.size.width)
    return width * most(box.height, level.tile.height, level.size.height) * pixel


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = Size(draw(st.integers(1, 60)), draw(st.integers(1, 120)))
    kernel = Size(draw(st.integers(1, size.width)), draw(st.integers(1, min(40, size.height))))
    stride = Size(draw(st.integers(1, size.width)), draw(st.integers(1, min(50, size.height))))
    tile = Size(draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    whole = Grid(size, kernel, stride)
    dtype = draw(st.sampled_from(["uint8", "uint16"]))
    channels = draw(st.sampled_from([1, 3, 4]))
    return Case(
        noise(size.height, size.width, channels).astype(dtype),
        tile,
        Grid(size, kernel, stride, draw(st.integers(1, whole.columns))),
        draw(st.integers(1, min(6, whole.rows))),
        draw(st.sampled_from([0, 0, 1, 500, 5000, 100_000])),
        draw(st.sampled_from([1, 300, 10**9])),
        draw(st.sampled_from([0, 3, 60])),
        draw(st.integers(0, 999)),
    )


@asynccontextmanager
async def opened(
    case: Case, faults: tuple[Fault, ...] = (), memory: int = 2**20
) -> AsyncIterator[tuple[ScrollReader, Workers]]:
    source = ScriptedSource({"slide": (case.array,)}, case.tile, faults, case.jitter, case.seed)
    limits = Limits(worker_kind="inline", memory=memory)
    with mock.patch.object(scroll, "_JOB_PIXELS", case.job_pixels), anyio.fail_after(20):
        async with open_workers(limits) as workers, source.open(REF, workers) as reader:
            yield reader, workers


def free_bytes(workers: Workers) -> int:
    return sum(block.nbytes for block in workers.arena._free)


def simple(
    height: int = 64, width: int = 20, tile: int = 8, kernel: int = 12, stride: int = 4
) -> Case:
    size = Size(width, height)
    grid = Grid(size, Size.of(kernel), Size.of(stride))
    return Case(noise(height, width), Size.of(tile), grid, 1, 0, 1, 0, 0)


def check(chunk: BigChunk, array: Pixels) -> None:
    box = chunk.region.box
    np.testing.assert_array_equal(chunk.pixels, array[box.y : box.bottom, box.x : box.right])


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(case=cases(), hold=st.integers(0, 3))
async def test_views_are_right_until_their_release(case: Case, hold: int) -> None:
    """Chunks are kept while the scroll runs ahead, and compared when they are given back."""
    chance = random.Random(case.seed)
    async with opened(case) as (reader, workers):
        plan = case.plan(reader.slide)
        memory = case.memory(reader.slide)
        before = workers.arena.resolve(ArrayRef(0, (2**20,), (1,), "uint8"))
        before[:] = PATTERN
        held: list[BigChunk] = []
        regions = []
        with anyio.fail_after(10):
            async with (
                aclosing(reader.bigchunks(plan.regions(), memory)) as chunks,
                anyio.create_task_group() as tasks,
            ):
                # In the lane, batches are given back by another task while the reader waits.
                async def give_back() -> None:
                    while True:
                        for _ in range(chance.randint(1, 4)):
                            await anyio.lowlevel.checkpoint()
                        if held:
                            chunk = held.pop(chance.randrange(len(held)))
                            check(chunk, case.array)
                            chunk.release()

                tasks.start_soon(give_back)
                async for chunk in chunks:
                    check(chunk, case.array)
                    assert not chunk.pixels.flags.writeable
                    regions.append(chunk.region)
                    held.append(chunk)
                    while len(held) > hold:
                        await anyio.lowlevel.checkpoint()
                while held:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert regions == [*plan.regions()]
        assert (before[memory:] == PATTERN).all(), "written behind the block"
        assert reader.tally.tiles_decoded <= once_per_panel(plan)
        assert reader.tally.distinct_tiles == len(set(tiles_of(plan, plan.regions())))
    assert free_bytes(workers) == workers.arena.nbytes


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(case=cases(), spare=st.sampled_from([0, 1, 2, 2.5, 5]))
async def test_the_next_chunk_comes_while_a_lasting_one_is_held(case: Case, spare: float) -> None:
    """And nobody else is there to give anything back; with memory for three regions all last."""
    async with opened(case) as (reader, _):
        plan = case.plan(reader.slide)
        memory = int((1 + spare) * case.memory(reader.slide))
        with anyio.fail_after(10), mock.patch.object(scroll, "_ROOM", 1):
            async with aclosing(reader.bigchunks(plan.regions(), memory)) as chunks:
                last: BigChunk | None = None
                lasting = []
                async for chunk in chunks:
                    if last is not None:
                        check(last, case.array)
                        last.release()
                    check(chunk, case.array)
                    lasting.append(chunk.lasting)
                    last = chunk
                    if not chunk.lasting:
                        chunk.release()
                        last = None
                if last is not None:
                    last.release()
        assert all(lasting) or spare < 2


def tiles_of(plan: GridPlan, regions: Iterator[Region]) -> Counter[tuple[int, int]]:
    """How often regions touch each tile."""
    tile = plan.level.tile
    return Counter(
        (x // tile.width, y // tile.height)
        for region in regions
        for box in [region.box.snapped(tile, plan.level.size)]
        for y in range(box.y, box.bottom, tile.height)
        for x in range(box.x, box.right, tile.width)
    )


def once_per_panel(plan: GridPlan) -> int:
    """Tiles to decode if each is decoded once per panel."""
    panels: dict[int, set[tuple[int, int]]] = {}
    for region in plan.regions():
        panels.setdefault(region.box.x, set()).update(tiles_of(plan, iter([region])))
    return sum(map(len, panels.values()))


def touched(region: Region, damage: list[Damage]) -> Counter[Damage]:
    return Counter(d for d in damage if not d.box.intersection(region.box).empty)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data(), case=cases())
async def test_damage_is_told_to_exactly_the_regions_that_show_it(
    data: st.DataObject, case: Case
) -> None:
    """Also where the tile was decoded for an earlier region, moved, or ended late."""
    size = case.grid.size
    at = st.tuples(st.integers(0, size.width - 1), st.integers(0, size.height - 1))
    spots = data.draw(st.sets(at, min_size=1, max_size=4))
    tile, tiles = case.tile, -(-size.width // case.tile.width)
    damage = {
        (x // tile.width, y // tile.height): Damage(
            0,
            y // tile.height * tiles + x // tile.width,
            Box(x, y, 1, 1).snapped(tile, size),
            "scripted damage",
        )
        for x, y in spots
    }
    faults = tuple(Fault(d.box, "damage") for d in damage.values())
    async with opened(case, faults) as (reader, _):
        plan = case.plan(reader.slide)
        with anyio.fail_after(10):
            async with aclosing(
                reader.bigchunks(plan.regions(), case.memory(reader.slide))
            ) as all_:
                async for chunk in all_:
                    assert Counter(chunk.damage) == touched(chunk.region, [*damage.values()])
                    check_around(chunk, case.array)
                    chunk.release()
    decoded = tiles_of(plan, plan.regions())
    assert reader.tally.damaged_tiles >= len(damage.keys() & decoded.keys())
    assert {*reader.tally.damage} == {damage[at] for at in damage.keys() & decoded.keys()}


def check_around(chunk: BigChunk, array: Pixels) -> None:
    box = chunk.region.box
    expected = array[box.y : box.bottom, box.x : box.right].copy()
    for part in (d.box.intersection(box).shifted(-box.x, -box.y) for d in chunk.damage):
        expected[part.y : part.bottom, part.x : part.right] = GARBAGE
    np.testing.assert_array_equal(chunk.pixels, expected)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(case=cases(), turns=st.integers(0, 120), kind=st.sampled_from(["cancel", "close"]))
async def test_leaving_at_any_point_leaves_nothing(case: Case, turns: int, kind: str) -> None:
    async with open_workers(Limits(worker_kind="inline", memory=2**20)) as workers:
        with anyio.fail_after(10), anyio.CancelScope() as scope:
            async with opened_in(workers, case) as reader, anyio.create_task_group() as tasks:
                plan = case.plan(reader.slide)
                stop = anyio.Event()

                async def read() -> None:
                    memory = case.memory(reader.slide)
                    async with aclosing(reader.bigchunks(plan.regions(), memory)) as chunks:
                        async for chunk in chunks:
                            if stop.is_set():
                                return
                            await anyio.lowlevel.checkpoint()
                            chunk.release()

                tasks.start_soon(read)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if kind == "cancel":
                    scope.cancel()
                stop.set()
        assert not (kind == "close" and scope.cancelled_caught)
        assert free_bytes(workers) == workers.arena.nbytes


@asynccontextmanager
async def opened_in(workers: Workers, case: Case) -> AsyncIterator[ScrollReader]:
    source = ScriptedSource({"slide": (case.array,)}, case.tile, (), case.jitter, case.seed)
    with mock.patch.object(scroll, "_JOB_PIXELS", case.job_pixels):
        async with source.open(REF, workers) as reader:
            yield reader


async def test_memory_must_hold_regions_at_any_place() -> None:
    """The first region lies on the tiles; the second touches a row of tiles more."""
    case = simple(tile=8, kernel=16, stride=4, width=16)
    fits_first, fits_all = 16 * 16 * 3, 16 * 24 * 3
    for memory in (fits_first, fits_all - 1):
        async with opened(case) as (reader, _):
            regions = case.plan(reader.slide).regions()
            with pytest.raises(ConfigError, match=r"slide\.tif: .*memory limit"):
                await anext(reader.bigchunks(regions, memory))
            assert reader.tally.tiles_decoded == 0
    assert await regions_read(case, fits_all) == 13


async def regions_read(case: Case, memory: int, start: int = 0) -> int:
    count = 0
    async with opened(case) as (reader, _):
        regions = case.plan(reader.slide).regions(start)
        with anyio.fail_after(5):
            async with aclosing(reader.bigchunks(regions, memory)) as chunks:
                async for chunk in chunks:
                    check(chunk, case.array)
                    chunk.release()
                    count += 1
    return count


async def test_a_first_region_smaller_than_the_others() -> None:
    """A resumed run may begin with the short last region of a panel."""
    case = simple(height=60, width=32, kernel=8, stride=8)
    case = Case(**{**vars(case), "grid": Grid(Size(32, 60), Size(8, 8), Size(8, 8), 2)})
    case = Case(**{**vars(case), "rows_per_region": 5})
    with mock.patch.object(scroll, "_ROOM", 1), mock.patch.object(scroll, "_ROOM_IN_REGIONS", 1):
        assert await regions_read(case, 2**14, start=13) == 3


async def test_a_region_beyond_the_memory_comes_as_an_error_in_its_place() -> None:
    case = simple(height=128)
    regions = [Region(0, 0, Box(0, 0, 8, 8), 0, 1), Region(1, 0, Box(0, 0, 20, 128), 1, 1)]
    async with opened(case) as (reader, _):
        async with aclosing(reader.bigchunks(iter(regions), 1000)) as chunks:
            check(await anext(chunks), case.array)
            with pytest.raises(ConfigError, match="memory limit"):
                await anext(chunks)
        await anyio.lowlevel.checkpoint()  # the reader's tasks go on


async def test_an_error_of_the_plan_comes_in_its_place() -> None:
    case = simple()

    def regions() -> Iterator[Region]:
        yield Region(0, 0, Box(0, 0, 8, 8), 0, 1)
        raise LookupError("the plan is broken")

    async with opened(case) as (reader, _):
        async with aclosing(reader.bigchunks(regions(), 2**16)) as chunks:
            check(await anext(chunks), case.array)
            with pytest.raises(LookupError, match="the plan is broken"):
                await anext(chunks)
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("jitter", [0, 5])
async def test_an_error_in_fill_comes_in_its_place(jitter: int) -> None:
    case = Case(**{**vars(simple()), "jitter": jitter})
    async with opened(case, (Fault(Box(3, 30, 1, 1), "fail"),)) as (reader, _):
        regions = case.plan(reader.slide).regions()
        async with aclosing(reader.bigchunks(regions, 2**16)) as chunks:
            # The tile's rows begin at 24; windows of 12 from 16 on reach into them.
            for _ in range(4):
                check(await anext(chunks), case.array)
            with pytest.raises(CannotRead, match="the script fails"):
                await anext(chunks)
        await anyio.lowlevel.checkpoint()


async def test_a_dead_worker_costs_the_pixels_of_its_job() -> None:
    case = simple()
    async with opened(case, (Fault(Box(3, 30, 1, 1), "die"),)) as (reader, _):
        regions = case.plan(reader.slide).regions()
        async with aclosing(reader.bigchunks(regions, 2**16)) as chunks:
            damage = {d async for chunk in chunks for d in chunk.damage}
    assert [(d.tile, d.box) for d in damage] == [(-1, Box(0, 24, 8, 8))]
    assert reader.tally.damaged_tiles == 1


async def test_a_hanging_job_is_cancelled_with_the_reader() -> None:
    case = simple()
    async with open_workers(Limits(worker_kind="inline", memory=2**20)) as workers:
        source = ScriptedSource({"slide": (case.array,)}, 8, (Fault(Box(0, 0, 1, 1), "hang"),))
        with anyio.move_on_after(0.05) as scope:
            async with source.open(REF, workers) as reader:
                await anext(reader.bigchunks(case.plan(reader.slide).regions(), 2**16))
        assert scope.cancelled_caught
        assert free_bytes(workers) == workers.arena.nbytes


@pytest.mark.parametrize("stride", [4, 30])
async def test_reading_goes_ahead_of_a_slow_consumer(stride: int) -> None:
    """Also over the gaps between windows."""
    case = simple(height=200, stride=stride, width=30)
    async with opened(case) as (reader, _):
        regions = [*case.plan(reader.slide).regions()]
        async with aclosing(reader.bigchunks(iter(regions), 2**18)) as chunks:
            await anext(chunks)
            with anyio.fail_after(5):
                everything = set(tiles_of(case.plan(reader.slide), iter(regions)))
                while reader.tally.tiles_decoded < len(everything):
                    await anyio.lowlevel.checkpoint()


async def test_reading_ahead_needs_some_regions_only() -> None:
    """What a larger limit would add is left to the other slides."""
    case = simple(height=400, kernel=8, stride=8)
    with mock.patch.object(scroll, "_ROOM", 1):
        async with opened(case) as (reader, _):
            regions = case.plan(reader.slide).regions()
            async with aclosing(reader.bigchunks(regions, 2**18)) as chunks:
                await anext(chunks)
                for _ in range(100):
                    await anyio.lowlevel.checkpoint()
                assert reader.tally.tiles_decoded == scroll._ROOM_IN_REGIONS * 2


async def test_a_closed_iteration_reads_no_further() -> None:
    case = simple()
    async with opened(case) as (reader, _):
        regions = case.plan(reader.slide).regions()
        async with aclosing(reader.bigchunks(regions, 24 * 20 * 3)) as chunks:
            first = await anext(chunks)
        before = reader.tally.tiles_decoded
        first.release()
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert reader.tally.tiles_decoded == before


async def test_the_tally_lists_the_first_hundred_damaged_tiles() -> None:
    case = simple(height=160, width=80, tile=8, kernel=8, stride=8)
    everywhere = Fault(Box(0, 0, 80, 160), "damage")
    async with opened(case, (everywhere,)) as (reader, _):
        regions = case.plan(reader.slide).regions()
        async with aclosing(reader.bigchunks(regions, 2**18)) as chunks:
            async for chunk in chunks:
                chunk.release()
    assert (reader.tally.damaged_tiles, len(reader.tally.damage)) == (200, 100)


async def test_no_regions_give_no_chunks() -> None:
    async with opened(simple()) as (reader, _):
        assert [chunk async for chunk in reader.bigchunks(iter(()), 4096)] == []


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    tile=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    job=st.integers(1, 3000),
    data=st.data(),
)
def test_jobs_cut_a_box_into_whole_tiles(
    size: tuple[int, int], tile: tuple[int, int], job: int, data: st.DataObject
) -> None:
    level = PyramidLevel(0, Size(*size), (1.0, 1.0), Size(*tile))
    x, y = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    right, bottom = data.draw(st.integers(x, size[0])), data.draw(st.integers(y, size[1]))
    box = Box.between(x, y, right, bottom).snapped(level.tile, level.size)
    seen = np.zeros((size[1], size[0]), int)
    with mock.patch.object(scroll, "_JOB_PIXELS", job):
        for part in scroll.jobs(level, box):
            assert not part.empty
            assert part == part.snapped(level.tile, level.size)
            seen[part.y : part.bottom, part.x : part.right] += 1
    expected = np.zeros_like(seen)
    expected[box.y : box.bottom, box.x : box.right] = 1
    np.testing.assert_array_equal(seen, expected)


@settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(case=cases(), data=st.data())
async def test_only_tiles_with_wanted_pixels_are_decoded(case: Case, data: st.DataObject) -> None:
    """Each once per panel, also where a later region wants tiles in rows that were passed."""
    chance = np.random.default_rng(data.draw(st.integers(0, 999)))
    async with opened(case) as (reader, _):
        level, wanted = reader.slide.level(0), []
        for region in case.plan(reader.slide).regions():
            boxes = [case.grid.box(*case.grid.cell(region.first + i)) for i in range(region.count)]
            some = tuple(box for box in boxes if chance.random() < 0.3)
            wanted.append(replace(region, wanted=some if chance.random() < 0.7 else ()))
        needed: dict[int, set[tuple[int, int]]] = {}
        for region in wanted:
            needed.setdefault(region.box.x, set()).update(
                (x // level.tile.width, y // level.tile.height)
                for box in region.wanted or ()
                for x in range(box.x, box.right)
                for y in range(box.y, box.bottom)
            )
        with anyio.fail_after(10):
            memory = case.memory(reader.slide)
            async with aclosing(reader.bigchunks(iter(wanted), memory)) as chunks:
                async for chunk in chunks:
                    frame = chunk.region.box
                    for box in chunk.region.wanted or ():
                        part = box.shifted(-frame.x, -frame.y)
                        np.testing.assert_array_equal(
                            chunk.pixels[part.y : part.bottom, part.x : part.right],
                            case.array[box.y : box.bottom, box.x : box.right],
                        )
                    for _ in range(chance.integers(4)):
                        await anyio.lowlevel.checkpoint()
                    chunk.release()
        assert reader.tally.tiles_decoded <= sum(map(len, needed.values()))
        assert reader.tally.distinct_tiles == len(set().union(*needed.values()))


async def test_what_is_raised_beside_the_reader_comes_as_itself() -> None:
    with pytest.raises(LookupError):
        async with opened(simple()):
            raise LookupError
