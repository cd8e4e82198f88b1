"""Training streams: every window once, the same order each time, and a clean end."""

from __future__ import annotations

import random
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from streamwsi.chunks import BigChunk, Pixels, Region
from streamwsi.errors import (
    CannotOpen,
    CannotProcess,
    CannotRead,
    ConfigError,
    StageMismatch,
)
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.mixing import ShuffleBuffer, Window
from streamwsi.samplers.random_patches import RandomPatches
from streamwsi.samplers.sliding_window import SlidingWindow
from streamwsi.slides import SlideRef
from streamwsi.sources.tiff import TiffSource
from streamwsi.stages import SlideReader
from streamwsi.streams import SlideSkipped, TrainingBatch, stream_batches
from streamwsi.testing.faults import Fault, ScriptedSource
from streamwsi.testing.synthetic import slide_array, write_slide
from streamwsi.workers import Workers

Key = tuple[str, int]
LIMITS = Limits(slides=3, worker_kind="inline", memory="64 MiB")
ARRAYS = {f"s{i}": (slide_array(Size(140 + 20 * i, 100), seed=i),) for i in range(5)}
REFS = [SlideRef(id_, f"{id_}.tif") for id_ in ARRAYS]
SAMPLER = SlidingWindow(kernel_size=20)
COUNTS = {id_: (array.shape[1] // 20) * 5 for id_, (array,) in ARRAYS.items()}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread outlives a stream (the event loop's own idle workers apart)."""
    before = {*threading.enumerate()}
    yield
    for thread in {*threading.enumerate()} - before:
        if "AnyIO" not in thread.name:
            thread.join(2)  # a timer that was cancelled may still be on its way out
            assert not thread.is_alive()


def source(faults: tuple[Fault, ...] = (), jitter: int = 0, seed: int = 0) -> ScriptedSource:
    return ScriptedSource(ARRAYS, 32, faults, jitter, seed)


async def keys(epochs: int = 1, **settings: Any) -> list[Key]:
    """The windows in the order of the stream, each compared with its slide's pixels."""
    given: list[Key] = []
    chosen: dict[str, Any] = {
        "source": source(),
        "sampler": SAMPLER,
        "slides": REFS,
        "batch_size": 8,
        "shuffle_buffer": 30,
        "limits": LIMITS,
    }
    async with stream_batches(epochs=epochs, **chosen | settings) as stream:
        async for batch in stream:
            check(batch)
            given += [(place.slide.id, place.index) for place in batch.places]
    return given


def check(batch: TrainingBatch) -> None:
    assert batch.pixels.flags.owndata
    assert batch.pixels.flags.writeable
    assert len(batch) == len(batch.pixels) == len(batch.slides)
    for pixels, place, slide in zip(batch.pixels, batch.places, batch.slides, strict=True):
        assert slide.ref == place.slide
        box, array = place.box, (ARRAYS | {"torn": ARRAYS["s1"]})[place.slide.id][0]
        np.testing.assert_array_equal(pixels, array[box.y : box.bottom, box.x : box.right])


async def test_every_window_comes_once_per_epoch() -> None:
    expected = Counter((id_, i) for id_, count in COUNTS.items() for i in range(count))
    assert Counter(await keys()) == expected
    total = sum(COUNTS.values())
    given = await keys(epochs=3)
    assert [Counter(given[i : i + total]) for i in range(0, 3 * total, total)] == [expected] * 3
    assert given[:total] != given[total : 2 * total]


async def test_batches_are_full_but_for_an_epochs_last() -> None:
    batches = []
    settings: Any = {"batch_size": 8, "shuffle_buffer": 30, "limits": LIMITS}
    async with stream_batches(source(), SAMPLER, REFS, epochs=2, **settings) as stream:
        async for batch in stream:
            batches.append((batch.epoch, len(batch), {p.slide.id for p in batch.places}))
    total = sum(COUNTS.values())
    sizes = [8] * (total // 8) + ([total % 8] if total % 8 else [])
    assert [n for epoch, n, _ in batches if epoch == 0] == sizes
    assert [n for epoch, n, _ in batches if epoch == 1] == sizes
    # Mixed: the first batch has windows of several slides already.
    assert len(batches[0][2]) >= 2


@dataclass(frozen=True)
class Delayed:
    """A source whose slides open, and whose regions come, after random times."""

    inner: ScriptedSource
    seed: int

    def accepts(self, ref: SlideRef) -> bool:
        return self.inner.accepts(ref)

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[SlideReader]:
        chance = random.Random(f"{self.seed} {ref.id}")
        await anyio.sleep(chance.random() * 0.01)
        async with self.inner.open(ref, workers) as reader:
            plain = reader.bigchunks

            async def late(regions: Iterator[Region], memory: int) -> AsyncIterator[BigChunk]:
                async for chunk in plain(regions, memory):
                    await anyio.sleep(chance.random() * 0.003)
                    yield chunk

            reader.bigchunks = late  # type: ignore[method-assign, assignment]
            yield reader


async def test_the_order_does_not_depend_on_time() -> None:
    sampler = RandomPatches(40, 20)
    order = await keys(epochs=2, sampler=sampler)
    for seed in range(4):
        late = Delayed(source(jitter=5, seed=seed), seed)
        assert await keys(epochs=2, sampler=sampler, source=late) == order
    threads = Limits(slides=3, worker_kind="threads", workers=2, memory="99 MiB")
    assert await keys(epochs=2, sampler=sampler, limits=threads, batch_size=5) == order


async def test_seeds_epochs_and_slots_make_other_orders() -> None:
    order = await keys()
    assert await keys(seed=1) != order
    assert await keys(shuffle_buffer=29) != order
    assert await keys(limits=Limits(slides=2, worker_kind="inline", memory="64 MiB")) != order
    both = await keys(epochs=2)
    assert both[: len(order)] == order
    assert await keys(epochs=range(1, 2)) == both[len(order) :]  # type: ignore[arg-type]


async def test_a_buffer_of_one_takes_the_slides_in_turn() -> None:
    order = await keys(shuffle_buffer=1, limits=Limits(slides=5, worker_kind="inline"))
    assert {id_ for id_, _ in order[:5]} == {*ARRAYS}
    assert [id_ for id_, _ in order[:5]] == [id_ for id_, _ in order[5:10]]
    assert [i for id_, i in order if id_ == "s0"] == [*range(COUNTS["s0"])]


def test_the_shuffle_buffer_mixes_well() -> None:
    """Of 400 windows in order, through a buffer of 100: far from where they were."""
    buffer = ShuffleBuffer(100, np.random.default_rng(0))
    windows = [Window(np.zeros(i), None, None) for i in range(400)]  # type: ignore[arg-type]
    given = [w for window in windows if (w := buffer.exchange(window)) is not None]
    assert len(given) == 300
    given += buffer.rest()
    order = [len(window.pixels) for window in given]
    assert sorted(order) == [*range(400)]
    assert np.mean(np.abs(np.array(order) - np.arange(400))) > 50


async def test_a_sampler_for_each_epoch() -> None:
    async with stream_batches(
        source(), lambda epoch: RandomPatches(3, 20, seed=epoch), REFS, epochs=2, limits=LIMITS
    ) as stream:
        places = [[(p.slide.id, p.box) for p in b.places] async for b in stream]
    assert [len({*p}) for p in places] == [15, 15]
    assert not {*places[0]} & {*places[1]}


async def test_a_slide_that_cannot_be_opened_raises_or_is_skipped() -> None:
    refs = [*REFS[:2], SlideRef("missing", "missing.tif"), REFS[2]]
    with pytest.raises(CannotOpen, match=r"missing\.tif: there is no array"):
        await keys(slides=refs)
    settings: Any = {"on_error": "skip", "limits": LIMITS}
    with pytest.warns(SlideSkipped, match="missing: skipped after 0 windows in epoch"):
        async with stream_batches(source(), SAMPLER, refs, epochs=2, **settings) as stream:
            given = [place.slide.id async for batch in stream for place in batch.places]
    assert Counter(given) == {id_: 2 * COUNTS[id_] for id_ in ("s0", "s1", "s2")}
    assert [(s.slide, s.epoch, s.windows) for s in stream.skipped] == [
        (refs[2], 0, 0),
        (refs[2], 1, 0),
    ]
    assert isinstance(stream.skipped[0].__cause__, CannotOpen)


async def test_a_slide_that_breaks_off_gives_what_came_before() -> None:
    fault = Fault(Box(0, 90, 220, 10), "fail")
    torn = ScriptedSource({"torn": ARRAYS["s1"]}, (32, 10), (fault,))
    refs = [SlideRef("torn", "torn.tif")]
    with pytest.raises(CannotRead, match="the script fails"):
        await keys(source=torn, slides=refs, sampler=SlidingWindow(20, (20, 80)))
    rows = SlidingWindow(20, (20, 80))
    with pytest.warns(SlideSkipped, match="torn: skipped after 8 windows in epoch 0"):
        given = await keys(source=torn, slides=refs, sampler=rows, on_error="skip")
    assert {*given} == {("torn", i) for i in range(8)}
    everywhere = ScriptedSource(torn.slides, 32, (Fault(Box(0, 0, 9, 9), "fail"),))
    warnings.simplefilter("ignore", SlideSkipped)
    with pytest.raises(CannotRead, match=r"no slide gave a window; torn: skipped"):
        await keys(source=everywhere, slides=refs, on_error="skip")


async def test_slides_that_are_too_small_are_skipped_but_bad_settings_are_not() -> None:
    small = ScriptedSource({**ARRAYS, "tiny": (slide_array(Size(10, 10)),)}, 32)
    refs = [SlideRef("tiny", "tiny.tif"), *REFS]
    with pytest.raises(ConfigError, match=r"tiny\.tif, level 0"):
        await keys(source=small, slides=refs)
    with pytest.warns(SlideSkipped, match=r"tiny\.tif, level 0"):
        assert len(await keys(source=small, slides=refs, on_error="skip")) == sum(COUNTS.values())
    little = Limits(slides=3, worker_kind="inline", memory=50_000)
    with pytest.raises(ConfigError, match="smaller shuffle_buffer or fewer slides") as error:
        await keys(limits=little, on_error="skip")
    smallest = int(str(error.value).split("smallest that does is ")[1].split()[0])
    assert await keys(limits=Limits(slides=3, worker_kind="inline", memory=smallest * 2**20))


async def test_invalid_windows_are_left_out() -> None:
    torn = source((Fault(Box(0, 0, 1, 1), "damage"),))
    async with stream_batches(torn, SAMPLER, REFS[:1], limits=LIMITS) as stream:
        given = {place.index async for batch in stream for place in batch.places}
    columns = ARRAYS["s0"][0].shape[1] // 20
    assert given == {*range(COUNTS["s0"])} - {0, 1, columns, columns + 1}
    assert stream.invalid == 4


async def test_windows_must_be_alike() -> None:
    grey = ScriptedSource({**ARRAYS, "grey": (slide_array(Size(90, 90), 1),)}, 32)
    with pytest.raises(StageMismatch, match=r"\(20, 20, 1\) uint8"):
        await keys(source=grey, slides=[REFS[0], SlideRef("grey", "grey.tif")])


async def test_a_transform_runs_in_a_thread() -> None:
    threads = []

    def halved(pixels: Pixels) -> Pixels:
        threads.append(threading.current_thread())
        return pixels[:, ::2, ::2] / np.float32(255)

    async with stream_batches(source(), SAMPLER, REFS, transform=halved, limits=LIMITS) as stream:
        async for batch in stream:
            assert batch.pixels.shape == (len(batch), 10, 10, 3)
    assert threading.main_thread() not in threads

    def broken(pixels: Pixels) -> Pixels:
        raise ZeroDivisionError("by nought")

    with pytest.raises(CannotProcess, match=r"windows of s\d.*: ZeroDivisionError: by no"):
        await keys(transform=broken)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer"),
        ({"prefetch": 0}, "prefetch"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"slides": []}, "no slides"),
        ({"slides": [REFS[0], REFS[0]]}, "2 slides have the id 's0'"),
        ({"on_error": "ignore"}, "raise or skip, not 'ignore'"),
    ],
)
async def test_impossible_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await keys(**settings)


async def first_batch_then(leave: Callable[[], Any], faulty: ScriptedSource) -> None:
    rows = SlidingWindow(20, (20, 80))  # a region each
    async with stream_batches(
        faulty, rows, REFS, batch_size=2, shuffle_buffer=1, limits=LIMITS
    ) as stream:
        async for _ in stream:
            leave()
            break


async def test_leaving_early_ends_what_is_being_read() -> None:
    """The slides' second rows of windows hang for ever; that holds nothing up."""
    hanging = ScriptedSource(ARRAYS, (32, 10), (Fault(Box(0, 80, 999, 20), "hang"),))
    with anyio.fail_after(5):
        await first_batch_then(lambda: None, hanging)

        def fail() -> None:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await first_batch_then(fail, hanging)
        with anyio.CancelScope() as scope:
            await first_batch_then(scope.cancel, hanging)
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with anyio.move_on_after(0.05) as scope:
            await keys(source=source((Fault(Box(0, 0, 999, 20), "hang"),)))
        assert scope.cancelled_caught


async def test_files_by_worker_processes(tmp_path: Path) -> None:
    for i in range(2):
        write_slide(tmp_path / f"{i}.svs", Size(512, 512), levels=1, seed=i)
    refs = [tmp_path / "0.svs", tmp_path / "1.svs"]
    limits = Limits(workers=1, memory="128 MiB")
    async with stream_batches(
        TiffSource(), RandomPatches(20, 64), refs, batch_size=8, shuffle_buffer=8, limits=limits
    ) as stream:
        sizes = Counter[str]()
        async for batch in stream:
            sizes.update(place.slide.id for place in batch.places)
            assert batch.pixels.shape == (len(batch), 64, 64, 3)
            assert batch.pixels.std() > 1
    assert sizes == {"0": 20, "1": 20}
