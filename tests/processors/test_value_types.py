"""What a processor says beforehand of its values, and of the memory that they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamwsi.chunks import Batch, Places
from streamwsi.errors import CannotProcess
from streamwsi.geometry import Grid, Size
from streamwsi.heaps import KeptHeap
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor, Together, TorchModule, Transformed
from streamwsi.processors.activations import PeakOfTensors
from streamwsi.stages import HoldsBuffers, Processor, TellsValues
from streamwsi.testing.outputs import grid_plan
from streamwsi.values import ValueType, blank_batch
from streamwsi.workers import open_workers

PLAN = grid_plan(Grid(Size(256, 192), Size(64, 48), Size(64, 48)))
F4 = np.dtype(np.float32)


def mean() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def maps() -> nn.Module:
    return nn.Conv2d(3, 5, 4, stride=4)


def mean_of(batch: Batch) -> Any:
    return batch.pixels.mean((1, 2, 3))


async def told(processor: Processor[Any], most: int = 8) -> ValueType | None:
    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        processor.open(workers) as running,
    ):
        assert isinstance(running, TellsValues)
        return running.value_type(blank_batch(PLAN, most))


class Two(nn.Module):
    """Two outputs, a vector and a map."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"vector": x.mean((2, 3)), "map": x[:, :2, ::4, ::4]}


@pytest.mark.parametrize(
    ("processor", "fields"),
    [
        (TorchModule(Two(), output=("vector", "map")), {"vector": (3,), "map": (2, 12, 16)}),
        (TorchModule(Two(), output=("map",)), {"map": (2, 12, 16)}),
        (Together(a=TorchModule(mean()), b=TorchModule(maps())), {"a": (3,), "b": (5, 12, 16)}),
        (
            Transformed(TorchModule(Two(), output=("map",)), window=lambda w: w[::2, ::2]),
            {"map": (2, 6, 8)},
        ),
    ],
)
async def test_several_outputs_are_told(
    processor: Processor[Any], fields: dict[str, tuple[int, ...]]
) -> None:
    found = await told(processor)
    assert found is not None
    assert found.shape == ()
    assert found.dtype.names == tuple(fields)
    assert {name: found.field(name) for name in fields} == {
        name: ValueType(shape, F4) for name, shape in fields.items()
    }
    assert found.field("other") is None
    assert found.nbytes == sum(ValueType(shape, F4).nbytes for shape in fields.values())
    assert ValueType((3,), F4).field("vector") is None


async def test_several_of_which_one_cannot_tell() -> None:
    assert await told(Together(a=TorchModule(mean()), b=FunctionProcessor(mean_of))) is None


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (TorchModule(Two(), output="map"), (2, 12, 16)),
        (TorchModule(mean()), (3,)),
        (TorchModule(maps()), (5, 12, 16)),
        (TorchModule(nn.Sequential(mean(), nn.Linear(3, 1), nn.Flatten(0))), (1,)),
        (Together(TorchModule(mean()), TorchModule(mean())), (6,)),
        (Transformed(TorchModule(maps()), window=lambda w: w[::2, ::2]), (5, 6, 8)),
        (Transformed(TorchModule(maps()), batch=lambda b: b[:, :8, :8]), (5, 2, 2)),
    ],
)
async def test_the_shape_is_told(processor: Processor[Any], expected: tuple[int, ...]) -> None:
    assert await told(processor) == ValueType(expected, F4)


async def test_programs_for_batches_of_one_size_are_filled_up(tmp_path: Path) -> None:
    example = torch.zeros(4, 3, 48, 64)
    torch.export.save(torch.export.export(maps().eval(), (example,)), tmp_path / "m.pt2")
    processor = TorchModule(tmp_path / "m.pt2", batch_size=4)
    assert await told(processor) == ValueType((5, 12, 16), F4)


@pytest.mark.parametrize(
    "processor",
    [
        FunctionProcessor(mean_of),
        Transformed(FunctionProcessor(mean_of), batch=lambda b: b),
        Together(TorchModule(mean()), FunctionProcessor(mean_of)),
        Together(TorchModule(mean()), TorchModule(maps())),
    ],
)
async def test_nothing_is_told_where_nobody_knows(processor: Processor[Any]) -> None:
    assert await told(processor) is None


async def test_windows_that_the_model_refuses() -> None:
    with pytest.raises(CannotProcess, match="the model failed on input of shape"):
        await told(TorchModule(nn.Linear(7, 7)))


def test_the_blank_windows_are_like_those_to_come() -> None:
    batch = blank_batch(PLAN, 8)
    assert batch.shape == (2, 48, 64, 3)
    assert batch.dtype == np.uint8
    assert batch.pixels.min() == 255
    assert len(blank_batch(PLAN, 1)) == 1


def test_tensors_are_counted_while_they_live() -> None:
    """An obvious reference: 4 bytes times the elements, by hand."""
    x = torch.zeros(1000)
    with torch.inference_mode(), PeakOfTensors() as tensors:
        a = x + 1  # 1000
        b = a.repeat(3)  # 4000
        b.mul_(2)  # in place
        del a, b  # 0
        c = (x + 1).reshape(10, 100)[:5]  # 1000, and views of it
        assert float(c.sum()) == 500  # 1001
    assert tensors.peak == 4 * 4000


class Wide(nn.Module):
    """Weights of 16 MiB, and 4 MiB of activations at a time per window."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(1 << 22))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.mean((1, 2, 3)).reshape(-1, 1).repeat(1, 1 << 20)
        return wide.mean(1, keepdim=True)


async def test_weights_and_activations_are_part_of_what_a_model_holds() -> None:
    processor = TorchModule(Wide(), batch_size=32, device="cpu", threads=2)
    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        processor.open(workers) as running,
    ):
        assert isinstance(running, HoldsBuffers)
        running.value_type(blank_batch(PLAN, 32))
        inputs = 7 * 48 * 64 * 3 * 4  # as many windows of a batch at a time as take 32 MiB
        expected = (16 << 20) + 2 * (7 * (4 << 20) + inputs)
        # What they leave is kept where there is room for that as well.
        kept = 2 * 7 * (4 << 20)
        assert kept < 2 * KeptHeap.thread_bytes
        assert expected <= running.fit(PLAN, expected + kept // 2) <= expected + (1 << 20)
        taken = running.fit(PLAN, 1 << 40)
    assert expected + kept <= taken <= expected + kept + (1 << 20)


class Recording(nn.Module):
    """Some MiB of activations per window; remembers how many windows it was called with."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return x.mean((1, 2, 3)).reshape(-1, 1).repeat(1, self.cells).mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("cells", "batch", "sizes"),
    [
        (1 << 10, 32, [16, 16]),
        (15 << 16, 32, [16, 16]),  # 3.75 MiB a window
        (1 << 20, 32, [7, 7, 7, 7, 4]),  # a few bytes more than 4 MiB a window
        (1 << 22, 32, [2] * 16),
        (1 << 25, 32, [2] * 16),  # 128 MiB a window
        (1 << 22, 1, [1]),
    ],
)
async def test_large_activations_make_small_calls(cells: int, batch: int, sizes: list[int]) -> None:
    model = Recording(cells)
    processor = TorchModule(model, batch_size=batch, device="cpu", threads=1)
    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        processor.open(workers) as running,
    ):
        assert isinstance(running, TellsValues)
        running.value_type(blank_batch(PLAN, batch))
        model.sizes.clear()
        blank = blank_batch(PLAN, batch)
        whole = np.repeat(blank.pixels[:1], batch, 0)

        async def batches() -> Any:
            yield Batch(Places(PLAN, 0, batch), (whole,), np.ones(batch, np.bool_))

        (pieces,) = [some async for some in running.pieces(batches())]
    assert model.sizes == sizes
    np.testing.assert_allclose(pieces.values, 1, rtol=1e-6)


async def test_replicas_are_called_alike_whichever_was_asked() -> None:
    """Sums in other orders would have other last digits."""
    sizes: list[int] = []

    class Shared(Recording):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    processor = TorchModule(Shared(1 << 22), batch_size=8, device="cpu,cpu", threads=1)
    async with (
        open_workers(Limits(worker_kind="inline")) as workers,
        processor.open(workers) as running,
    ):
        assert isinstance(running, TellsValues)
        blank = blank_batch(PLAN, 8)
        running.value_type(blank)
        sizes.clear()
        whole = np.repeat(blank.pixels[:1], 8, 0)

        async def batches() -> Any:
            for start in (0, 8):
                places = Places(PLAN, start, start + 8)
                yield Batch(places, (whole,), np.ones(8, np.bool_))

        assert len([some async for some in running.pieces(batches())]) == 2
    assert sizes == [2] * 8
