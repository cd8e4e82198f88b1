"""Probing a model along one axis: which outputs does a part of the image reach?

A part of an image is made NaN, and the outputs that become NaN are those that depend on it:
NaN passes through every tap of a convolution, whatever its weight, through activations, pooling
and interpolation, and through what normalises over a whole image. So the model is taken as it
is, and what is found is what *can* reach an output, not what happens to do so with these
weights. (Measuring gradients instead, as many tools do, misses what a rectifier or a maximum
happens to hide.) All is computed in float64 on the CPU, where torch multiplies plain matrices:
a fast convolution by transforms would let NaN leak into neighbours.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import ConfigError, first_line

__all__ = ["Probe", "Unfit", "runnable"]

Net = Callable[[Tensor], Tensor]

_CHANGED = 1e-9
"""An output has changed if it did by this much, relative to the largest output."""


class Unfit(ConfigError):
    """The model does not take an image of some size."""


def runnable(module: nn.Module) -> Net:
    """A copy of a module in float64, in evaluation mode, on the CPU.

    Raises:
        ConfigError: it cannot be copied or converted.
    """
    try:
        net = _copied(module).to("cpu", torch.float64).eval()
    except Exception as error:
        raise ConfigError(
            f"the model {type(module).__name__} cannot be copied into float64: {first_line(error)}"
        ) from error

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            try:
                out = net(image)
            except RuntimeError as error:
                size = f"{image.shape[3]}×{image.shape[2]}"
                raise Unfit(
                    f"the model {type(module).__name__} cannot be run on images of {size}, and "
                    f"must be on several sizes: {first_line(error)}"
                ) from error
        if not isinstance(out, Tensor) or out.ndim != 4 or not out.is_floating_point():
            what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ConfigError(
                "a receptive field is measured on maps, float tensors of shape (n, C, h, w), but "
                f"the model {type(module).__name__} returned {what}"
            )
        return out

    return run


def _copied(module: nn.Module) -> nn.Module:
    if not isinstance(module, torch.jit.ScriptModule):
        return copy.deepcopy(module)
    # A deep copy of a script has parameters that are no leaves, which `to` warns of.
    archive = io.BytesIO()
    with warnings.catch_warnings():
        # torch would like everybody to move on to torch.export.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, archive)
        archive.seek(0)
        loaded: nn.Module = torch.jit.load(archive, map_location="cpu")  # type: ignore[no-untyped-call]
    return loaded


@dataclass(frozen=True, eq=False)
class Probe:
    """A model and images of one size, probed along x.

    Attributes:
        net: the model.
        channels: of its images.
        length: of images along x.
        across: along y.
    """

    net: Net
    channels: int
    length: int
    across: int

    def noise(self, length: int, seed: int) -> Tensor:
        """Pixels in 0 … 1, ``(1, channels, across, length)``."""
        generator = torch.Generator().manual_seed(seed)
        shape = 1, self.channels, self.across, length
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    @cached_property
    def image(self) -> Tensor:
        """What is probed."""
        return self.noise(self.length, 0)

    @cached_property
    def out(self) -> Tensor:
        """What the model makes of it."""
        return self.net(self.image)

    @property
    def width(self) -> int:
        """Outputs along x."""
        return self.out.shape[3]

    def before(self, t: int) -> int:
        """How many outputs depend on columns before `t`: the first ones.

        Raises:
            ConfigError: others than the first ones do.
        """
        return self._reached(slice(0, t))

    def behind(self, t: int) -> int:
        """The first output that depends on columns from `t` on, as all after it do.

        Raises:
            ConfigError: some after it do not.
        """
        return self.width - self._reached(slice(t, None))

    def _reached(self, columns: slice) -> int:
        reached = _columns(self._with(columns, torch.tensor(torch.nan)).isnan())
        if self._hides:
            reached |= self._changed(columns)
        count = int(reached.sum())
        edge = reached[:count] if columns.start == 0 else reached[len(reached) - count :]
        if not bool(edge.all()):
            raise ConfigError(
                "outputs at one edge of an image depend on pixels at the other (circular "
                "padding?), so that windows cannot be merged exactly"
            )
        return count

    @cached_property
    def _hides(self) -> bool:
        """Whether the model hides NaN: ordinary numbers reach outputs that NaN does not.

        Raises:
            ConfigError: the model gives other numbers each time.
        """
        if not torch.equal(self.net(self.image), self.out):
            raise ConfigError("the model's outputs for one and the same image differ each time")
        left = slice(0, self.length // 2)
        changed, lost = self._changed(left), self._with(left, torch.tensor(torch.nan)).isnan()
        return bool((changed & ~_columns(lost)).any())

    def _changed(self, columns: slice) -> Tensor:
        difference = (self._with(columns, self.noise(self.length, 1)) - self.out).abs()
        return _columns(difference > _CHANGED * self.out.abs().max())

    def _with(self, columns: slice, pixels: Tensor) -> Tensor:
        """The output where some columns hold other pixels."""
        image = self.image.clone()
        image[..., columns] = pixels[..., columns] if pixels.ndim else pixels
        return self.net(image)


def _columns(marks: Tensor) -> Tensor:
    """The columns with a mark, ``(w,)``."""
    return marks.any(dim=2).any(dim=1).any(dim=0)
