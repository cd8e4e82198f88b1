"""PatchDataset: in a DataLoader and in a plain loop, to the end and not."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from streamwsi.chunks import Pixels
from streamwsi.errors import CannotOpen, CannotProcess, ConfigError
from streamwsi.geometry import Box, Size
from streamwsi.limits import Limits
from streamwsi.samplers.random_patches import RandomPatches
from streamwsi.samplers.sliding_window import SlidingWindow
from streamwsi.slides import SlideRef
from streamwsi.slots import SlideSkipped
from streamwsi.streams import TrainingBatch
from streamwsi.testing.faults import Fault, ScriptedSource
from streamwsi.testing.synthetic import slide_array
from streamwsi.torch_dataset import PatchDataset

ARRAYS = {f"s{i}": (slide_array(Size(140, 100), seed=i),) for i in range(4)}
REFS = [SlideRef(id_, f"{id_}.tif") for id_ in ARRAYS]


def dataset(**settings: Any) -> PatchDataset:
    chosen: dict[str, Any] = {
        "source": ScriptedSource(ARRAYS, 32),
        "sampler": RandomPatches(30, 16),
        "slides": REFS,
        "batch_size": 8,
        "shuffle_buffer": 30,
        "limits": Limits(worker_kind="inline", memory="64 MiB"),
    }
    return PatchDataset(**chosen | settings)


def keys(batches: Iterator[TrainingBatch] | DataLoader[TrainingBatch]) -> list[tuple[str, int]]:
    return [(place.slide.id, place.index) for batch in batches for place in batch.places]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every thread of a stream ends with its iterator."""
    before = {*threading.enumerate()}
    yield
    gc.collect()
    for thread in {*threading.enumerate()} - before:
        thread.join(2)
        assert not thread.is_alive()


def test_batches_are_tensors_of_the_places_pixels() -> None:
    given = Counter[str]()
    for batch in dataset():
        assert batch.pixels.shape == (len(batch), 16, 16, 3)
        assert batch.pixels.dtype == torch.uint8
        for pixels, place in zip(batch.pixels, batch.places, strict=True):
            box = place.box
            expected = ARRAYS[place.slide.id][0][box.y : box.bottom, box.x : box.right]
            np.testing.assert_array_equal(pixels.numpy(), expected)
        given.update(place.slide.id for place in batch.places)
    assert given == dict.fromkeys(ARRAYS, 30)


def test_a_data_loader_gives_the_same() -> None:
    plain = keys(iter(dataset()))
    assert keys(DataLoader(dataset(), batch_size=None)) == plain
    assert len(plain) == 120


def test_each_iteration_is_the_next_epoch() -> None:
    data = dataset()
    epochs = [keys(iter(data)) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    data.set_epoch(1)
    assert [keys(iter(data)), keys(iter(data))] == epochs[1:]
    fresh = dataset()
    fresh.set_epoch(2)
    loader = DataLoader(fresh, batch_size=None)
    assert [batch.epoch for batch in loader] == [2] * 15
    with pytest.raises(ConfigError, match="0 or more, not -1"):
        data.set_epoch(-1)


def test_two_iterations_at_the_same_time() -> None:
    data = dataset()
    a, b = iter(data), iter(data)
    both = [(next(a).epoch, next(b).epoch) for _ in range(15)]
    assert both == [(0, 1)] * 15
    assert next(a, None) is next(b, None) is None


@pytest.mark.parametrize("load", [False, True])
def test_a_break_ends_the_thread_although_a_slide_hangs(load: bool) -> None:
    hanging = ScriptedSource(ARRAYS, (32, 10), (Fault(Box(0, 80, 999, 20), "hang"),))
    settings = {"batch_size": 2, "shuffle_buffer": 1, "sampler": SlidingWindow(20, (20, 80))}
    data = dataset(source=hanging, **settings)
    before = threading.active_count()
    for batch in DataLoader(data, batch_size=None) if load else data:
        assert len(batch) == 2
        assert threading.active_count() > before
        break
    gc.collect()


def test_a_break_ends_the_worker_processes() -> None:
    def children() -> int:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return len(file.read().split())

    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # noqa: PTH110
        pytest.skip("the kernel does not list children")
    before = children()
    for _ in dataset(limits=Limits(workers=1, memory="64 MiB")):
        break
    gc.collect()
    deadline = time.monotonic() + 5
    while children() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() == before


def test_errors_arrive_where_the_batches_are_taken() -> None:
    refs = [*REFS, SlideRef("missing", "missing.tif")]
    with pytest.raises(CannotOpen, match=r"missing\.tif"):
        keys(DataLoader(dataset(slides=refs), batch_size=None))

    def broken(pixels: Pixels) -> Pixels:
        raise ZeroDivisionError("by nought")

    with pytest.raises(CannotProcess, match="by nought"):
        keys(iter(dataset(transform=broken)))
    with pytest.raises(ConfigError, match="no slides"):
        keys(iter(dataset(slides=[])))
    data = iter(dataset())
    next(data)
    with pytest.raises(KeyboardInterrupt):
        data.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


def test_skipped_slides_and_invalid_windows_are_told() -> None:
    refs = [*REFS, SlideRef("missing", "missing.tif")]
    torn = ScriptedSource(ARRAYS, 32, (Fault(Box(0, 0, 9, 9), "damage"),))
    data = dataset(source=torn, slides=refs, on_error="skip")
    with pytest.warns(SlideSkipped, match="missing"):
        given = keys(iter(data))
    assert [skipped.slide.id for skipped in data.skipped] == ["missing"]
    assert data.invalid > 0
    assert len(given) + data.invalid == 120


def test_transforms_may_return_anything() -> None:
    def as_dict(pixels: Pixels) -> dict[str, Any]:
        return {"mean": torch.from_numpy(pixels).float().mean((1, 2, 3))}

    for batch in DataLoader(dataset(transform=as_dict), batch_size=None):
        assert batch.pixels["mean"].shape == (len(batch),)
    assert next(iter(dataset(transform=lambda pixels: pixels / 2))).pixels.dtype == torch.float64


def test_workers_of_a_data_loader_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamwsi import torch_dataset

    monkeypatch.setattr(torch_dataset, "get_worker_info", lambda: "worker 0 of 2")
    with pytest.raises(ConfigError, match="num_workers=0"):
        iter(dataset())
