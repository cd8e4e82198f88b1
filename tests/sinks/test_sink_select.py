"""Several outputs of one model, each to a sink of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamwsi import Pipeline, run
from streamwsi.errors import ConfigError, ContractBroken, StageMismatch
from streamwsi.geometry import Grid, Size
from streamwsi.limits import Limits
from streamwsi.processors import Together, TorchModule
from streamwsi.processors.model_outputs import records
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import (
    FeaturesHdf5,
    FeaturesZarr,
    HeatmapZarr,
    MemorySink,
    Pdmcsv,
    Select,
    Tee,
)
from streamwsi.sources import MemorySource
from streamwsi.stages import Recipe
from streamwsi.testing.outputs import grid_plan, stream, tree
from streamwsi.values import ValueType

PLAN = grid_plan(Grid(Size(28, 20), Size(4, 4), Size(4, 4), 5))
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(PLAN.count, 2)).astype(np.float32)
FEATURES = RNG.normal(size=(PLAN.count, 24)).astype(np.float32)
BOTH = records({"logits": LOGITS, "features": FEATURES})
ALONE = {"logits": {"model": "m", "output": "logits"}, "features": {"model": "m", "output": "f"}}
SEVERAL = Recipe(PLAN.config, {"outputs": ALONE}, {})
PIXELS = np.random.default_rng(3).integers(0, 256, (100, 90, 3), np.uint8)


def teed(out: Path) -> Tee[Any]:
    return Tee(
        Select(HeatmapZarr(out, 4), "logits"),
        Select(Pdmcsv(out), "logits"),
        Select(FeaturesHdf5(out), "features"),
        Select(FeaturesZarr(out, "float16"), "features"),
    )


async def write(sink: Any, values: Any, recipe: Recipe = SEVERAL, stop: int | None = None) -> int:
    async with sink.open(PLAN, recipe, overwrite=False) as writer:
        at = int(writer.resume_at)
        await writer.write(stream(PLAN, values, start=at, stop=stop))
        return at


async def write_alone(out: Path, stop: int | None = None) -> None:
    for select in teed(out).sinks:
        assert isinstance(select, Select)
        name, sink = str(select.output), select.sink
        own = Recipe(PLAN.config, ALONE[name], sink.config)
        await write(sink, BOTH[name].copy(), own, stop)


async def test_each_sink_writes_what_it_would_write_alone(tmp_path: Path) -> None:
    await write(teed(tmp_path / "tee"), BOTH)
    await write_alone(tmp_path / "alone")
    whole = tree(tmp_path / "alone")
    assert tree(tmp_path / "tee") == whole
    assert {name.split("/")[0] for name in whole} == {
        *("slide.csv", "slide.csv.json", "slide.features.zarr", "slide.h5", "slide.h5.json"),
        "slide.zarr",
    }


async def test_either_completes_what_the_other_began(tmp_path: Path) -> None:
    await write_alone(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    with pytest.raises(ContractBroken, match="ended at 12"):
        await write(teed(tmp_path / "a"), BOTH, stop=12)
    await write_alone(tmp_path / "a")
    assert tree(tmp_path / "a") == whole
    sinks = teed(tmp_path / "b").sinks
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(sinks[2], BOTH, stop=8)
    assert await write(teed(tmp_path / "b"), BOTH) == 0
    assert tree(tmp_path / "b") == whole


async def test_a_choice_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives no output 'x'; it gives logits, features"):
        await write(Select(Pdmcsv(tmp_path), "x"), BOTH)
    one = Recipe(PLAN.config, ALONE["logits"], {})
    with pytest.raises(StageMismatch, match=r"Select\(Pdmcsv\(…\), 'logits'\) chooses one of sev"):
        await write(Select(Pdmcsv(tmp_path), "logits"), BOTH, one)
    with pytest.raises(ContractBroken, match="gave pieces without the output logits"):
        await write(Select(Pdmcsv(tmp_path / "b"), "logits"), LOGITS)


@pytest.mark.parametrize("make", [HeatmapZarr, Pdmcsv, FeaturesZarr, FeaturesHdf5])
async def test_a_sink_without_a_choice_is_refused_at_once(make: Any, tmp_path: Path) -> None:
    message = r"several outputs \(logits, features\), .* as in Select\(sink, 'logits'\)"
    with pytest.raises(StageMismatch, match=message):
        await write(make(tmp_path), BOTH)
    assert tree(tmp_path) == {}


def test_it_is_the_sink_otherwise(tmp_path: Path) -> None:
    sink = FeaturesZarr(tmp_path)
    select = Select(sink, "features")
    assert select.config == sink.config
    several = ValueType((), BOTH.dtype)
    assert select.memory(PLAN, several) == sink.memory(PLAN, ValueType((24,), FEATURES.dtype)) > 0
    assert select.memory(PLAN, None) == sink.memory(PLAN, None) > 0
    assert select.outputs(PLAN.slide.ref) == sink.outputs(PLAN.slide.ref)
    assert Select(MemorySink(), 0).memory(PLAN, None) == 0


class Counted(nn.Module):
    """Logits and features, and how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        means = x.mean((2, 3))
        return {"logits": means[:, :2], "features": torch.cat([means, means * means], 1)}


async def test_a_whole_run_decodes_and_computes_once(tmp_path: Path) -> None:
    model, memory = Counted(), MemorySink()
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": (PIXELS,)}),
        sampler=SlidingWindow(kernel_size=20, stride=20),
        processor=TorchModule(model, batch_size=6, threads=1, output=("logits", "features")),
        sink=Tee(*teed(tmp_path).sinks, memory),
    )
    report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="128MiB"))
    report.raise_for_failures()
    assert model.calls == 1 + 4  # to see what it returns, and for 20 windows
    corners = [(y, x) for y in range(0, 81, 20) for x in range(0, 71, 20)]
    means = np.array(
        [PIXELS[y : y + 20, x : x + 20].mean(axis=(0, 1), dtype=np.float64) for y, x in corners]
    )
    kept: Any = memory.values["a"]
    np.testing.assert_allclose(kept["logits"], means[:, :2] / 255, rtol=1e-5)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    numbers = np.array([line.split(",") for line in lines], dtype=float)
    np.testing.assert_allclose(numbers[:, 10:12], means[:, :2] / 255, rtol=1e-5)
    import h5py
    import zarr

    image: Any = zarr.open_group(tmp_path / "a.zarr", mode="r")["0"]
    np.testing.assert_array_equal(image[:].reshape(2, -1).T, kept["logits"])
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][:], kept["features"])
        assert file["coords"][:].tolist() == [[x, y] for y, x in corners]
    rows: Any = zarr.open_group(tmp_path / "a.features.zarr", mode="r")["features"]
    np.testing.assert_array_equal(rows[:], kept["features"].astype(np.float16))


async def test_two_models_each_to_its_sink(tmp_path: Path) -> None:
    """A file begun by one model alone is completed by a run with both."""
    classifier = TorchModule(Counted(), batch_size=6, output="logits")
    encoder = TorchModule(Counted(), batch_size=6, output="features")

    async def written(processor: Any, sink: Any) -> int:
        pipeline: Pipeline[Any] = Pipeline(
            source=MemorySource({"a": (PIXELS,)}),
            sampler=SlidingWindow(kernel_size=20, stride=20),
            processor=processor,
            sink=sink,
        )
        report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="128MiB"))
        report.raise_for_failures()
        return report.outcomes[0].pieces

    both = Tee(
        Select(HeatmapZarr(tmp_path / "both"), "classes"),
        Select(FeaturesHdf5(tmp_path / "both"), "f"),
    )
    assert await written(Together(classes=classifier, f=encoder), both) == 20
    assert await written(classifier, HeatmapZarr(tmp_path / "alone")) == 20
    assert await written(encoder, FeaturesHdf5(tmp_path / "alone")) == 20
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")
    assert await written(Together(classes=classifier, f=encoder), both) == 0
