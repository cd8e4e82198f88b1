"""Several devices, precisions, compiling, and chunks that are uploaded whole.

What a GPU does is tried on the CPU, through the very same code.
"""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from streamwsi import Slide, SlideRef
from streamwsi.chunks import Batch, BigChunk, Places, Region
from streamwsi.errors import ConfigError
from streamwsi.geometry import Size
from streamwsi.processors import TorchModule, inference, models
from streamwsi.processors.device_chunks import DeviceChunks
from streamwsi.processors.model_inputs import InputBuffer
from streamwsi.samplers import SlidingWindow
from streamwsi.samplers.sliding_window import GridPlan, windows_of
from streamwsi.slides import Pyramid, PyramidLevel

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def windows(count: int = 50) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 24, 24, 3), np.uint8)


async def test_replicas_give_the_values_of_one_model(run_processor: Any) -> None:
    model = network().train()
    one, config = await run_processor(TorchModule(model, batch_size=4, device="cpu"), windows())
    many, again = await run_processor(
        TorchModule(model, batch_size=4, device="cpu,cpu,cpu", threads=1), windows()
    )
    np.testing.assert_array_equal(one, many)
    assert config == again
    assert model.training  # put back, by the replica that is the caller's


CACHED = network()


async def test_replicas_of_a_named_module_are_not_one(
    run_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same object each time that it is asked for."""
    made: list[nn.Module] = []
    load = models.load_model

    def spying(model: Any, device: torch.device) -> Any:
        loaded = load(model, device)
        made.append(loaded.call)  # type: ignore[arg-type]
        return loaded

    monkeypatch.setattr(inference, "load_model", spying)
    named = TorchModule(f"{__name__}:CACHED", batch_size=4, device="cpu,cpu", threads=1)
    many, config = await run_processor(named, windows())
    assert len({id(module) for module in made}) == 2
    one, again = await run_processor(TorchModule(CACHED, batch_size=4, device="cpu"), windows())
    np.testing.assert_array_equal(one, many)
    assert config == again


async def test_what_was_computed_counts_though_a_model_cannot_be_put_back(
    run_processor: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an error that a GPU does not recover from."""
    closed = []

    def fails(self: inference.Inference) -> None:
        closed.append(self)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(inference.Inference, "close", fails)
    values, _ = await run_processor(TorchModule(network(), device="cpu,cpu"), windows())
    assert np.isfinite(values).all()
    assert len(closed) == 2
    assert "could not be put back" in caplog.text


async def test_hematoxylin_is_measured_in_full_precision(run_processor: Any) -> None:
    exact, _ = await run_processor(TorchModule("hematoxylin", device="cpu"), windows())
    short, _ = await run_processor(
        TorchModule("hematoxylin", device="cpu", precision="bf16"), windows()
    )
    np.testing.assert_array_equal(short, exact)


async def test_lower_precision_is_close_and_identified(run_processor: Any) -> None:
    exact, config = await run_processor(TorchModule(network(), device="cpu"), windows())
    short, other = await run_processor(
        TorchModule(network(), device="cpu", precision="bf16"), windows()
    )
    np.testing.assert_allclose(short, exact, atol=0.02)
    assert not np.array_equal(short, exact)
    assert short.dtype == np.float32
    assert (config["precision"], other["precision"]) == ("fp32", "bf16")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
async def test_a_compiled_model_gives_the_same_values(run_processor: Any) -> None:
    plain, _ = await run_processor(TorchModule(network(), batch_size=8), windows())
    fast, config = await run_processor(
        TorchModule(network(), batch_size=8, compile=True), windows()
    )
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    assert config["compiled"]


async def test_a_file_cannot_be_compiled(run_processor: Any, tmp_path: Any) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network()).save(str(path))  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError, match="leave out --compile"):
        await run_processor(TorchModule(path, compile=True), windows())


def test_precision_must_be_known() -> None:
    with pytest.raises(ConfigError, match="precision must be fp32, bf16 or fp16, not 'fp8'"):
        TorchModule("hematoxylin", precision="fp8")  # type: ignore[arg-type]


def plan_of(height: int, width: int, kernel: int, stride: int) -> GridPlan:
    level = PyramidLevel(0, Size(width, height), (1.0, 1.0), Size(64, 64))
    slide = Slide(SlideRef("a", "a"), Pyramid((level,)), "uint8", 3)
    return SlidingWindow(kernel, stride).plan(slide)


@pytest.mark.parametrize(("kernel", "stride", "uploads"), [(32, 8, 1), (32, 16, 1), (32, 32, 0)])
def test_overlapping_windows_are_cut_from_one_upload(
    kernel: int, stride: int, uploads: int
) -> None:
    plan = plan_of(100, 130, kernel, stride)
    sheet = np.random.default_rng(2).integers(0, 256, (120, 200, 3), np.uint8)
    region = next(plan.regions())
    box = region.box
    # A view of a wider sheet, as readers hand it out: rows have gaps between them.
    chunk = BigChunk(region, sheet[7 : 7 + box.height, 11 : 11 + box.width])
    chunks = DeviceChunks(CPU)
    for some in windows_of(plan, chunk):
        batch = Batch(
            Places(plan, some.first, some.first + len(some)), (some.pixels,), some.valid, (chunk,)
        )
        buffer = InputBuffer(batch, len(batch), CPU, None, None, True, chunks)
        found = buffer.fill(batch)
        expected = torch.from_numpy(some.pixels.copy()).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(found, expected)
    assert chunks.uploads == uploads


@pytest.mark.parametrize("order", ["planar", "columns", "reversed"])
def test_chunks_with_gaps_in_their_rows_are_not_uploaded(order: str) -> None:
    """Their windows are gathered."""
    plan = plan_of(100, 130, 32, 8)
    region = next(plan.regions())
    shape = (region.box.height, region.box.width, 3)
    pixels = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    pixels = {
        "planar": np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0),
        "columns": np.asfortranarray(pixels),
        "reversed": pixels[..., ::-1],
    }[order]
    chunk, chunks = BigChunk(region, pixels), DeviceChunks(CPU)
    for some in windows_of(plan, chunk):
        places = Places(plan, some.first, some.first + len(some))
        batch = Batch(places, (some.pixels,), some.valid, (chunk,))
        found = InputBuffer(batch, len(batch), CPU, None, None, True, chunks).fill(batch)
        expected = torch.from_numpy(some.pixels.copy()).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(found, expected)
    assert chunks.uploads == 0


def test_chunks_are_kept_on_the_device_while_they_are_held() -> None:
    """Those of many lanes side by side, each uploaded once."""
    plan = plan_of(64, 64, 32, 8)
    chunks = DeviceChunks(CPU)
    region = Region(0, 0, next(plan.regions()).box, 0, plan.count)
    lanes = [
        BigChunk(region, np.full((64, 64, 3), n, np.uint8)[: region.box.height, : region.box.width])
        for n in range(5)
    ]
    for _ in range(3):
        for chunk in lanes:
            some = next(windows_of(plan, chunk))
            batch = Batch(Places(plan, 0, len(some)), (some.pixels,), some.valid, (chunk,))
            assert chunks.windows(batch, some.pixels) is not None
    assert chunks.uploads == 5
    for chunk in lanes[1:]:
        chunk.release()
    another = BigChunk(region, lanes[0].pixels)
    some = next(windows_of(plan, another))
    chunks.windows(
        Batch(Places(plan, 0, len(some)), (some.pixels,), some.valid, (another,)), some.pixels
    )
    assert len(chunks._kept) == 2


def test_chunks_that_were_released_leave_the_device() -> None:
    plan = plan_of(64, 64, 32, 8)
    chunks = DeviceChunks(CPU)
    region = Region(0, 0, next(plan.regions()).box, 0, plan.count)
    for value in range(5):
        pixels = np.full((64, 64, 3), value, np.uint8)[: region.box.height, : region.box.width]
        chunk = BigChunk(region, pixels)
        for some in windows_of(plan, chunk):
            batch = Batch(Places(plan, 0, len(some)), (some.pixels,), some.valid, (chunk,))
            view = chunks.windows(batch, some.pixels)
            assert view is not None
            assert int(view.min()) == int(view.max()) == value
        chunk.release()
    assert chunks.uploads == 5
    assert len(chunks._kept) == 1
