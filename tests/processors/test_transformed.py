"""Transforms in front of a processor."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch
from streamwsi.errors import CannotProcess, ConfigError
from streamwsi.limits import Limits
from streamwsi.processors import BatchProcessor, FunctionProcessor, TorchModule, Transformed
from streamwsi.processors.device_chunks import DeviceChunks
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import MemorySink
from streamwsi.sources.memory import MemorySource
from streamwsi.stages import HoldsBuffers
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Whole(BatchProcessor[Array]):
    """The pixels as they come."""

    def compute(self, batch: Batch) -> Array:
        assert not batch.parts[0].flags.writeable
        return batch.pixels


class Mean(nn.Module):
    """The channels' means."""

    channel_names = ("r", "g", "b")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def inverted(window: Array) -> Array:
    """Negative."""
    return 255 - window


def cropped(window: Array) -> Array:
    """The middle, mirrored: a view with negative strides."""
    return window[4:12, 16:4:-1]


def scaled(window: Array) -> torch.Tensor:
    """A tensor of float32 in -1 ... 1."""
    return torch.from_numpy(window.astype(np.float32) / 127.5 - 1)


def halved(pixels: Array) -> Array:
    """Every other row and column."""
    return pixels[:, ::2, ::2]


@pytest.mark.parametrize("window", [inverted, cropped, scaled, lambda w: w])
async def test_windows_are_transformed_one_by_one(
    window: Any, run_processor: Any, windows: Array
) -> None:
    stage: Transformed[Any] = Transformed(Whole(batch_size=4), window=window)
    values, _ = await run_processor(stage, windows)
    expected = np.stack([np.asarray(window(one)) for one in windows])
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == expected.dtype


async def test_batches_are_transformed_after_windows(run_processor: Any, windows: Array) -> None:
    seen = []

    def note(pixels: Array) -> Any:
        seen.append(pixels.shape)
        return torch.from_numpy(halved(pixels).astype(np.float32))

    stage: Transformed[Any] = Transformed(Whole(batch_size=4), window=cropped, batch=note)
    values, _ = await run_processor(stage, windows)
    assert seen == [(4, 8, 12, 3), (4, 8, 12, 3), (2, 8, 12, 3)]
    np.testing.assert_array_equal(values, windows[:, 4:12:2, 16:4:-2].astype(np.float32))
    assert values.dtype == np.float32


async def test_only_batches(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(Transformed(Whole(batch_size=3), batch=halved), windows)
    np.testing.assert_array_equal(values, windows[:, ::2, ::2])


@pytest.mark.parametrize("window", [inverted, cropped, scaled])
async def test_a_model_sees_the_transformed_pixels(
    window: Any, run_processor: Any, windows: Array
) -> None:
    model = TorchModule(Mean(), batch_size=4, mean=(0.1, 0.2, 0.3), std=(2, 3, 4))
    values, _ = await run_processor(Transformed(model, window=window), windows)
    for value, one in zip(values, windows, strict=True):
        crop = np.asarray(window(one))
        crop = crop / 255 if crop.dtype == np.uint8 else crop
        expected = (crop.mean(axis=(0, 1), dtype=np.float64) - [0.1, 0.2, 0.3]) / [2, 3, 4]
        np.testing.assert_allclose(value, expected, atol=1e-5)


async def test_they_nest(run_processor: Any, windows: Array) -> None:
    stage: Transformed[Any] = Transformed(Transformed(Whole(), window=halved_window), inverted)
    values, config = await run_processor(stage, windows)
    np.testing.assert_array_equal(values, 255 - windows[:, ::2, ::2])
    names = [one["window"]["name"].rpartition(".")[2] for one in config["transforms"]]
    assert names == ["inverted", "halved_window"]


def halved_window(window: Array) -> Array:
    """Every other row and column."""
    return window[::2, ::2]


async def test_damaged_windows_are_not_shown_and_become_nan(
    run_processor: Any, windows: Array
) -> None:
    windows[[1, 5, 8, 9]] = 0

    def fails_on_black(window: Array) -> Array:
        if not window.any():
            raise ValueError("no stain found")
        return inverted(window)

    model = TorchModule(Mean(), batch_size=2)
    stage: Transformed[Any] = Transformed(model, window=fails_on_black)
    values, _ = await run_processor(stage, windows, damaged=(1, 5, 8, 9))
    assert [*np.flatnonzero(np.isnan(values[:, 0]))] == [1, 5, 8, 9]
    good = [0, 2, 3, 4, 6, 7]
    expected = (255 - windows[good]).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(values[good], expected, atol=1e-5)


async def test_nothing_but_damage(run_processor: Any, windows: Array) -> None:
    seen = []

    def note(window: Array) -> Array:
        seen.append(window)
        return inverted(window)

    stage: Transformed[Any] = Transformed(TorchModule(Mean(), batch_size=5), window=note)
    values, _ = await run_processor(stage, windows, damaged=(*range(10),))
    assert np.isnan(values).all()
    assert len(seen) == 1


async def test_the_memory_limit_bounds_what_is_transformed_ahead(
    make_batches: Any, windows: Array
) -> None:
    ahead = most = 0

    def note(pixels: Array) -> Array:
        nonlocal ahead, most
        ahead += 1
        most = max(most, ahead)
        return pixels

    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal ahead
            time.sleep(0.002)
            ahead -= 1
            return images.mean(dim=(2, 3))

    batches = make_batches(windows, 1)
    model = TorchModule(Slow(), batch_size=1, device="cpu", threads=4)
    stage: Transformed[Any] = Transformed(model, batch=note)
    for room, bound in ((1 << 20, 6), (0, 1)):
        most = 0
        async with (
            open_workers(Limits(worker_kind="inline", memory="1MiB")) as workers,
            stage.open(workers) as running,
        ):
            assert isinstance(running, HoldsBuffers)
            taken = running.fit(batches[0].places.plan, room)
            assert taken <= max(room, 100)
            pieces = [some async for some in running.pieces(iterated(batches))]
        assert [some.places.start for some in pieces] == [*range(10)]
        assert most <= bound


async def iterated(batches: list[Batch]) -> AsyncGenerator[Batch, None]:
    for batch in batches:
        yield batch


@pytest.mark.parametrize("bad", [0, 3])
async def test_leases_end_with_a_failure(bad: int, make_batches: Any, windows: Array) -> None:
    failing = [True]

    def fails_once(pixels: Array) -> Array:
        if failing and len(pixels) and (pixels == windows[bad]).all():
            failing.clear()
            raise ValueError
        return pixels

    batches = make_batches(windows, 1)
    stage: Transformed[Any] = Transformed(Whole(batch_size=1), batch=fails_once)
    async with (
        open_workers(Limits(worker_kind="inline", memory="1MiB")) as workers,
        stage.open(workers) as running,
    ):
        assert isinstance(running, HoldsBuffers)
        running.fit(batches[0].places.plan, 0)
        with pytest.raises(CannotProcess, match="fails_once failed"):
            async for _ in running.pieces(iterated(batches)):
                pass
        with anyio.fail_after(5):
            again = [some.values async for some in running.pieces(iterated(batches))]
    np.testing.assert_array_equal(np.concatenate([np.asarray(v) for v in again]), windows)


async def test_transformed_windows_are_no_crops_of_a_chunk(
    run_processor: Any, windows: Array
) -> None:
    # What a GPU is sent chunk by chunk are windows that overlap; these lie apart.
    uploads = DeviceChunks(torch.device("cpu"))
    batches = []

    def note(batch: Batch) -> list[int]:
        assert np.shares_memory(batch.chunks[0].pixels, batch.parts[0])
        batches.append(uploads.windows(batch, batch.parts[0]))
        return [0] * len(batch)

    inner: FunctionProcessor[int] = FunctionProcessor(note, batch_size=4)
    await run_processor(Transformed(inner, window=inverted), windows)
    assert batches == [None, None, None]


# What identifies the results.


async def test_config_holds_names_digests_and_the_processors_own(
    run_processor: Any, windows: Array
) -> None:
    model = TorchModule(Mean(), batch_size=4)
    _, plain = await run_processor(model, windows)
    _, one = await run_processor(Transformed(model, window=inverted), windows)
    _, other = await run_processor(Transformed(model, window=cropped, batch=halved), windows)
    assert json.loads(json.dumps(one)) == one
    assert {name: one[name] for name in plain} == plain
    assert one["channels"] == ["r", "g", "b"]
    assert one["transforms"][0]["window"]["name"].endswith(".inverted")
    assert one["transforms"][0]["batch"] is None
    assert other["transforms"][0]["batch"]["name"].endswith(".halved")
    assert one["transforms"][0]["window"]["sha256"] != other["transforms"][0]["window"]["sha256"]


# Errors.


def fails(window: Array) -> Array:
    """Fails for one window."""
    if window[0, 0, 0] == 77:
        raise ZeroDivisionError("no light\nand a second line")
    return window


async def test_a_failure_names_the_window(run_processor: Any, windows: Array) -> None:
    windows[:, 0, 0, 0] = 0
    windows[6, 0, 0, 0] = 77
    message = (
        r"transform .*test_transformed\.fails failed on window 6 \(1×1 at x 6, y 0 of level 0\) "
        r"of row: ZeroDivisionError: no light$"
    )
    with pytest.raises(CannotProcess, match=message):
        await run_processor(Transformed(Whole(batch_size=4), window=fails), windows)


async def test_a_failure_names_the_batch(run_processor: Any, windows: Array) -> None:
    def fails_later(pixels: Array) -> Array:
        if len(pixels) < 4:
            raise KeyError("x")
        return pixels

    with pytest.raises(CannotProcess, match="fails_later failed on windows 8 to 9 of row: KeyErr"):
        await run_processor(Transformed(Whole(batch_size=4), batch=fails_later), windows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": lambda w: w[..., 0]}, r"returned the shape \(16, 24\) for window 0 .*of row"),
        ({"window": lambda w: w[:0]}, r"returned the shape \(0, 24, 3\) for window 0"),
        ({"window": lambda w: None}, "returned something that is no array for window 0"),
        ({"batch": lambda b: b[:1]}, r"returned the shape \(1, 16, 24, 3\) for windows 0 to 3"),
        ({"batch": lambda b: b.tolist()}, "returned something that is no array for windows 0 to"),
    ],
)
async def test_results_that_are_no_windows(
    settings: Any, message: str, run_processor: Any, windows: Array
) -> None:
    with pytest.raises(CannotProcess, match=message):
        await run_processor(Transformed(Whole(batch_size=4), **settings), windows)


@pytest.mark.parametrize("other", [lambda w: w[:8], lambda w: w.astype(float)])
async def test_results_that_differ(other: Any, run_processor: Any, windows: Array) -> None:
    windows[:, 0, 0, 0] = 0
    windows[6, 0, 0, 0] = 77

    def changes(window: Array) -> Any:
        return other(window) if window[0, 0, 0] == 77 else window

    with pytest.raises(CannotProcess, match=r"for window 6 .* all must have one shape and dtype"):
        await run_processor(Transformed(Whole(batch_size=4), window=changes), windows)


def test_no_function_or_no_function_at_all() -> None:
    with pytest.raises(ConfigError, match="needs a function of a window, of a batch, or both"):
        Transformed(Whole())
    with pytest.raises(ConfigError, match="the batch transform 7 is not a function"):
        Transformed(Whole(), batch=7)  # type: ignore[arg-type]


async def test_a_whole_run_equals_the_slow_reference() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)
    sink = MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (pixels,), "b": (pixels[::-1],)}),
        sampler=SlidingWindow(kernel_size=20, stride=9),
        processor=Transformed(TorchModule(Mean(), batch_size=7), window=inverted),
        sink=sink,
    )
    report = await run(pipeline, ["a", "b"], limits=Limits(worker_kind="inline", memory="64MiB"))
    report.raise_for_failures()
    for name, slide in (("a", pixels), ("b", pixels[::-1])):
        expected = [
            (255 - slide[y : y + 20, x : x + 20]).mean(axis=(0, 1)) / 255
            for y in range(0, 81, 9)
            for x in range(0, 71, 9)
        ]
        np.testing.assert_allclose(np.array(sink.values[name]), expected, atol=1e-5)
