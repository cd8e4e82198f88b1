"""PerSlide: each slide has the windows of its own sampler, in runs and in training streams."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamwsi import Limits, Pipeline, run, stream_batches
from streamwsi.errors import ConfigError, SlideError
from streamwsi.geometry import Size
from streamwsi.manifests import Listed
from streamwsi.processors import processor
from streamwsi.samplers import Masked, PerSlide, RandomPatches, SlidingWindow, TissueMask
from streamwsi.samplers.masks import ArrayMask
from streamwsi.sinks import Pdmcsv
from streamwsi.slides import Microns, Slide, SlideRef
from streamwsi.sources.memory import MemorySource
from streamwsi.stages import Sampler, SlideReader
from streamwsi.streams import TrainingStream
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import slide_array
from streamwsi.workers import Workers

ARRAYS = {id_: (slide_array(Size(170 + 20 * i, 150), seed=i),) for i, id_ in enumerate("abc")}
REFS = [SlideRef(id_, f"memory:{id_}") for id_ in ARRAYS]
MASK = np.zeros((15, 17), np.bool_)
MASK[3:9, 2:12] = True


@dataclass(frozen=True)
class Counting:
    """A source that counts how often each slide is opened."""

    opened: Counter[str] = field(default_factory=Counter)
    inner: MemorySource = field(default_factory=lambda: MemorySource(ARRAYS, mpp=0.5, tile=32))

    def accepts(self, ref: SlideRef) -> bool:
        return self.inner.accepts(ref)

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        self.opened[ref.id] += 1
        return self.inner.open(ref, workers)


@dataclass(frozen=True)
class FromPixels:
    """A mask that is made from the slide's pixels."""

    async def prepare(self, reader: SlideReader, memory: int) -> ArrayMask:
        return ArrayMask(MASK)


@processor(batch_size=5)
def sums(batch: Any) -> Any:
    """Two numbers of which every pixel is a part."""
    weights = np.arange(batch.pixels[0].size, dtype=np.float64) % 97
    pixels = batch.pixels.reshape(len(batch), -1).astype(np.float64)
    return np.stack([pixels.mean(1), pixels @ weights], axis=1).astype(np.float32)


DEFAULT = SlidingWindow(24, 10)
OWN: dict[str, Sampler] = {
    "b": SlidingWindow(16, mpp=1.1),
    "c": Masked(SlidingWindow(20, 7, padding="same"), FromPixels(), 0.5),
}


async def written(sampler: Sampler, out: Path, *ids: str) -> Counter[str]:
    """Run; returns how often each slide was opened."""
    source = Counting()
    pipeline = Pipeline(source=source, sampler=sampler, processor=sums, sink=Pdmcsv(str(out)))
    refs = [ref for ref in REFS if ref.id in ids]
    (await run(pipeline, refs, limits=Limits(worker_kind="inline"))).raise_for_failures()
    return source.opened


async def test_a_slide_has_the_bytes_of_its_sampler_alone(tmp_path: Path) -> None:
    opened = await written(PerSlide(DEFAULT, OWN), tmp_path / "all", *"abc")
    for id_ in "abc":
        await written(OWN.get(id_, DEFAULT), tmp_path / "alone", id_)
    assert tree(tmp_path / "all") == tree(tmp_path / "alone")
    # Only the one whose mask is made from pixels is looked at first.
    assert opened == {"a": 1, "b": 1, "c": 2}
    # Either takes the other's output for its own.
    before = tree(tmp_path / "all")
    await written(OWN["c"], tmp_path / "all", "c")
    await written(PerSlide(DEFAULT, OWN), tmp_path / "alone", *"abc")
    assert tree(tmp_path / "all") == tree(tmp_path / "alone") == before


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        (Masked(DEFAULT, MASK), 1),
        (Masked(PerSlide(DEFAULT), MASK), 1),
        (Masked(PerSlide(Masked(DEFAULT, FromPixels())), MASK), 2),
        (PerSlide(Masked(Masked(DEFAULT, MASK), FromPixels())), 2),
        (PerSlide(PerSlide(Masked(DEFAULT, FromPixels()), {"a": DEFAULT})), 1),
    ],
)
async def test_a_slide_is_looked_at_first_only_where_a_mask_needs_it(
    sampler: Sampler, times: int, tmp_path: Path
) -> None:
    assert await written(sampler, tmp_path, "a") == {"a": times}


async def test_a_level_may_be_a_function_of_the_slide(tmp_path: Path) -> None:
    """To the bytes of the level that it returns."""

    def chosen(slide: Slide) -> Any:
        return Microns(1.1) if slide.ref.id == "b" else 0

    await written(SlidingWindow(16, level=chosen), tmp_path / "function", *"ab")
    await written(SlidingWindow(16), tmp_path / "alone", "a")
    await written(SlidingWindow(16, mpp=1.1), tmp_path / "alone", "b")
    assert tree(tmp_path / "function") == tree(tmp_path / "alone")


def streamed(source: Counting, sampler: Sampler) -> AbstractAsyncContextManager[TrainingStream]:
    """One epoch of all slides."""
    return stream_batches(
        source,
        sampler,
        REFS,
        batch_size=8,
        shuffle_buffer=20,
        epochs=1,
        limits=Limits(slides=3, worker_kind="inline", memory="64 MiB"),
    )


async def test_training_streams_mix_the_samplers_windows() -> None:
    own = OWN | {"a": RandomPatches(9, 16, seed=3)}
    sampler = PerSlide(SlidingWindow(16), own | {"c": Masked(SlidingWindow(16), MASK)})
    source = Counting()
    boxes: dict[str, list[Any]] = {id_: [] for id_ in "abc"}
    async with streamed(source, sampler) as stream:
        async for batch in stream:
            for pixels, place, slide in zip(batch.pixels, batch.places, batch.slides, strict=True):
                boxes[place.slide.id].append(place.box)
                if place.slide.id != "b":  # which is resampled
                    box, array = place.box, ARRAYS[slide.ref.id][0]
                    expected = array[box.y : box.bottom, box.x : box.right]
                    np.testing.assert_array_equal(pixels, expected)
    for id_, seen in boxes.items():
        async with source.inner.open(SlideRef(id_, f"memory:{id_}"), None) as reader:  # type: ignore[arg-type]
            plan = sampler.of_slide(reader.slide.ref).plan(reader.slide)
        expected_boxes = [plan.place(i).box for i in range(plan.count)]
        assert Counter(seen) == Counter(expected_boxes)
        assert expected_boxes
    assert source.opened == {"a": 1, "b": 1, "c": 1}


async def test_training_streams_prepare_what_needs_pixels() -> None:
    source = Counting()
    sampler = PerSlide(SlidingWindow(16), {"b": Masked(SlidingWindow(16), FromPixels())})
    async with streamed(source, sampler) as stream:
        seen = Counter([place.slide.id async for batch in stream for place in batch.places])
    assert source.opened == {"a": 1, "b": 2, "c": 1}
    assert 0 < seen["b"] < seen["a"] < seen["c"]


def listed(id_: str, **options: Any) -> Listed:
    return Listed(SlideRef(id_, f"{id_}.svs"), options)


def test_samplers_of_a_list() -> None:
    calls = []

    def make(**options: Any) -> Sampler:
        calls.append(options)
        return SlidingWindow(64, **options)

    slides = [listed("a"), listed("b", mpp=0.5), listed("c", mpp=0.5), listed("d", level=1)]
    sampler = PerSlide.of(slides, make)
    assert sampler == PerSlide(
        SlidingWindow(64),
        {
            "b": SlidingWindow(64, mpp=0.5),
            "c": SlidingWindow(64, mpp=0.5),
            "d": SlidingWindow(64, level=1),
        },
    )
    assert calls == [{}, {"mpp": 0.5}, {"level": 1}]
    assert sampler.samplers["b"] is sampler.samplers["c"]


def test_all_samplers_that_cannot_be_are_told_at_once() -> None:
    slides = [listed("a", mpp=-1.0), listed("b", level=1), listed("c", level=1, mpp=0.5)]
    with pytest.raises(ConfigError) as raised:
        PerSlide.of(slides, lambda **options: SlidingWindow(64, **options))
    message = str(raised.value)
    assert message.startswith("the slides have 2 problems")
    assert "a.svs: mpp must be a positive number" in message
    assert "c.svs: level, mpp and power exclude each other" in message
    assert "b.svs" not in message


async def test_a_slide_that_cannot_be_sampled_names_itself(tmp_path: Path) -> None:
    sampler = PerSlide(DEFAULT, {"b": Masked(DEFAULT, ~np.ones((2, 2), np.bool_))})
    with pytest.raises(ExceptionGroup) as raised:
        await written(sampler, tmp_path, *"ab")
    (failure,) = raised.value.exceptions
    assert isinstance(failure, SlideError)
    assert "memory:b: none of the" in str(failure)
    assert (tmp_path / "a.csv").exists()


def test_the_mask_of_a_slide_may_be_found_in_it() -> None:
    sampler = PerSlide(DEFAULT, {"a": Masked(DEFAULT, TissueMask())})
    assert [sampler.needs_pixels(ref) for ref in REFS] == [True, False, False]
