"""Models that return a dict or a tuple: one output of it, or several as records."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from streamwsi.errors import CannotProcess, ConfigError
from streamwsi.pipelines import Pipeline, from_toml, to_toml
from streamwsi.processors import FunctionProcessor, Together, TorchModule, Transformed
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import MemorySink
from streamwsi.sources import TiffSource

Array = npt.NDArray[Any]
Named = namedtuple("Named", ["logits", "features"])


class Two(nn.Module):
    """Logits (n, 2) and features (n, 5), packed by a function."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        means = x.mean((2, 3))
        return self.pack(means[:, :2], torch.cat([means, -means[:, :2]], 1))


class Packed(nn.Module):
    """As `Two`, in a form that can be scripted and exported."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        means = x.mean((2, 3))
        return {"logits": means[:, :2], "features": torch.cat([means, -means[:, :2]], 1)}


def expected(windows: Array) -> tuple[Array, Array]:
    means = windows.mean((1, 2), dtype=np.float64) / 255
    return means[:, :2], np.concatenate([means, -means[:, :2]], 1)


PACKS: dict[str, tuple[Callable[..., Any], tuple[str | int, str | int]]] = {
    "dict": (lambda a, b: {"logits": a, "features": b}, ("logits", "features")),
    "dict by number": (lambda a, b: {"logits": a, "features": b}, (0, 1)),
    "ordered": (lambda a, b: OrderedDict(logits=a, none=None, features=b), ("logits", "features")),
    "tuple": (lambda a, b: (a, b), (0, 1)),
    "list": (lambda a, b: [a, b, "x"], (0, 1)),
    "named tuple": (Named, ("logits", "features")),
    "named tuple by number": (Named, (0, 1)),
    "dict by digits": (lambda a, b: {"1": b, "0": a}, (0, 1)),
    "dict of numbers": (lambda a, b: {7: a, 3: b}, (7, 3)),
}


@pytest.mark.parametrize("pack", PACKS)
async def test_one_is_chosen(run_processor: Any, windows: Array, pack: str) -> None:
    function, names = PACKS[pack]
    for name, values in zip(names, expected(windows), strict=True):
        processor = TorchModule(Two(function), batch_size=4, output=name)
        found, config = await run_processor(processor, windows)
        np.testing.assert_allclose(found, values, atol=1e-6)
        assert config["output"] == name


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("batch_size", [1, 4, 32])
async def test_several_become_records(
    run_processor: Any, windows: Array, pack: str, batch_size: int
) -> None:
    function, names = PACKS[pack]
    damaged = (2, 3)
    processor = TorchModule(Two(function), batch_size=batch_size, output=names)
    found, config = await run_processor(processor, windows, damaged)
    assert found.shape == (10,)
    assert found.dtype.names == tuple(map(str, names))
    for name, values in zip(names, expected(windows), strict=True):
        alone = TorchModule(Two(function), batch_size=batch_size, output=name)
        single, own = await run_processor(alone, windows, damaged)
        np.testing.assert_array_equal(found[str(name)], single)
        assert config["outputs"][str(name)] == own
        assert [*np.flatnonzero(np.isnan(single).any(1))] == [2, 3]
        kept, whole = (np.delete(some, damaged, 0) for some in (single, values))
        np.testing.assert_allclose(kept, whole, atol=1e-6)
    assert json.loads(json.dumps(config)) == config


async def test_outputs_of_any_shapes(run_processor: Any, windows: Array) -> None:
    model = Two(lambda a, b: {"one": a[:, 0], "map": b[:, :, None, None].expand(-1, -1, 3, 2)})
    found, _ = await run_processor(TorchModule(model, output=("one", "map")), windows)
    assert (found["one"].shape, found["map"].shape) == ((10, 1), (10, 5, 3, 2))
    np.testing.assert_array_equal(found["map"][:, 0, 2, 1], found["one"][:, 0])


@pytest.mark.parametrize("save", ["torchscript", "export", "fixed batch"])
async def test_files(run_processor: Any, windows: Array, tmp_path: Path, save: str) -> None:
    path, model = tmp_path / "model", Packed().eval()
    example = torch.zeros(4, 3, 16, 24)
    if save == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(model).save(str(path))  # type: ignore[no-untyped-call]
    else:
        dynamic = None if save == "fixed batch" else {"x": {0: torch.export.Dim("n")}}
        program = torch.export.export(model, (example,), dynamic_shapes=dynamic)
        torch.export.save(program, tmp_path / "model.pt2")
        path = tmp_path / "model.pt2"
    processor = TorchModule(path, batch_size=4, output=("features", "logits"))
    found, _ = await run_processor(processor, windows)
    logits, features = expected(windows)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(found["features"], features, atol=1e-6)


SHAPES = r"logits \(4×2\) and features \(4×5\)"


@pytest.mark.parametrize(
    ("pack", "output", "message"),
    [
        ("dict", None, f"the model returns a dict of {SHAPES}; choose one by --output NAME or"),
        ("ordered", None, r"an? OrderedDict of logits \(4×2\), none \(NoneType\) and features"),
        ("tuple", None, r"the model returns a tuple of 0 \(4×2\) and 1 \(4×5\); choose one by"),
        ("named tuple", None, f"the model returns a Named of {SHAPES}; choose"),
        ("dict", "feature", f"the model has no output 'feature'; it returns {SHAPES}"),
        ("dict", 2, f"the model has no output 2; it returns {SHAPES}"),
        ("tuple", "logits", r"no output 'logits'; it returns 0 \(4×2\) and 1"),
        ("dict of numbers", 0, r"no output 0; it returns 7 \(4×2\) and 3"),
        ("dict", ("logits", "x"), f"the model has no output 'x'; it returns {SHAPES}"),
    ],
)
async def test_a_choice_that_is_missing_or_wrong(
    run_processor: Any, windows: Array, pack: str, output: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        await run_processor(TorchModule(Two(PACKS[pack][0]), batch_size=4, output=output), windows)
    assert "\n" not in str(caught.value)


async def test_a_choice_that_is_not_needed(run_processor: Any, windows: Array) -> None:
    with pytest.raises(ConfigError, match=r"returns one Tensor, .* 'x' could be one; leave out"):
        await run_processor(TorchModule("hematoxylin", output="x"), windows)


async def test_an_output_that_is_no_tensor(run_processor: Any, windows: Array) -> None:
    model = Two(lambda a, b: {"inner": {"a": a}, "none": None})
    for name, kind in (("inner", "dict"), ("none", "NoneType")):
        with pytest.raises(CannotProcess, match=f"the model returned a {kind}; expected is one"):
            await run_processor(TorchModule(model, output=name), windows)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (-1, "a name or a number from 0 on, or several of them, not -1"),
        ("", "a name or a number"),
        (True, "a name or a number"),
        (1.5, "a name or a number"),
        ((), "one or several different ones, not"),
        (("a", "a"), "one or several different ones"),
        ((1, "1"), "one or several different ones"),
    ],
)
def test_choices_that_make_no_sense(output: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchModule("hematoxylin", output=output)


@pytest.mark.parametrize("output", [None, "logits", 1, ("logits", 1)])
def test_the_choice_goes_to_toml(output: Any) -> None:
    pipeline: Pipeline[Any] = Pipeline(
        source=TiffSource(),
        sampler=SlidingWindow(16),
        processor=TorchModule("a:b", output=output),
        sink=MemorySink(),
    )
    assert from_toml(to_toml(pipeline)).processor == pipeline.processor


async def test_names_of_channels(run_processor: Any, windows: Array) -> None:
    """They are those of the outputs that have as many channels."""
    model = Two(PACKS["dict"][0])
    model.channel_names = ["a", "b"]  # type: ignore[assignment]
    for output in ("logits", "features", ("logits", "features")):
        await run_processor(TorchModule(model, output=output), windows)
    five = tuple("abcde")
    _, config = await run_processor(
        TorchModule(model, output=("logits", "features"), channel_names=five), windows
    )
    assert config["outputs"]["features"]["channels"] == [*five]
    with pytest.raises(ConfigError, match=r"2 channel\(s\), but there are 5 channel names"):
        await run_processor(TorchModule(model, output="logits", channel_names=five), windows)
    with pytest.raises(ConfigError, match=r"2 and 5 channel\(s\), but there are 3 channel"):
        await run_processor(
            TorchModule(model, output=("logits", "features"), channel_names=tuple("abc")), windows
        )


async def test_transforms_are_part_of_each(run_processor: Any, windows: Array) -> None:
    def darker(window: Array) -> Array:
        return window // 2

    module = TorchModule(Two(PACKS["dict"][0]), output=("logits", "features"))
    found, config = await run_processor(Transformed(module, window=darker), windows)
    alone = Transformed(TorchModule(Two(PACKS["dict"][0]), output="logits"), window=darker)
    single, own = await run_processor(alone, windows)
    assert config["outputs"]["logits"] == own
    assert own["transforms"]
    np.testing.assert_array_equal(found["logits"], single)


# Together, with names.


async def test_together_with_names(run_processor: Any, windows: Array) -> None:
    one = TorchModule(nn.Conv2d(3, 5, 3, stride=4), batch_size=4)
    other: Any = FunctionProcessor(
        lambda batch: batch.pixels.max(axis=(1, 2, 3)) * 1.0, batch_size=4
    )
    found, config = await run_processor(Together(map=one, most=other), windows, (3,))
    for name, alone in (("map", one), ("most", other)):
        values, own = await run_processor(alone, windows, (3,))
        np.testing.assert_array_equal(found[name], values.reshape(found[name].shape))
        assert config["outputs"][name] == own
    assert (found["map"].shape, found["most"].shape) == ((10, 5, 4, 6), (10, 1))


async def test_together_with_names_that_cannot_be(run_processor: Any, windows: Array) -> None:
    module = TorchModule(Two(PACKS["tuple"][0]), output=0)
    with pytest.raises(ConfigError, match="all have names or none has"):
        Together(module, b=module)
    several = TorchModule(Two(PACKS["tuple"][0]), output=(0, 1))
    for together in (Together(module, several), Together(a=module, b=several)):
        with pytest.raises(ConfigError, match="gives several outputs: choose one of them"):
            await run_processor(together, windows)
    named = Together(a=module, b=module)
    assert repr(named) == f"Together(a={module!r}, b={module!r})"
    assert named != Together(module, module)
