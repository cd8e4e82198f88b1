"""The kit for samplers."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

import anyio
import numpy as np
import pytest

from ...chunks import Damage, Pixels, Plan
from ...geometry import Box
from ...slides import Slide
from ...stages import Sampler
from ...workers import Workers
from .rules import (
    StageRules,
    cancelled_after,
    check_json,
    each_in_its_own_task,
    first_of,
    lent,
)

__all__ = ["SamplerCase", "SamplerConformance"]


@dataclass(frozen=True)
class SamplerCase:
    """A sampler, and a slide for it.

    Attributes:
        stage: the sampler.
        slide: a small one: the kit looks at every window.
        array: the pixels of the level that is sampled, ``(height, width, channels)``.
    """

    stage: Sampler
    slide: Slide
    array: Pixels

    def plan(self) -> Plan:
        """The plan of the slide."""
        return self.stage.plan(self.slide)


class SamplerConformance(StageRules):
    """Subclass it with a fixture `case` that returns a `SamplerCase`."""

    role = "sampler"

    def test_the_same_slide_gives_the_same_plan(self, case: SamplerCase) -> None:
        one, other = case.plan(), case.plan()
        assert one.count == other.count
        assert one.config == other.config
        assert [*one.regions()] == [*other.regions()]
        assert [one.place(i) for i in range(one.count)] == [
            other.place(i) for i in range(one.count)
        ]

    def test_the_config_is_json_and_names_the_type(self, case: SamplerCase) -> None:
        config = case.plan().config
        check_json(config)
        assert isinstance(config["type"], str)

    def test_windows_are_numbered_and_lie_on_the_level(self, case: SamplerCase) -> None:
        plan = case.plan()
        assert plan.slide == case.slide
        assert plan.level == case.slide.level(plan.level.index)
        level = Box(0, 0, *plan.level.size)
        sizes = set()
        for i in range(plan.count):
            place = plan.place(i)
            assert (place.index, place.level, place.slide) == (
                i,
                plan.level.index,
                case.slide.ref,
            )
            assert level.contains(place.box), f"{place} reaches beyond {level}"
            sizes.add((place.box.width, place.box.height))
        assert len(sizes) <= 1, f"windows of several sizes: {sizes}"

    def test_every_window_is_in_exactly_one_region(self, case: SamplerCase) -> None:
        plan, following = case.plan(), 0
        for number, region in enumerate(plan.regions()):
            assert (region.index, region.first) == (number, following)
            assert region.level == plan.level.index
            for i in range(region.first, region.first + region.count):
                assert region.box.contains(plan.place(i).box), f"{region} cuts window {i}"
            following += region.count
        assert following == plan.count

    def test_regions_can_begin_at_any_window(self, case: SamplerCase) -> None:
        plan = case.plan()
        regions = [*plan.regions()]
        for start in range(plan.count + 1):
            tail = [r for r in regions if r.first + r.count > start]
            assert [*plan.regions(start)] == tail, f"the regions from window {start} on"

    def test_runs_of_the_grid_are_the_windows(self, case: SamplerCase) -> None:
        plan = case.plan()
        if plan.grid is None:
            return
        cells = [
            plan.grid.box(run.row, run.column + i)
            for run in plan.runs(0, plan.count)
            for i in range(run.count)
        ]
        assert cells == [plan.place(i).box for i in range(plan.count)]

    async def _check_windows(
        self, case: SamplerCase, start: int, damage: tuple[Damage, ...]
    ) -> None:
        plan = case.plan()
        first = next(plan.regions(start)).first
        async with aclosing(
            case.stage.smallchunks(plan, lent(plan, case.array, damage, start))
        ) as windows:
            async for some in windows:
                assert some.first == first, f"window {some.first} came where {first} is next"
                assert len(some.valid) == len(some) > 0
                assert not some.pixels.flags.writeable, "the pixels of windows can be written"
                for i, (pixels, valid) in enumerate(zip(some.pixels, some.valid, strict=True)):
                    box = plan.place(first + i).box
                    whole = all(d.box.intersection(box).empty for d in damage)
                    assert bool(valid) == whole, f"window {first + i}: valid is {valid}"
                    expected = case.array[box.y : box.bottom, box.x : box.right]
                    assert np.array_equal(pixels, expected), f"window {first + i} is not its pixels"
                first += len(some)
        assert first == plan.count, f"{first} windows came of the {plan.count} that were planned"

    async def test_windows_come_whole_and_in_order(self, case: SamplerCase) -> None:
        await self._check_windows(case, 0, ())

    async def test_windows_of_a_resumed_run(self, case: SamplerCase) -> None:
        await self._check_windows(case, case.plan().count // 2, ())

    async def test_damage_is_told_of_the_windows_that_show_it(self, case: SamplerCase) -> None:
        plan = case.plan()
        boxes = [plan.place(i).box for i in {0, plan.count // 3, plan.count - 1}]
        spots = [Box(box.x, box.bottom - 1, 1, 1) for box in boxes]
        await self._check_windows(
            case, 0, tuple(Damage(plan.level.index, 0, spot, "x") for spot in spots)
        )

    async def test_leaving_early(self, case: SamplerCase) -> None:
        plan = case.plan()
        chunks = lent(plan, case.array)
        assert await first_of(case.stage.smallchunks(plan, chunks), 1)

    async def test_nothing_is_held_across_a_yield(self, case: SamplerCase) -> None:
        plan = case.plan()
        assert await each_in_its_own_task(case.stage.smallchunks(plan, lent(plan, case.array)))

    @pytest.mark.parametrize("turns", [0, 2, 7])
    async def test_cancellation_is_not_swallowed(self, case: SamplerCase, turns: int) -> None:
        plan = case.plan()

        async def work(workers: Workers) -> None:
            async with aclosing(case.stage.smallchunks(plan, lent(plan, case.array))) as windows:
                async for _ in windows:
                    await anyio.lowlevel.checkpoint()

        await cancelled_after(turns, work)
