"""RandomPatches: the same places each time, as likely as they should be, read in few tiles."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.chunks import BigChunk, Damage
from streamwsi.errors import ConfigError, ContractBroken, LevelNotFound
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.pdmcsv.reader import read
from streamwsi.pipelines import Pipeline
from streamwsi.processors.function import processor
from streamwsi.runs import run
from streamwsi.samplers.masks import ArrayMask
from streamwsi.samplers.patch_plans import PatchPlan, panel_widths
from streamwsi.samplers.random_patches import RandomPatches
from streamwsi.samplers.tissue_mask import TissueMask
from streamwsi.sinks.memory import MemorySink
from streamwsi.sinks.pdmcsv import Pdmcsv
from streamwsi.slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.sources.tiff import TiffSource
from streamwsi.streams import stream_batches
from streamwsi.testing.faults import ScriptedSource
from streamwsi.testing.synthetic import slide_array, write_slide
from streamwsi.tissue import tissue_mask


def slide(size: Size, tile: int = 16, id_: str = "a", mpp: float | None = None) -> Slide:
    level = PyramidLevel(0, size, (1.0, 1.0), Size(tile, tile))
    return Slide(
        SlideRef(id_, f"{id_}.svs"),
        Pyramid((level,), None if mpp is None else Mpp(mpp, mpp)),
        "uint8",
        3,
    )


def corners(plan: PatchPlan) -> list[tuple[int, int]]:
    return [(plan.place(i).box.x, plan.place(i).box.y) for i in range(plan.count)]


@st.composite
def plans(draw: st.DrawFn) -> PatchPlan:
    size = Size(draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    kernel = Size(draw(st.integers(1, size.width)), draw(st.integers(1, size.height)))
    sampler = RandomPatches(draw(st.integers(1, 60)), kernel, seed=draw(st.integers(0, 99)))
    return sampler.plan(slide(size, draw(st.integers(1, 30))))


@settings(deadline=None, max_examples=150)
@given(plan=plans(), start=st.integers(0, 70))
def test_every_window_is_in_exactly_one_region_that_holds_it(plan: PatchPlan, start: int) -> None:
    regions = [*plan.regions()]
    assert [region.index for region in regions] == [*range(len(regions))]
    following = 0
    level = Box(0, 0, *plan.level.size)
    for region in regions:
        assert region.first == following
        assert region.count > 0
        following += region.count
        for i in range(region.first, following):
            place = plan.place(i)
            assert (place.index, place.level, place.slide) == (i, 0, plan.slide.ref)
            assert (place.box.width, place.box.height) == plan.kernel
            assert region.box.contains(place.box)
            assert place.box in (region.wanted or ())
        assert level.contains(region.box)
    assert following == plan.count
    assert [*plan.regions(start)] == [r for r in regions if r.first + r.count > start]


def test_the_same_places_each_time() -> None:
    """Written down: another version of numpy or Python must not change them."""
    plan = RandomPatches(5, 10, seed=7).plan(slide(Size(1000, 500)))
    assert corners(plan) == PLACES
    again = pickle.loads(pickle.dumps(RandomPatches(5, 10, seed=7))).plan(slide(Size(1000, 500)))
    assert corners(again) == PLACES
    assert pickle.loads(pickle.dumps(plan)).place(3) == plan.place(3)


PLACES = [(446, 431), (638, 52), (732, 119), (981, 109), (783, 311)]


def test_seed_and_slide_make_other_places() -> None:
    one = corners(RandomPatches(50, 10, seed=1).plan(slide(Size(1000, 500))))
    assert one != corners(RandomPatches(50, 10, seed=2).plan(slide(Size(1000, 500))))
    assert one != corners(RandomPatches(50, 10, seed=1).plan(slide(Size(1000, 500), id_="b")))
    assert {*one} == {*corners(RandomPatches(50, 10, seed=1).plan(slide(Size(1000, 500), 99)))}


def expected(size: Size, kernel: Size, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How likely each place is, ``(y, x)``: one by one, by the window's centre."""
    places = np.zeros((size.height - kernel.height + 1, size.width - kernel.width + 1))
    for y, x in np.ndindex(*places.shape):
        row = (y + kernel.height // 2) * weights.shape[0] // size.height
        column = (x + kernel.width // 2) * weights.shape[1] // size.width
        places[y, x] = weights[row, column]
    share: npt.NDArray[np.float64] = places / places.sum()
    return share


@pytest.mark.parametrize(
    ("size", "kernel", "shape"),
    [
        (Size(13, 9), Size(4, 3), None),
        (Size(13, 9), Size(4, 3), (1, 1)),
        (Size(13, 9), Size(5, 2), (4, 3)),
        (Size(8, 10), Size(1, 1), (3, 5)),
        (Size(7, 6), Size(3, 6), (40, 30)),
    ],
)
def test_places_are_as_likely_as_their_weights(
    size: Size, kernel: Size, shape: tuple[int, int] | None
) -> None:
    n = 40_000
    weights = None
    if shape is not None:
        weights = np.random.default_rng(3).integers(0, 4, shape) + np.eye(*shape)
    plan = RandomPatches(n, kernel, seed=5, weights=weights).plan(slide(size))
    share = expected(size, kernel, np.ones((1, 1)) if weights is None else weights)
    seen = np.zeros_like(share)
    np.add.at(seen, (plan.corners[:, 1], plan.corners[:, 0]), 1)
    assert (seen[share == 0] == 0).all()
    assert (np.abs(seen - n * share) <= 5 * np.sqrt(n * share * (1 - share))).all()


def test_a_mask_with_one_cell() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[3, 8] = True
    plan = RandomPatches(200, 20, weights=mask).plan(slide(Size(1000, 500)))
    assert {(x + 10) // 100 for x, _ in corners(plan)} == {8}
    assert {(y + 10) // 50 for _, y in corners(plan)} == {3}


def test_weights_by_a_function() -> None:
    def left_half(of: Slide) -> npt.NDArray[np.bool_]:
        assert of.ref.id == "a"
        return np.array([[True, False]])

    by_function = RandomPatches(50, 20, weights=left_half).plan(slide(Size(1000, 500)))
    by_array = RandomPatches(50, 20, weights=left_half(by_function.slide))
    assert by_array.plan(slide(Size(1000, 500))).config == by_function.config
    assert corners(by_array.plan(slide(Size(1000, 500)))) == corners(by_function)
    assert max(x for x, _ in corners(by_function)) < 490


def test_a_mask_weighs_by_its_share_of_the_area() -> None:
    pixels = np.zeros((60, 100), np.bool_)
    pixels[6:9, 50:81] = True
    plan = RandomPatches(300, 20, seed=2, weights=ArrayMask(pixels)).plan(slide(Size(1000, 600)))
    assert all(500 <= x + 10 < 810 and 60 <= y + 10 < 90 for x, y in corners(plan))
    assert len({x for x, _ in corners(plan)}) > 100
    # Half a mask's cell has half the chance.
    base, halves = Size(4096, 2048), np.array([[True, False]])
    mask = ArrayMask(halves, extent=(2 * 1002.0, 2048.0))  # up to the middle of a cell of 4
    left = RandomPatches(40_000, 1, seed=3, weights=mask).plan(slide(base))
    columns = np.bincount([x // 4 for x, _ in corners(left)], minlength=1024)
    assert not columns[251:].any()
    whole = columns[:250].mean()
    assert abs(columns[250] - whole / 2) < 5 * np.sqrt(whole)


async def test_patches_on_the_tissue_of_each_slide(tmp_path: Path) -> None:
    """Found in the slide itself; the same ones each time."""
    write_slide(tmp_path / "a.svs", Size(1400, 1000), levels=2)
    sampler = RandomPatches(60, 32, seed=4, weights=TissueMask())
    seen = []
    for _ in range(2):
        async with stream_batches(
            TiffSource(), sampler, [tmp_path / "a.svs"], epochs=1, batch_size=30
        ) as stream:
            seen.append([place.box async for batch in stream for place in batch.places])
    assert seen[0] == seen[1]
    level = tifffile.imread(tmp_path / "a.svs")
    found = tissue_mask(level)
    on = [found[box.y + 16, box.x + 16] for box in seen[0]]
    assert 0.15 < found.mean() < 0.7
    # The run looks at the slide from the coarsest level that is large enough: this one.
    assert np.mean(on) > 0.97


def test_a_mask_from_pixels_must_be_prepared() -> None:
    with pytest.raises(ContractBroken, match="TissueMask must be prepared"):
        RandomPatches(5, 20, weights=TissueMask()).plan(slide(Size(100, 100)))
    assert RandomPatches(5, weights=TissueMask()) == RandomPatches(5, weights=TissueMask())
    assert RandomPatches(5, weights=TissueMask()) != RandomPatches(5)


def test_samplers_compare_by_their_weights() -> None:
    a, b = np.ones((3, 4)), np.eye(3, 4)
    assert RandomPatches(5, weights=a) == RandomPatches(5, weights=a.copy())
    assert RandomPatches(5, weights=a) != RandomPatches(5, weights=b)
    assert len({RandomPatches(5, weights=a), RandomPatches(5, weights=a.copy())}) == 1
    kept = RandomPatches(5, 1, weights=a)
    before = corners(kept.plan(slide(Size(50, 50))))
    a[:] = 0
    assert corners(kept.plan(slide(Size(50, 50)))) == before


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (lambda: RandomPatches(0), "at least 1, not 0"),
        (lambda: RandomPatches(5, 0), "kernel size 0×0 must be at least 1"),
        (lambda: RandomPatches(5, level=-1), "level -1"),
        (lambda: RandomPatches(5, seed=-1), "seed"),
        (lambda: RandomPatches(5, level=1, mpp=0.5), "exclude each other"),
        (lambda: RandomPatches(5, mpp=-1.0), "mpp"),
        (lambda: RandomPatches(5, tolerance=0.5), "tolerance"),
        (lambda: RandomPatches(5, assume_mpp=0.0), "assume_mpp"),
        (lambda: RandomPatches(5, weights=np.ones(4)), r"shape \(4,\)"),
        (lambda: RandomPatches(5, weights=np.ones((0, 4))), r"shape \(0, 4\)"),
        (lambda: RandomPatches(5, weights=-np.ones((2, 2))), "none below zero"),
        (lambda: RandomPatches(5, weights=np.full((2, 2), np.nan)), "finite"),
    ],
)
def test_impossible_settings_are_refused(sampler: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sampler()  # type: ignore[operator]


def test_slides_that_do_not_fit_are_refused() -> None:
    small = slide(Size(100, 50))
    with pytest.raises(
        ConfigError, match=r"a\.svs, level 0: kernel size 51×51 is beyond .* 100×50"
    ):
        RandomPatches(5, 51).plan(small)
    with pytest.raises(LevelNotFound, match="no level 3"):
        RandomPatches(5, 10, level=3).plan(small)
    with pytest.raises(ConfigError, match=r"a\.svs: the weights are zero wherever"):
        RandomPatches(5, 10, weights=np.zeros((2, 2))).plan(small)
    corner = np.zeros((100, 50))
    corner[0, 0] = 1  # no window has its centre there
    with pytest.raises(ConfigError, match=r"a\.svs: the weights are zero wherever"):
        RandomPatches(5, 10, weights=corner).plan(small)
    with pytest.raises(ConfigError, match=r"a\.svs: the weights have the shape"):
        RandomPatches(5, 10, weights=lambda _: np.ones(3)).plan(small)
    with pytest.raises(ContractBroken, match="no runs"):
        RandomPatches(5, 10).plan(small).runs(0, 1)


def test_pixels_of_a_size() -> None:
    plan = RandomPatches(300, 20, mpp=0.5).plan(slide(Size(1000, 500), mpp=0.25))
    assert plan.level.size == Size(500, 250)
    assert max(x for x, _ in corners(plan)) > 400
    assert max(x for x, _ in corners(plan)) <= 480
    assumed = RandomPatches(300, 20, mpp=0.5, assume_mpp=0.25).plan(slide(Size(1000, 500)))
    assert corners(assumed) == corners(plan)
    assert assumed.config != plan.config


def test_many_windows_are_planned_quickly_and_one_tile_column_is_the_least() -> None:
    plan = RandomPatches(100_000, 256).plan(slide(Size(100_000, 80_000), 256))
    assert next(plan.regions(99_999)).first <= 99_999
    level = slide(Size(100_000, 80_000), 256).level(0)
    assert [*panel_widths(level, Size(4096, 4096), 3)][-1] == 1
    assert [*panel_widths(level, Size(60_000, 60_000), 3)] == [1]
    assert [*panel_widths(slide(Size(10, 10)).level(0), Size(1, 1), 3)] == [1]


def ragged(tile: int = 32) -> ScriptedSource:
    return ScriptedSource({"a": (slide_array(Size(700, 500)),)}, tile, jitter=3)


@processor(batch_size=7, where="loop")
def mean(batch: object) -> npt.NDArray[np.float64]:
    """Of each window's pixels."""
    pixels: npt.NDArray[np.uint8] = batch.pixels  # type: ignore[attr-defined]
    means: npt.NDArray[np.float64] = pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True)
    return means


@pytest.mark.parametrize("count", [3, 40, 600])
async def test_windows_have_the_pixels_of_their_places(count: int) -> None:
    source, sink = ragged(), MemorySink()
    sampler = RandomPatches(count, (48, 33), seed=count)
    report = await run(
        Pipeline(source=source, sampler=sampler, processor=mean, sink=sink),
        [SlideRef("a", "a.tif")],
        limits=Limits(worker_kind="inline", memory="64 MiB"),
    )
    report.raise_for_failures()
    array = source.slides["a"][0]
    places = sink.places["a"]
    assert len(places) == count
    for value, place in zip(sink.values["a"], places, strict=True):
        box = place.box
        assert value[0] == array[box.y : box.bottom, box.x : box.right].mean()
    # No tile is decoded that no window needs, and few of them twice.
    needed = {
        (row, column)
        for p in places
        for row in range(p.box.y // 32, (p.box.bottom - 1) // 32 + 1)
        for column in range(p.box.x // 32, (p.box.right - 1) // 32 + 1)
    }
    [outcome] = report.outcomes
    assert outcome.distinct_tiles == len(needed)
    assert outcome.amplification <= 1.3


async def test_damage_makes_windows_invalid_that_touch_it() -> None:
    plan = RandomPatches(60, 10).plan(slide(Size(100, 100)))
    damage = Damage(0, 0, Box(30, 40, 20, 5), "torn")

    async def chunks() -> AsyncIterator[BigChunk]:
        for region in plan.regions():
            box = region.box
            pixels = np.zeros((box.height, box.width, 3), np.uint8)
            yield BigChunk(region, pixels, (damage,))

    valid = []
    async with aclosing(RandomPatches(60, 10).smallchunks(plan, chunks())) as windows:
        async for some in windows:
            valid += some.valid.tolist()
    touching = [plan.place(i).box.intersection(damage.box).empty for i in range(60)]
    assert valid == touching
    assert 0 < sum(valid) < 60


async def test_pdmcsv_needs_no_grid(tmp_path: Path) -> None:
    sampler = RandomPatches(20, 16, seed=4)
    report = await run(
        Pipeline(source=ragged(), sampler=sampler, processor=mean, sink=Pdmcsv(str(tmp_path))),
        [SlideRef("a", "a.tif")],
        limits=Limits(worker_kind="inline", memory="64 MiB"),
    )
    report.raise_for_failures()
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 20
    read(tmp_path / "a.csv")
