"""Masked plans against a loop over all windows, and a whole lane under a mask."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi import Limits, Pipeline, run
from streamwsi.errors import ConfigError, ContractBroken, SlideError
from streamwsi.geometry import Box, Grid, Size
from streamwsi.reports import SlideOutcome
from streamwsi.samplers.masked import Masked, MaskedPlan
from streamwsi.samplers.masks import ArrayMask
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow
from streamwsi.slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.sources.memory import MemorySource
from streamwsi.stages import SlideReader
from streamwsi.testing.faults import Checksums, RecordingSink, ScriptedSource

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Given:
    """A sampler with a plan of any panels and regions."""

    made: GridPlan

    def plan(self, slide: Slide) -> GridPlan:
        return self.made

    smallchunks = SlidingWindow.smallchunks


def upscaled(mask: Bools, size: Size) -> npt.NDArray[np.int64]:
    """A mask per pixel, times the number of its pixels: whole numbers of sub-pixels."""
    by_x = np.repeat(mask, size.width, axis=1).reshape(len(mask), size.width, -1).sum(2)
    by_y = np.repeat(by_x, size.height, axis=0).reshape(size.height, -1, size.width)
    return np.asarray(by_y.sum(1), np.int64)


@st.composite
def masked_plans(draw: st.DrawFn) -> tuple[GridPlan, Bools, float]:
    size = Size(draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    kernel = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    stride = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    edges = draw(st.sampled_from(["valid", "same", "shift"]))
    grid = Grid(size, kernel, stride)
    if edges == "same":
        grid = Grid.covering(size, kernel, stride, (0, 0), "white")
    if edges == "shift":
        grid = Grid(size, kernel, Size(*map(min, stride, kernel)), shift=1)
    grid = replace(grid, panel=draw(st.integers(1, grid.columns)))
    level = PyramidLevel(
        0, size, (1.0, 1.0), Size(draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    )
    slide = Slide(SlideRef("a", "a.svs"), Pyramid((level,)), "uint8", 3)
    plan = GridPlan(slide, level, grid, draw(st.integers(1, grid.rows)), {"some": "config"})
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    cells = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=144))
    mask = np.array(cells[: shape[0] * shape[1]]).reshape(shape)
    return plan, mask, draw(st.sampled_from([0.01, 0.05, 0.25, 0.5, 0.9, 1.0]))


def slow(plan: GridPlan, mask: Bools, fraction: float) -> list[Box]:
    """The kept windows, one after the other."""
    amount = upscaled(mask, plan.level.size)
    kept = []
    for i in range(plan.count):
        box = plan.place(i).box
        part = amount[max(0, box.y) : box.bottom, max(0, box.x) : box.right]
        if part.sum() >= (fraction - 1e-9) * box.width * box.height * mask.size:
            kept.append(box)
    return kept


def tiles(level: PyramidLevel, boxes: list[Box]) -> set[tuple[int, int]]:
    width, height = level.tile
    return {(x // width, y // height) for b in boxes for x in range(b.x, b.right) for y in range(b.y, b.bottom)}  # fmt: skip # noqa: E501


@settings(deadline=None, max_examples=250)
@given(case=masked_plans(), data=st.data())
def test_a_masked_plan_is_what_a_loop_over_all_windows_keeps(
    case: tuple[GridPlan, Bools, float], data: st.DataObject
) -> None:
    inner, mask, fraction = case
    expected = slow(inner, mask, fraction)
    sampler = Masked(Given(inner), mask, fraction)
    if not expected:
        with pytest.raises(SlideError, match=r"a\.svs: none of the .* windows has"):
            sampler.plan(inner.slide)
        return
    plan = sampler.plan(inner.slide)
    places = [plan.place(i) for i in range(plan.count)]
    assert [place.box for place in places] == expected
    assert [place.index for place in places] == [*range(len(expected))]
    start = data.draw(st.integers(0, plan.count))
    stop = data.draw(st.integers(start, plan.count))
    runs = [*plan.runs(start, stop)]
    cells = [inner.grid.box(r.row, r.column + i) for r in runs for i in range(r.count)]
    assert cells == expected[start:stop]
    assert [r.first for r in runs] == [start + sum(r.count for r in runs[:i]) for i in range(len(runs))]  # fmt: skip # noqa: E501
    check_regions(plan, expected)
    tail = [r for r in plan.regions() if r.first + r.count > start]
    assert [*plan.regions(start)] == tail
    inside = Box(0, 0, *plan.level.size)
    everything = [inner.place(i).box.intersection(inside) for i in range(inner.count)]
    kept = [box.intersection(inside) for box in expected]
    saved = len(tiles(plan.level, everything)) - len(tiles(plan.level, kept))
    assert plan.tiles_saved == saved


def check_regions(plan: MaskedPlan, expected: list[Box]) -> None:
    following = 0
    panels: dict[int, set[tuple[int, int]]] = {}
    for region in plan.regions():
        assert region.first == following
        assert region.count > 0
        following += region.count
        inside = Box(0, 0, *plan.level.size)
        boxes = [box.intersection(inside) for box in expected[region.first : following]]
        assert region.wanted is not None
        assert all(region.box.contains(box) for box in [*boxes, *region.wanted])
        assert all(any(w.contains(box) for w in region.wanted) for box in boxes)
        # No tile that no kept window needs.
        assert tiles(plan.level, [*region.wanted]) == tiles(plan.level, boxes)
        panel = next(plan.runs(region.first, region.first + 1)).column // plan.grid.panel
        panels.setdefault(panel, set()).add((region.box.x, region.box.right))
    assert following == plan.count
    # One width per panel: that keeps the reader's sheet going.
    assert all(len(widths) == 1 for widths in panels.values())
    if plan.grid.panel == plan.grid.columns:
        left = max(0, min(box.x for box in expected))
        right = min(plan.level.size.width, max(box.right for box in expected))
        assert panels == {0: {(left, right)}}


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_areas_are_exact_on_coarser_levels(data: st.DataObject) -> None:
    base = Size(data.draw(st.integers(8, 60)), data.draw(st.integers(8, 60)))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((5, 7)) < 0.5
    left = data.draw(st.integers(0, base.width - 1))
    right = data.draw(st.integers(left + 1, base.width))
    top = data.draw(st.integers(0, base.height - 1))
    bottom = data.draw(st.integers(top + 1, base.height))
    shares = ArrayMask(mask).shares(
        base, top, bottom, np.array([left, 0.0]), np.array([right, base.width])
    )
    amount = upscaled(mask, base)[top:bottom] / mask.size
    assert shares == pytest.approx([amount[:, left:right].mean(), amount.mean()], abs=1e-12)


def test_a_level_that_was_rounded_up_reaches_beyond_the_mask() -> None:
    """Level 0 is 10 wide, level 1 is 3 at a downsample of 4: the last window ends at 12."""
    levels = (
        PyramidLevel(0, Size(10, 10), (1.0, 1.0), Size(4, 4)),
        PyramidLevel(1, Size(3, 3), (4.0, 4.0), Size(4, 4)),
    )
    slide = Slide(SlideRef("a", "a"), Pyramid(levels), "uint8", 3)
    everything = np.ones((2, 2), np.bool_)
    for fraction, count in ((0.25, 9), (0.26, 8), (0.5, 8), (0.51, 4), (1.0, 4)):
        plan = Masked(SlidingWindow(1, level=1), everything, fraction).plan(slide)
        assert plan.count == count


def test_the_configuration_tells_masks_apart() -> None:
    mask = np.zeros((4, 6), np.bool_)
    mask[1, 2] = True
    of = Slide(
        SlideRef("a", "a"),
        Pyramid((PyramidLevel(0, Size(60, 40), (1.0, 1.0), Size(8, 8)),)),
        "uint8",
        3,
    )

    def config(mask: Any, fraction: float = 0.05) -> Any:
        return Masked(SlidingWindow(10), mask, fraction).plan(of).config

    assert config(mask) == config(mask.astype(np.uint8) * 255)
    assert config(mask)["sampler"] == SlidingWindow(10).plan(of).config
    assert config(mask) != config(mask, 0.06)
    other = mask.copy()
    other[0, 0] = True
    assert config(mask) != config(other)
    assert config(np.ones((2, 3), np.bool_)) != config(np.ones((3, 2), np.bool_))
    sampler = Masked(SlidingWindow(10), mask)
    assert pickle.loads(pickle.dumps(sampler)) == sampler
    assert sampler != Masked(SlidingWindow(10), other)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_fractions_that_mean_nothing_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 1"):
        Masked(SlidingWindow(), np.ones((1, 1), np.bool_), fraction)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (3, 3, 1)])
def test_arrays_that_are_no_masks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="height and a width"):
        ArrayMask(np.ones(shape, np.bool_))


ARRAY = np.random.default_rng(3).integers(0, 255, (300, 260, 3), np.uint8)
MASK = np.zeros((30, 26), np.bool_)
MASK[3:9, 2:20] = MASK[20:24, 18:25] = True


@dataclass(frozen=True)
class Dark:
    """A mask that is made from the slide's pixels."""

    async def prepare(self, reader: SlideReader, memory: int) -> ArrayMask:
        assert memory > 0
        assert reader.slide.ref.id == "a"
        return ArrayMask(MASK)


async def masked_run(sampler: Any, sink: RecordingSink) -> SlideOutcome:
    pipeline = Pipeline(
        source=ScriptedSource({"a": (ARRAY,)}, 16, jitter=3),
        sampler=sampler,
        processor=Checksums(5),
        sink=sink,
    )
    limits = Limits(worker_kind="inline", memory="4 MiB", slides=1)
    return (await run(pipeline, ["a"], limits=limits)).outcomes[0]


@pytest.mark.parametrize("stride", [8, 24, 50])
@pytest.mark.parametrize("mask", [MASK, Dark()], ids=["array", "from pixels"])
async def test_a_lane_reads_what_the_mask_keeps_and_no_more(mask: Any, stride: int) -> None:
    sink = RecordingSink()
    sampler = SlidingWindow(24, stride)
    outcome = await masked_run(Masked(sampler, mask, 0.3), sink)
    level = PyramidLevel(0, Size(260, 300), (1.0, 1.0), Size(16, 16))
    slide = Slide(SlideRef("a", "a"), Pyramid((level,)), "uint8", 3)
    inner = sampler.plan(slide)
    kept = slow(inner, MASK, 0.3)
    expected = [zlib.crc32(ARRAY[b.y : b.bottom, b.x : b.right].tobytes()) for b in kept]
    assert outcome.error is None
    assert [*sink.records["a"].values.values()] == expected
    needed = tiles(level, kept)
    assert outcome.tiles_decoded == outcome.distinct_tiles == len(needed)
    everything = tiles(level, [inner.place(i).box for i in range(inner.count)])
    assert outcome.tiles_saved == len(everything) - len(needed) > 0
    assert outcome.to_json()["tiles_saved"] == outcome.tiles_saved


@pytest.mark.parametrize(
    "sampler",
    [
        SlidingWindow(24, 10, padding="same", pad="reflect"),
        SlidingWindow(20, 30, padding="same", pad="white"),
        SlidingWindow(12, mpp=0.7),
    ],
)
async def test_kept_windows_have_the_values_that_they_have_without_a_mask(
    sampler: SlidingWindow,
) -> None:
    """Whatever the padding or the resampling."""
    everything, some = RecordingSink(), RecordingSink()
    pipeline = Pipeline(
        source=MemorySource({"a": (ARRAY,)}, mpp=0.35, tile=16),
        sampler=sampler,
        processor=Checksums(5),
        sink=everything,
    )
    limits = Limits(worker_kind="inline", memory="4 MiB", slides=1)
    mask = MASK.copy()
    mask[-2:, 3:9] = mask[4:9, -1:] = True
    masked = replace(pipeline, sampler=Masked(sampler, mask, 0.1), sink=some)
    for one in (pipeline, masked):
        outcome = (await run(one, ["a"], limits=limits)).outcomes[0]
        assert outcome.error is None
    slide = replace(_slide(), pyramid=replace(_slide().pyramid, mpp=Mpp(0.35, 0.35)))
    plan = Masked(sampler, mask, 0.1).plan(slide)
    assert 0 < plan.count < plan.inner.count
    numbers = {plan.inner.place(i).box: i for i in range(plan.inner.count)}
    for i, value in some.records["a"].values.items():
        assert value == everything.records["a"].values[numbers[plan.place(i).box]]


async def test_masks_of_masks() -> None:
    sink, right = RecordingSink(), np.zeros((1, 2), np.bool_)
    right[0, 1] = True
    outcome = await masked_run(Masked(Masked(SlidingWindow(24, 8), Dark(), 0.3), right, 1), sink)
    boxes = slow(SlidingWindow(24, 8).plan(_slide()), MASK, 0.3)
    assert outcome.total == sum(box.x >= 130 for box in boxes) > 0


def _slide() -> Slide:
    level = PyramidLevel(0, Size(260, 300), (1.0, 1.0), Size(16, 16))
    return Slide(SlideRef("a", "a"), Pyramid((level,)), "uint8", 3)


async def test_nothing_on_the_mask_fails_the_slide_and_writes_nothing() -> None:
    sink = RecordingSink()
    outcome = await masked_run(Masked(SlidingWindow(24), ~np.ones((2, 2), np.bool_)), sink)
    assert (outcome.status, outcome.stage) == ("failed", "sample")
    assert "none of the" in (outcome.error or "")
    assert sink.records == {}


async def test_a_mask_from_pixels_must_be_prepared() -> None:
    with pytest.raises(ContractBroken, match="Dark must be prepared"):
        Masked(SlidingWindow(24), Dark()).plan(_slide())
