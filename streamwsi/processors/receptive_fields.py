"""How far a fully convolutional model sees: what a halo has to be for maps to merge exactly.

::

    field = receptive_field(model)
    SlidingWindow(512, halo=field.halo, align=field.align)

Each axis is measured by itself, on images that are long in it (`probes` has the method):

1. The image grows until what is made NaN in one half of it no longer reaches three quarters:
   then outputs in its middle see no edge. Where that never happens the field is unbounded.
2. The image is moved by 1, 2, 4, … pixels. The smallest move that moves the output's middle and
   changes it in nothing else is the model's *alignment*: 1 for plain convolutions, 16 for a
   U-Net that halves its maps four times, although that has an output for each pixel. It fits
   whole outputs; their distance is the *stride*.
3. Over one alignment, the NaN's edge is moved until an output more depends on it. That gives the
   first and the last pixel that each output depends on, in every phase.

Limits. The field is the theoretical one: what the layers let through. (The weights may use less.)
A layer that hides NaN is noticed, and probed with other pixels instead: that can miss
dependencies which these pixels happen not to show. Position embeddings are found by step 2,
unless they are periodic. What a model does with images of another size is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..boxes import Size
from ..errors import ConfigError
from .probes import Net, Probe, Unfit, runnable

__all__ = ["ReceptiveField", "receptive_field"]

_SHORTEST, _ACROSS, _LARGEST_SQUARE = 512, 64, 1024
_LARGEST_ALIGNMENT = 64
_SAME = 1e-7
"""Outputs are the same if they differ by less than this, relative to how much they vary."""
_ROUNDING = 1e-12
_FLAT = 1e-9


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What an output of a model depends on, in pixels; pairs are ``(x, y)``.

    Attributes:
        size: the pixels from the first to the last that an output depends on; where outputs
            differ (they do inside an alignment), the largest.
        stride: the distance between outputs: an output's own cell has this size.
        align: windows must begin at multiples of it, for the model to do the same in each.
        before: how many pixels to the left of, and above, its own cell an output depends on.
        after: likewise to the right, and below.
        offset: how far the fields' centres lie from the cells' centres, on average.
        aligned: whether a map covers its window as is assumed of it: n · stride pixels give n
            outputs, and the fields' centres lie in the cells. Maps of models that do not pad
            their layers are smaller than that, and are not merged exactly.
    """

    size: Size
    stride: Size
    align: int
    before: tuple[int, int]
    after: tuple[int, int]
    offset: tuple[float, float]
    aligned: bool

    @property
    def halo(self) -> Size:
        """The least halo with which maps merge exactly: a multiple of the alignment."""
        reach = map(max, self.before, self.after)
        return Size(*(-(-pixels // self.align) * self.align for pixels in reach))


def receptive_field(module: nn.Module, *, channels: int = 3, most: int = 512) -> ReceptiveField:
    """Measure a model's receptive field and output stride.

    A copy of the model is run in float64 on the CPU, on images up to ``4 · most`` pixels long:
    that takes seconds for small models, and a minute for large ones.

    Args:
        module: takes ``(n, channels, h, w)`` of several sizes and returns ``(n, C, h', w')``.
        channels: of its images.
        most: pixels; a model that sees further than this to one side counts as unbounded.

    Raises:
        ConfigError: the field is unbounded (attention, pooling or normalisation over the whole
            image); or the outputs depend on where in an image a pixel lies, are not a map, or
            lie no whole number of pixels apart; or the model cannot be run.
    """
    net = runnable(module)
    x = _measured(net, channels, most)
    y = _measured(_turned(net), channels, most)
    return ReceptiveField(
        Size(x.size, y.size),
        Size(x.stride, y.stride),
        math.lcm(x.align, y.align),
        (x.before, y.before),
        (x.after, y.after),
        (x.offset, y.offset),
        x.aligned and y.aligned,
    )


def _turned(net: Net) -> Net:
    return lambda image: net(image.transpose(2, 3)).transpose(2, 3)


class _Axis(NamedTuple):
    size: int
    stride: int
    align: int
    before: int
    after: int
    offset: float
    aligned: bool


def _measured(net: Net, channels: int, most: int) -> _Axis:
    probe = _probe(net, channels, most)
    align, outputs = _alignment(probe)
    if align % outputs:
        raise ConfigError(
            f"the model's outputs lie {Fraction(align, outputs)} pixels apart; windows are merged "
            "where that is a whole number"
        )
    stride, middle = align // outputs, probe.length // 2
    # Output `number` depends on no pixel before firsts[number], and on none behind lasts[number].
    firsts = {j: t - 1 for j, t in _steps(probe.before, middle, middle + align)}
    lasts = {j: t - 1 for j, t in _steps(probe.behind, middle, middle + align)}
    # Outputs whole alignments apart do the same: the last pixels, for the outputs of `firsts`.
    lasts = {j % outputs: pixel - j // outputs * align for j, pixel in lasts.items()}
    fields = [
        (first - j * stride, lasts[j % outputs] + j // outputs * align - j * stride)
        for j, first in firsts.items()
    ]
    centre = sum(first + last for first, last in fields) / 2 / len(fields)
    offset = centre - (stride - 1) / 2
    return _Axis(
        max(last - first + 1 for first, last in fields),
        stride,
        align,
        max(0, -min(first for first, _ in fields)),
        max(0, max(last for _, last in fields) - stride + 1),
        offset,
        _covers(probe, align, outputs) and abs(offset) <= stride / 2,
    )


def _covers(probe: Probe, align: int, outputs: int) -> bool:
    """Whether whole alignments of pixels give that many outputs each.

    Raises:
        ConfigError: the number of outputs does not grow with the image.
    """
    times = probe.length // align
    widths = [probe.net(probe.noise(n * align, 0)).shape[3] for n in (times, times + 1)]
    if widths[1] - widths[0] != outputs:
        raise ConfigError(
            f"the model has {widths[0]} outputs on an image of {times * align} pixels, and "
            f"{widths[1]} on one of {(times + 1) * align}: maps of windows are no parts of the "
            "whole level's (adaptive pooling?)"
        )
    return widths[0] == times * outputs


def _steps(count: Callable[[int], int], low: int, high: int) -> Iterator[tuple[int, int]]:
    """For each number from ``count(low)`` to below ``count(high)``: the least t with more.

    Args:
        count: never falls.
        low, high: where it is looked at, and between.
    """

    def between(a: int, b: int, at_a: int, at_b: int) -> Iterator[tuple[int, int]]:
        if at_a == at_b:
            return
        if b - a == 1:
            yield from ((number, b) for number in range(at_a, at_b))
            return
        c = (a + b) // 2
        at_c = count(c)
        yield from between(a, c, at_a, at_c)
        yield from between(c, b, at_c, at_b)

    return between(low, high, count(low), count(high))


def _probe(net: Net, channels: int, most: int) -> Probe:
    """Images so long that outputs in the middle half see no edge of them."""
    length = _SHORTEST
    unfit: Unfit | None = None
    while length <= max(_SHORTEST, 4 * most):
        # Models that do not pad may need more than a strip.
        for across in [_ACROSS, length] if length <= _LARGEST_SQUARE else [_ACROSS]:
            probe = Probe(net, channels, length, across)
            try:
                sees_no_edge = _sees_no_edge(probe)
            except Unfit as error:
                unfit = error
                continue
            unfit = None
            if sees_no_edge:
                return probe
            break
        length *= 2
    if unfit is not None:
        raise unfit
    raise ConfigError(
        f"the model's receptive field is unbounded, or reaches further than {most} pixels: "
        "outputs depend on all of an image (attention, or pooling or normalisation over the whole "
        "image?), so that windows cannot be merged exactly"
    )


def _sees_no_edge(probe: Probe) -> bool:
    middle, quarter = probe.length // 2, probe.width // 4
    if quarter < 2:
        return False  # a few outputs of the whole image, or cells too large for this one
    return probe.before(middle) <= probe.width - quarter and probe.behind(middle) >= quarter


def _alignment(probe: Probe) -> tuple[int, int]:
    """The least move in pixels that only moves the output, and by how many outputs.

    Moves that do are the multiples of the least one. So where a power of two does, the least one
    is the least power of two that does.
    """
    powers = [2**i for i in range(_LARGEST_ALIGNMENT.bit_length())]
    others = [n for n in range(3, _LARGEST_ALIGNMENT) if n not in powers]
    images, low, high = _images(probe), probe.width // 4, probe.width - probe.width // 4
    still = probe.net(images[..., : probe.length])[..., low:high]
    lowest, highest = float(still.min()), float(still.max())
    varies, largest = highest - lowest, max(abs(lowest), abs(highest))
    if not varies > _FLAT * largest:
        raise ConfigError(
            "the model's output hardly depends on its image, so that its field cannot be measured; "
            "give it other weights"
        )
    tolerance = _SAME * varies + _ROUNDING * largest
    for pixels in (*powers, *others):
        candidates = _outputs(probe, pixels, high - low)
        if not candidates:
            continue
        moved = probe.net(images[..., pixels : pixels + probe.length])[..., low:high]
        for outputs in candidates:
            if _largest_difference(still[..., outputs:], moved[..., :-outputs]) > tolerance:
                continue
            if _moves_the_field(probe, pixels, outputs):
                return pixels, outputs
    raise ConfigError(
        "the model's outputs depend on where in an image a pixel lies (position embeddings?), so "
        "that windows cannot be merged exactly"
    )


def _images(probe: Probe) -> Tensor:
    """Several that differ much, so that rectifiers let something through in one or the other."""
    one, other = (probe.noise(probe.length + _LARGEST_ALIGNMENT, seed) for seed in (2, 3))
    return torch.cat([one, -one, 16 * other - 8])


def _moves_the_field(probe: Probe, pixels: int, outputs: int) -> bool:
    """Whether what NaN reaches moves along: layers that let nothing through now may do so."""
    middle = probe.length // 2
    return all(
        reached(middle + pixels) - reached(middle) == outputs
        for reached in (probe.before, probe.behind)
    )


def _outputs(probe: Probe, pixels: int, room: int) -> list[int]:
    """How many outputs a move of some pixels may be."""
    if probe.length % probe.width == 0:  # the usual case: a padded model
        stride = probe.length // probe.width
        return [pixels // stride] if pixels % stride == 0 and pixels // stride < room else []
    return [*range(1, min(4 * pixels, room - 1) + 1)]


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
