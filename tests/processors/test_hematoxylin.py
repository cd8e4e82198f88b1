"""The built-in model against the formula, pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import CannotProcess
from streamwsi.processors import TorchModule
from streamwsi.processors.hematoxylin import STAINS, Hematoxylin

Array = npt.NDArray[Any]


def mean_density(window: Array) -> float:
    """Ruifrok & Johnston 2001, one pixel after the other, in float64; `window` is uint8."""
    rows = [np.array(stain) / math.sqrt(sum(v * v for v in stain)) for stain in STAINS]
    inverse: list[list[float]] = np.linalg.inv(np.stack(rows)).tolist()
    total = 0.0
    pixels: list[list[int]] = window.reshape(-1, 3).tolist()
    for pixel in pixels:
        od = [-math.log10(max(value / 255, 1 / 255)) for value in pixel]
        total += sum(od[k] * inverse[k][0] for k in range(3))
    return total / len(pixels)


def as_input(windows: Array) -> torch.Tensor:
    return torch.from_numpy(windows.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)


def test_inverse_is_the_published_one() -> None:
    """Row of hematoxylin in the paper's matrix D, given there with two decimals."""
    for channel, published in enumerate((1.88, -0.07, -0.60)):
        window = torch.ones(1, 3, 1, 1)
        window[0, channel] = 0.1  # an optical density of 1 in one channel
        assert Hematoxylin()(window).item() == pytest.approx(published, abs=0.006)


def test_pure_stains_are_told_apart() -> None:
    for stain, amount in zip(STAINS, (1.0, 0.0, 0.0), strict=True):
        unit = np.array(stain) / np.linalg.norm(stain)
        window = torch.tensor(10.0**-unit, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        assert Hematoxylin()(window).item() == pytest.approx(amount, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 17),
    darkest=st.sampled_from([0, 1, 200]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_loop_over_pixels(height: int, width: int, darkest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = rng.integers(darkest, 256, (3, height, width, 3), np.uint8)
    found = Hematoxylin()(as_input(windows))
    assert found.shape == (3, 1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(
        found[:, 0], [mean_density(window) for window in windows], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white(value: int) -> None:
    windows = np.full((1, 256, 256, 3), value, np.uint8)
    expected = mean_density(windows[0, :1, :1])
    assert Hematoxylin()(as_input(windows)).item() == pytest.approx(expected, abs=1e-5)


def test_many_windows_go_through_the_scratch_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamwsi.processors.hematoxylin._VALUES_AT_ONCE", 2 * 3 * 16 * 24)
    windows = np.random.default_rng(1).integers(0, 256, (7, 16, 24, 3), np.uint8)
    found = Hematoxylin()(as_input(windows))[:, 0]
    np.testing.assert_allclose(found, [mean_density(window) for window in windows], atol=1e-5)


def test_a_large_window_loses_no_precision() -> None:
    windows = np.random.default_rng(2).integers(0, 256, (1, 256, 256, 3), np.uint8)
    densities = -np.log10(np.maximum(windows / 255, 1 / 255)).mean((1, 2))
    inverse = np.linalg.inv([np.array(stain) / np.linalg.norm(stain) for stain in STAINS])
    found = Hematoxylin()(as_input(windows))[:, 0]
    np.testing.assert_allclose(found, densities @ inverse[:, 0], atol=1e-5)


def test_the_input_is_not_changed_and_any_layout_goes() -> None:
    images = torch.rand(2, 3, 8, 8)
    before = images.clone()
    plain = Hematoxylin()(images)
    assert torch.equal(images, before)
    last = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(Hematoxylin()(last), plain, rtol=0, atol=0)


async def test_as_a_processor(run_processor: Any, windows: Array) -> None:
    values, config = await run_processor(TorchModule("hematoxylin", batch_size=4), windows)
    assert (values.shape, values.dtype) == ((10, 1), np.float32)
    np.testing.assert_allclose(values[:, 0], [mean_density(w) for w in windows], atol=1e-5)
    assert config["channels"] == ["hematoxylin"]
    assert config["model"] == {"kind": "hematoxylin", "version": 1}


@pytest.mark.parametrize("channels", [1, 4])
async def test_needs_rgb(run_processor: Any, channels: int) -> None:
    windows = np.zeros((2, 4, 4, channels), np.uint8)
    with pytest.raises(CannotProcess, match=f"needs RGB windows; these have {channels} channel"):
        await run_processor(TorchModule("hematoxylin"), windows)
