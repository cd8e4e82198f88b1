"""Receptive fields against those worked out by hand, and by the layers' arithmetic."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamwsi.errors import ConfigError
from streamwsi.geometry import Size
from streamwsi.processors import ReceptiveField, receptive_field
from streamwsi.processors import receptive_fields as of_fields
from streamwsi.processors.probes import Probe


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_fields, "_SHORTEST", 128)
    monkeypatch.setattr(of_fields, "_ACROSS", 16)
    torch.manual_seed(0)


class UNet(nn.Module):
    """Halves the map `depth` times, and doubles it again."""

    def __init__(self, depth: int, channels: int = 2) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(depth)
        )
        self.deep = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = torch.relu(layer(x))
            kept.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.deep(x))
        for layer in self.up:
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            x = torch.relu(layer(torch.cat([x, kept.pop()], 1)))
        return x


class Normalised(nn.Module):
    """Each pixel's channels, after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.norm(self.first(x).permute(0, 2, 3, 1))
        out: Tensor = self.then(normal.permute(0, 3, 1, 2))
        return out


class HidesNan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.layer(torch.nan_to_num(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 16, stride=16)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        tokens = x.flatten(2).transpose(1, 2)
        out: Tensor = self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
        return out


class Positions(nn.Module):
    """Adds how far to the right a pixel lies."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, x.shape[3], dtype=x.dtype)


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def conv(kernel: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, kernel, **options)


def field(
    size: int, before: int, after: int, *, stride: int = 1, align: int = 1, offset: float = 0.0
) -> ReceptiveField:
    """That of both axes."""
    return ReceptiveField(
        Size.of(size), Size.of(stride), align, (before,) * 2, (after,) * 2, (offset,) * 2, True
    )


HAND = {
    "one pixel": (conv(1), field(1, 0, 0)),
    "3": (conv(3, padding=1), field(3, 1, 1)),
    "dilated": (
        # 1 · 2 + 1 · 4 to each side.
        nn.Sequential(
            conv(3, padding=2, dilation=2),
            nn.BatchNorm2d(3),
            nn.GELU(),
            conv(3, padding=4, dilation=4),
        ),
        field(13, 6, 6),
    ),
    "strided": (
        # Output i sees 2i-1 … 2i+1 of the first map, so 4i-3 … 4i+3 of the image; its cell is
        # 4i … 4i+3.
        nn.Sequential(conv(3, stride=2, padding=1), nn.ReLU(), conv(3, stride=2, padding=1)),
        field(7, 3, 0, stride=4, align=4, offset=-1.5),
    ),
    "patches": (conv(8, stride=8), field(8, 0, 0, stride=8, align=8)),
    "skips pixels": (conv(1, stride=2), field(1, 0, 0, stride=2, align=2, offset=-0.5)),
    "pooled": (
        # Output i sees i-1 … i+1 of the pooled map, 2i-2 … 2i+3 of the first, 2i-3 … 2i+4.
        nn.Sequential(conv(3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(3, padding=1)),
        field(8, 3, 3, stride=2, align=2),
    ),
    "pooled by 3": (
        nn.Sequential(nn.AvgPool2d(3), conv(3, padding=1)),
        field(9, 3, 3, stride=3, align=3),
    ),
    "transposed": (
        # Even outputs o see o-3 … o+1, odd ones o-2 … o+2.
        nn.Sequential(
            conv(3, stride=2, padding=1), nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)
        ),
        field(5, 3, 2, align=2, offset=-0.5),
    ),
    # Through the pooled map even outputs j see j-5 … j+4 and odd ones j-4 … j+5.
    "U-Net": (UNet(1), field(10, 5, 5, align=2)),
    "layer norm": (Normalised(), field(3, 1, 1)),
    "hides NaN": (HidesNan(), field(5, 2, 2)),
}


@pytest.mark.parametrize("name", HAND)
def test_fields_worked_out_by_hand(name: str) -> None:
    module, expected = HAND[name]
    assert receptive_field(module) == expected


def test_axes_are_measured_by_themselves() -> None:
    found = receptive_field(nn.Sequential(conv((3, 7), padding=(1, 3)), nn.MaxPool2d((1, 2))))
    assert found == ReceptiveField(Size(8, 3), Size(2, 1), 2, (3, 1), (3, 1), (0.0, 0.0), True)
    assert found.halo == Size(4, 2)


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 1, 1), (5, 2, 1), (3, 1, 2)],
        [(7, 2, 1), (3, 2, 1), (3, 1, 3), (1, 2, 1)],
        [(5, 3, 1), (3, 1, 1)],
        [(3, 1, 5), (3, 1, 7), (9, 1, 1)],
    ],
)
def test_stacks_by_arithmetic(layers: list[tuple[int, int, int]]) -> None:
    """Layers of (kernel, stride, dilation): a layer adds its reach times the stride so far."""
    reach, stride = 0, 1
    for kernel, step, dilation in layers:
        reach += (kernel - 1) // 2 * dilation * stride
        stride *= step
    stack = nn.Sequential(
        *(conv(k, stride=s, dilation=d, padding=(k - 1) // 2 * d) for k, s, d in layers)
    )
    found = receptive_field(stack)
    # Output i is centred on pixel i · stride, the first of its cell.
    after = max(0, reach - stride + 1)
    assert found == field(2 * reach + 1, reach, after, stride=stride, align=stride, offset=(1 - stride) / 2)  # fmt: skip # noqa: E501
    assert found.halo == Size.of(-(-reach // stride) * stride)


def test_a_deep_u_net_is_aligned_to_its_coarsest_map() -> None:
    found = receptive_field(UNet(3))
    assert (found.stride, found.align, found.aligned) == (Size(1, 1), 8, True)
    # One output after the other, in a phase each: every pixel that changes it.
    net = copy.deepcopy(UNet(3)).double().eval()
    images = torch.rand(1, 3, 8, 128, dtype=torch.float64).repeat(128, 1, 1, 1)
    images[range(128), ..., range(128)] = torch.nan
    with torch.no_grad():
        depends = net(images).isnan().any(2).any(1)  # (pixel, output)
    fields = [torch.nonzero(depends[:, j]).flatten().tolist() for j in range(60, 68)]
    assert found.size.width == max(f[-1] - f[0] + 1 for f in fields)
    assert found.before[0] == max(j - f[0] for j, f in zip(range(60, 68), fields, strict=True))
    assert found.after[0] == max(f[-1] - j for j, f in zip(range(60, 68), fields, strict=True))


def test_maps_smaller_than_their_images_are_not_aligned() -> None:
    found = receptive_field(nn.Sequential(conv(5), nn.ReLU(), conv(3)))
    assert (found.size, found.offset, found.aligned) == (Size(7, 7), (3.0, 3.0), False)


def test_the_model_stays_as_it_was() -> None:
    module = nn.Sequential(conv(3, padding=1), nn.BatchNorm2d(3), nn.Dropout2d()).train()
    before = copy.deepcopy(module.state_dict())
    assert receptive_field(module).size == Size(3, 3)
    assert module.training
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {value.dtype for value in module.parameters()} == {torch.float32}


def test_torchscript() -> None:
    layers = nn.Sequential(conv(3, padding=1), nn.ReLU(), conv(3, padding=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scripts are made no more, but read
        script = torch.jit.script(layers)
    assert receptive_field(script) == field(5, 2, 2)


def test_channels_of_the_image() -> None:
    assert receptive_field(nn.Conv2d(5, 1, 3, padding=1), channels=5) == field(3, 1, 1)


def test_a_field_is_a_value() -> None:
    found = field(3, 1, 1)
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({found, field(3, 1, 1)}) == 1
    assert field(5, 2, 2, align=4).halo == Size(4, 4)
    assert field(5, 0, 0, align=4).halo == Size(0, 0)


def test_images_grow_until_no_edge_is_seen() -> None:
    wide = conv(3, padding=64, dilation=64)
    assert receptive_field(wide) == field(129, 64, 64)
    with pytest.raises(ConfigError, match="unbounded, or reaches further than 20 pixels"):
        receptive_field(wide, most=20)


UNBOUNDED = "is unbounded, or reaches further than 64 pixels"
ELSEWHERE = "depend on where in an image a pixel lies"


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(conv(3, padding=1), nn.GroupNorm(1, 3)), UNBOUNDED),
        (nn.AdaptiveAvgPool2d(1), UNBOUNDED),
        (nn.AdaptiveAvgPool2d(8), "8 outputs on an image of 128 pixels, and 8 on one of 144"),
        (Attention(), UNBOUNDED),
        (Positions(), ELSEWHERE),
        (Function(lambda x: x * torch.rand(())), "one and the same image differ each time"),
        (conv(3, padding=1, padding_mode="circular"), r"at one edge .* \(circular padding"),
        (nn.Upsample(scale_factor=2), "lie 1/2 pixels apart"),
        (nn.Threshold(1e9, 0.5), "hardly depends on its image"),
        (nn.Flatten(), r"on maps, float tensors .* model Flatten returned shape \(1, 6144\)"),
        (Function(lambda x: {"a": x}), "model Function returned dict"),
        (Function(lambda x: x.argmax(1, keepdim=True)), r"returned shape \(1, 1, 16, 128\)"),
        (nn.Conv2d(4, 1, 3), "Conv2d cannot be run on images of 256×256, .*4 channels"),
    ],
)
def test_what_cannot_be_merged_exactly_is_told(module: nn.Module, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        receptive_field(module, most=64)


def test_a_model_that_cannot_be_copied() -> None:
    class Odd(nn.Module):
        def __deepcopy__(self, memo: Any) -> Odd:
            raise TypeError("one of a kind")

    with pytest.raises(ConfigError, match="model Odd cannot be copied into float64: one of a kind"):
        receptive_field(Odd())


def test_a_model_that_needs_high_images() -> None:
    """Its kernel is higher than the strips that are tried first."""
    found = receptive_field(conv((33, 3), padding=(0, 1)))
    assert (found.size, found.aligned) == (Size(3, 33), False)


def test_a_model_that_takes_one_size_only() -> None:
    def fixed(x: Tensor) -> Tensor:
        if x.shape[2:] != (16, 128):
            raise RuntimeError("expected 128 pixels\nand more of that")
        return x

    says = r"Function cannot be run on images of 129×16, .* on several sizes: expected 128 pixels$"
    with pytest.raises(ConfigError, match=says):
        receptive_field(Function(fixed))


def test_steps_are_found_wherever_they_are() -> None:
    net = UNet(1).double()
    probe = Probe(net, 3, 64, 8)
    slow = {}
    for t in range(20, 40):
        for number in range(probe.before(t), probe.before(t + 1)):
            slow[number] = t + 1
    assert dict(of_fields._steps(probe.before, 20, 40)) == slow
