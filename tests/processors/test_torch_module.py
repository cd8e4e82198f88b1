"""Models at work: what they are given, what they may return, what identifies them."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from streamwsi.chunks import Batch
from streamwsi.errors import CannotProcess, ConfigError
from streamwsi.limits import Limits
from streamwsi.processors import TorchModule
from streamwsi.processors.inference import Inference, device_for
from streamwsi.processors.model_inputs import InputBuffer
from streamwsi.workers import open_workers

Array = npt.NDArray[Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Lambda(nn.Module):
    """A function as a module, and what it was given."""

    def __init__(self, function: Callable[[Tensor], Any] = lambda x: x.mean((2, 3))) -> None:
        super().__init__()
        self.function = function
        self.given: list[Tensor] = []
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Any:
        self.given.append(x.clone())
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.function(x)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
async def test_equals_the_model_called_on_each_crop(
    run_processor: Any, windows: Array, batch_size: int
) -> None:
    model = network().eval()
    expected = []
    with torch.no_grad():
        for window in windows:
            crop = torch.tensor(window).permute(2, 0, 1)[None].float() / 255
            crop = (crop - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            expected.append(model(crop)[0].numpy())
    processor = TorchModule(model, batch_size=batch_size, device="cpu", mean=MEAN, std=STD)
    values, _ = await run_processor(processor, windows)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, np.stack(expected), rtol=0, atol=1e-5)


async def test_small_maps_go_through(run_processor: Any, windows: Array) -> None:
    model = nn.Conv2d(3, 5, 3, stride=4).eval()
    values, _ = await run_processor(TorchModule(model, batch_size=4), windows)
    with torch.no_grad():
        expected = model(torch.tensor(windows).permute(0, 3, 1, 2) / 255)
    assert values.shape == (10, 5, 4, 6)
    np.testing.assert_allclose(values, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1), ("float64", 1)]
)
@pytest.mark.parametrize(("mean", "std"), [(None, None), (MEAN, None), (None, STD), (MEAN, STD)])
async def test_input_is_that_of_the_usual_pipelines(
    run_processor: Any,
    dtype: str,
    white: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, max(2, white + 1), (5, 6, 7, 3)).astype(dtype)
    model = Lambda()
    await run_processor(TorchModule(model, batch_size=4, mean=mean, std=std, threads=1), pixels)
    expected = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / white
    if mean is not None:
        expected = expected - torch.tensor(mean).view(3, 1, 1)
    if std is not None:
        expected = expected / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(torch.cat(model.given), expected)
    assert all(given.dtype == torch.float32 for given in model.given)
    assert all(model.layouts)


@pytest.mark.parametrize("channels", [1, 2, 4])
async def test_any_number_of_channels(run_processor: Any, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, channels), np.uint8)
    model = Lambda()
    await run_processor(TorchModule(model, mean=(0.5,) * channels), pixels)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5
    assert torch.equal(model.given[0], expected)


def test_the_staged_way_gives_the_same_input(make_batches: Any, windows: Array) -> None:
    """What a GPU does, with the GPU left out."""
    buffers = [
        InputBuffer(make_batches(windows, 4)[0], 4, torch.device("cpu"), MEAN, STD, staged)
        for staged in (False, True)
    ]
    for batch in make_batches(windows, 4):
        direct, staged = (buffer.fill(batch) for buffer in buffers)
        assert torch.equal(direct, staged)


def test_the_buffer_is_used_again_and_filled_up_with_zeros(
    make_batches: Any, windows: Array
) -> None:
    batches = make_batches(windows, 4)
    buffer = InputBuffer(batches[0], 4, torch.device("cpu"), None, None, staged=False)
    first = buffer.fill(batches[0], 4)
    last = buffer.fill(batches[2], 4)
    assert first.data_ptr() == last.data_ptr()
    assert last.shape == (4, 3, 16, 24)
    assert torch.equal(last[:2], torch.from_numpy(windows[8:]).permute(0, 3, 1, 2) / 255)
    assert not last[2:].any()


async def test_damaged_windows_become_nan(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(TorchModule(network(), batch_size=4), windows, (3, 4))
    assert [*np.flatnonzero(np.isnan(values).all(1))] == [3, 4]
    assert [*np.flatnonzero(np.isnan(values).any(1))] == [3, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
async def test_other_numbers_become_float32(
    run_processor: Any, windows: Array, dtype: torch.dtype
) -> None:
    values, _ = await run_processor(
        TorchModule(Lambda(lambda x: (x.mean((2, 3)) * 3).to(dtype))), windows
    )
    assert values.dtype == np.float32
    expected = (torch.from_numpy(windows).permute(0, 3, 1, 2) / 255).mean((2, 3)) * 3
    np.testing.assert_array_equal(values, expected.to(dtype).float())


async def test_one_number_per_window_is_one_channel(run_processor: Any, windows: Array) -> None:
    values, _ = await run_processor(TorchModule(Lambda(lambda x: x.mean((1, 2, 3)))), windows)
    assert values.shape == (10, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: None, "the model returned a NoneType; expected"),
        (lambda x: x.mean(), r"shape \(\) for input of shape \(4, 3, 16, 24\)"),
        (lambda x: x.mean((0, 2, 3)), r"shape \(3,\) for input of shape \(4, 3, 16, 24\)"),
        (lambda x: x.mean(3), r"shape \(4, 3, 16\) for input"),
        (lambda x: x[:, :0].mean((2, 3)), r"shape \(4, 0\) for input"),
        (lambda x: torch.complex(x, x), r"complex numbers \(torch.complex64\); expected"),
        (lambda x: x.mean(2)[:, 0, : len(x)], r"returned \(2,\) per window and \(4,\) for earlier"),
        (lambda x: x @ x, r"failed on input of shape \(4, 3, 16, 24\): .*\b24\b"),
        (lambda x: sys.exit(0), r"failed on input of .*: it asked the program to exit"),
    ],
)
async def test_unusable_output(
    run_processor: Any, windows: Array, function: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(CannotProcess, match=message) as caught:
        await run_processor(TorchModule(Lambda(function), batch_size=4), windows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
async def test_out_of_memory_names_the_batch_size(
    run_processor: Any, windows: Array, error: Exception
) -> None:
    def fails(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(CannotProcess, match="a smaller --batch-size takes less memory"):
        await run_processor(TorchModule(Lambda(fails)), windows)


async def test_results_outlive_the_models_memory(run_processor: Any, windows: Array) -> None:
    kept = torch.zeros(4, 2)

    def overwrites(x: Tensor) -> Tensor:
        kept[:, 0] = x.mean((1, 2, 3))
        return kept

    one = TorchModule(Lambda(overwrites), batch_size=4, threads=1)
    values, _ = await run_processor(one, windows[:8])
    expected = windows[:8].mean((1, 2, 3)) / 255
    np.testing.assert_allclose(values[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("pixels", [np.zeros((2, 4, 4, 3), np.int32), np.zeros((2, 4, 4, 3), bool)])
async def test_unknown_pixels(run_processor: Any, pixels: Array) -> None:
    with pytest.raises(CannotProcess, match=f"uint8, uint16 or float pixels.*{pixels.dtype.name}"):
        await run_processor(TorchModule(Lambda()), pixels)


async def test_mean_must_fit_the_channels(run_processor: Any, windows: Array) -> None:
    with pytest.raises(ConfigError, match=r"mean has 2 value.*the windows have 3 channel"):
        await run_processor(TorchModule(Lambda(), mean=(0.1, 0.2)), windows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:i or several"),
        ({"device": "cpu,cuda:0"}, "device must be auto, cpu, cuda, cuda:i or several"),
        ({"mean": (1.0,), "std": (1.0, 2.0)}, "mean has 1 values and std 2"),
        ({"std": (1.0, 0.0)}, "std must not be zero"),
        ({"mean": "black"}, "mean must be numbers"),
        ({"mean": ()}, "mean must be numbers"),
        ({"mean": (float("nan"),)}, "mean must be numbers"),
        ({"std": 3}, "std must be numbers"),
        ({"mean": MEAN}, "hematoxylin measures plain intensities"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchModule("hematoxylin", **settings)


def test_the_configuration_compares_and_pickles() -> None:
    processor = TorchModule("a:b", mean=[1, 2], std=[3, 4], channel_names=["x"])  # type: ignore[arg-type]
    assert processor == TorchModule("a:b", mean=(1.0, 2.0), std=(3.0, 4.0), channel_names=("x",))
    assert pickle.loads(pickle.dumps(processor)) == processor
    assert eval(repr(processor)) == processor


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_without_a_gpu() -> None:
    assert device_for("auto") == torch.device("cpu") == device_for("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"device {name}: no CUDA GPU can be used here"):
            device_for(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
async def test_a_gpu_gives_what_the_cpu_gives(run_processor: Any, windows: Array) -> None:
    with pytest.raises(ConfigError, match="there is no such GPU"):
        device_for("cuda:99")
    model = network()
    for processor in (TorchModule(model, mean=MEAN, std=STD), TorchModule("hematoxylin")):
        on_gpu, config = await run_processor(processor, windows)
        assert config["device"] == "cuda"
    on_cpu, _ = await run_processor(TorchModule("hematoxylin", device="cpu"), windows)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)


async def test_values_do_not_depend_on_the_number_of_threads(run_processor: Any) -> None:
    model = network()
    pixels = np.random.default_rng(8).integers(0, 256, (90, 32, 32, 3), np.uint8)
    before = torch.get_num_threads()
    found = [
        (await run_processor(TorchModule(model, batch_size=4, threads=n), pixels))[0]
        for n in (1, 2, 5, None)
    ]
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert torch.get_num_threads() == before


async def test_config_identifies_the_results(run_processor: Any, windows: Array) -> None:
    async def config(model: nn.Module, **settings: Any) -> Any:
        return (await run_processor(TorchModule(model, **settings), windows))[1]

    base = await config(network(), device="cpu")
    assert json.loads(json.dumps(base)) == base == await config(network(), device="cpu")
    assert (base["batch_size"], base["device"], base["mean"]) == (32, "cpu", None)
    trained, changed = network(), network()
    with torch.no_grad():
        next(trained.parameters())[0, 0, 0, 0] += 1e-7
    changed[2] = nn.Tanh()
    others = [
        await config(trained),
        await config(changed),
        await config(network(), batch_size=8),
        await config(network(), mean=(0.0, 0.0, 0.0)),
        await config(network(), std=(1.0, 1.0, 1.0)),
        await config(network(), channel_names=tuple("abcd")),
    ]
    assert base not in others
    assert len({json.dumps(other) for other in others}) == len(others)


async def test_modules_with_unusual_state_have_a_digest(run_processor: Any, windows: Array) -> None:
    class Odd(Lambda):
        def get_extra_state(self) -> Any:
            return object()

        def set_extra_state(self, state: Any) -> None: ...

    model = Odd()
    model.register_buffer("scalar", torch.tensor(3))
    model.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))
    model.register_buffer("empty", torch.ones(0))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    _, first = await run_processor(TorchModule(model), windows)
    model.short[0] = 2  # type: ignore[operator]
    _, second = await run_processor(TorchModule(model), windows)
    assert first != second


async def test_channel_names(run_processor: Any, windows: Array) -> None:
    model = network()
    named = TorchModule(model, channel_names=("a", "b", "c", "d"))
    assert (await run_processor(named, windows))[1]["channels"] == ["a", "b", "c", "d"]
    assert (await run_processor(TorchModule(model), windows))[1]["channels"] is None
    model.channel_names = ["e", "f", "g", "h"]  # type: ignore[assignment]
    assert (await run_processor(TorchModule(model), windows))[1]["channels"] == [*"efgh"]
    few = TorchModule(model, channel_names=("a", "b"))
    with pytest.raises(ConfigError, match=r"4 channel\(s\), but there are 2 .*names: a, b"):
        await run_processor(few, windows)


async def test_the_callers_module_is_as_before(run_processor: Any, windows: Array) -> None:
    model = network()
    model[1].eval()  # a frozen layer in a model that trains
    modes = [part.training for part in model.modules()]
    assert any(modes)
    assert not all(modes)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    await run_processor(TorchModule(model), windows)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).requires_grad


async def test_slides_with_other_windows_share_a_model(make_batches: Any, windows: Array) -> None:
    """Several lanes at once, with windows of their own sizes: nobody gets another's pixels."""
    lanes = {i: windows[:, : 8 + i, : 9 + 2 * i] for i in range(4)}
    found: dict[int, list[Array]] = {i: [] for i in lanes}

    async def lane(running: Any, number: int) -> None:
        async def source() -> Any:
            batch: Batch
            for batch in make_batches(lanes[number], 3):
                await asyncio.sleep(0)
                yield batch

        async for pieces in running.pieces(source()):
            found[number].append(pieces.values)

    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        TorchModule(Lambda(), batch_size=3).open(workers) as running,
        anyio.create_task_group() as tasks,
    ):
        for number in lanes:
            tasks.start_soon(lane, running, number)
    for number, pixels in lanes.items():
        expected = pixels.mean((1, 2)) / 255
        np.testing.assert_allclose(np.concatenate(found[number]), expected, atol=1e-6)


def test_threads_of_a_model_keep_their_number_of_torchs_own() -> None:
    """A thread's first operation takes over what any thread has set last: sums would be cut
    elsewhere, and their last bits differ."""
    inference = Inference(Lambda(), 4, "cpu", None, None, None)
    before, found = torch.get_num_threads(), []
    entered, changed = threading.Event(), threading.Event()

    def compute() -> None:
        inference.enter_thread(2)
        entered.set()
        changed.wait(10)
        (torch.zeros(10) + 1).sum()
        found.append(torch.get_num_threads())

    def change() -> None:
        torch.set_num_threads(3)

    try:
        one, other = threading.Thread(target=compute), threading.Thread(target=change)
        one.start()
        entered.wait(10)
        other.start()
        other.join()
        changed.set()
        one.join()
    finally:
        torch.set_num_threads(before)
        inference.close()
    assert found == [1]
