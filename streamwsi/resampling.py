"""Resampling to coarser pixels: an exactly defined, separable filter in integers.

Output pixel i of an axis lies over source pixels ``[i·f, (i+1)·f)``, its centre at
``c = (i + 1/2)·f - 1/2`` (pixel j's centre is at j). Per axis:

- f an integer: the mean of the f pixels (area averaging);
- otherwise: a triangle of half-width f around c, ``1 - |j - c| / f``, cut at the level's edge
  and brought to the sum 1 — bilinear interpolation widened by the factor, so that frequencies
  which the coarser raster cannot hold are damped (P. Heckbert, "Fundamentals of Texture Mapping
  and Image Warping", 1989, 3.5; the filter that Pillow calls BILINEAR when it reduces).

The weights are fractions of ``2**16`` (of f where f is an integer), rounded such that each sum
of weights from the left is right to half a unit. Pixels and weights are integers, and all sums
stay below the largest integer that the floats hold exactly (2²⁴ in float32 for the first axis
of uint8, 2⁵³ in float64 elsewhere). So the two matrix products are exact in any order of
summation: the result does not depend on which box is resampled, on the BLAS, or on threads.
Once, at the end, the sum is rounded to the nearest integer, halves up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .chunks import Pixels
from .geometry import Box
from .slides import PyramidLevel

__all__ = ["DTYPES", "Axis", "axes", "resample"]

DTYPES = ("uint8", "uint16")
"""Pixels that can be resampled."""

_UNITS = 2**16
_SIDE = 32
"""Outputs per matrix: wide bands cost additions of zeros, narrow ones calls."""

_BLOCK_PIXELS = 2**18
"""Source pixels at once, about: a few MiB of floats, which caches hold."""

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a level that is resampled.

    Attributes:
        size: pixels of the source.
        factor: pixels of the source per output pixel; at least 1.
    """

    size: int
    factor: float

    @property
    def whole(self) -> bool:
        """Whether the factor is an integer."""
        return self.factor == int(self.factor)

    @property
    def units(self) -> int:
        """What the weights of an output sum up to."""
        return int(self.factor) if self.whole else _UNITS

    def needs(self, first: int, stop: int) -> tuple[int, int]:
        """The source pixels ``[begin, end)`` that the outputs ``first … stop - 1`` depend on."""
        if self.whole:
            begin, end = first * int(self.factor), stop * int(self.factor)
        else:
            begin = math.ceil(self._centre(first) - self.factor)
            end = math.floor(self._centre(stop - 1) + self.factor) + 1
        return max(0, begin), min(self.size, end)

    def most_needed(self, count: int) -> int:
        """Source pixels that `count` neighbouring outputs depend on: the most, at any place."""
        span = count * self.factor if self.whole else (count + 1) * self.factor + 1
        return min(self.size, math.ceil(span))

    def depends(self, begin: int, end: int) -> tuple[int, int]:
        """The outputs ``[first, stop)`` that depend on source pixels ``begin … end - 1``."""
        if self.whole:
            n = int(self.factor)
            return begin // n, -(-end // n)
        first = math.ceil((begin - self.factor + 0.5) / self.factor - 0.5 - 1e-9)
        last = math.floor((end - 1 + self.factor + 0.5) / self.factor - 0.5 + 1e-9)
        return max(0, first), last + 1

    def weights(self, first: int, stop: int) -> tuple[int, Weights]:
        """The first source pixel needed, and the matrix ``(stop - first, pixels needed)``."""
        begin, end = self.needs(first, stop)
        taps, units = self._taps(np.arange(first, stop))
        matrix = np.zeros((stop - first, end - begin))
        rows, columns = np.nonzero(units)
        matrix[rows, taps[rows, columns] - begin] = units[rows, columns]
        return begin, matrix

    def _centre(self, output: int) -> float:
        return (output + 0.5) * self.factor - 0.5

    def _taps(self, outputs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Weights]:
        """The source pixels of each output and their weights, ``(outputs, taps)`` both.

        Each row depends on its output alone, to the last bit.
        """
        if self.whole:
            taps = outputs[:, None] * int(self.factor) + np.arange(int(self.factor))
            return taps, np.ones(taps.shape)
        centres = ((outputs + 0.5) * self.factor - 0.5)[:, None]
        begin = np.ceil(centres - self.factor).astype(np.int64)
        taps = begin + np.arange(math.floor(2 * self.factor) + 2)
        shape = np.maximum(0.0, 1 - np.abs(taps - centres) / self.factor)
        shape[(taps < 0) | (taps >= self.size)] = 0
        sums = np.cumsum(shape, axis=1)
        units = np.diff(np.rint(sums / sums[:, -1:] * _UNITS), axis=1, prepend=0.0)
        return taps, units


def axes(level: PyramidLevel) -> tuple[Axis, Axis]:
    """The axes x and y of a level that has a source."""
    if level.source is None:
        raise ValueError(f"level {level.index} is the file's own and is not resampled")
    size, factor = level.source.size, level.factor
    return Axis(size.width, factor[0]), Axis(size.height, factor[1])


def resample(
    pixels: Pixels, out: Pixels, corner: tuple[int, int], x: Axis, y: Axis, box: Box
) -> None:
    """Compute the output pixels of a box.

    Args:
        pixels: ``(height, width, channels)`` of the source, uint8 or uint16; all that the
            box depends on.
        out: ``(box.height, box.width, channels)``, of the same dtype, is written.
        corner: x and y of ``pixels[0, 0]`` in the source.
        x, y: the axes.
        box: which outputs.
    """
    exact = np.float32 if pixels.dtype.itemsize == 1 else np.float64
    columns = [(b, *x.weights(b, e)) for b, e in _cuts(box.x, box.right, _SIDE)]
    wide = max(1, int(_BLOCK_PIXELS / (_SIDE * y.factor) / (_SIDE * x.factor)))
    for top, stop in _cuts(box.y, box.bottom, _SIDE):
        begin, weights = y.weights(top, stop)
        rows = pixels[begin - corner[1] : begin - corner[1] + weights.shape[1]]
        for i in range(0, len(columns), wide):
            some = columns[i : i + wide]
            left = some[0][1]
            right = some[-1][1] + some[-1][2].shape[1]
            turned = _down(weights, rows[:, left - corner[0] : right - corner[0]], exact)
            for first, at, across in some:
                sums = across @ turned[at - left : at - left + across.shape[1]]
                target = out[top - box.y : stop - box.y, first - box.x : first - box.x + len(sums)]
                _store(sums, x.units * y.units, target)


def _cuts(begin: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    for i in range(begin, end, step):
        yield i, min(i + step, end)


def _down(weights: Weights, rows: Pixels, exact: Any) -> Weights:
    """The weighted sums of the rows, turned: ``(width, outputs · channels)``."""
    height, width, channels = rows.shape
    flat = rows.astype(exact, order="C").reshape(height, width * channels)
    sums = weights.astype(exact) @ flat
    turned: Weights = sums.reshape(-1, width, channels).transpose(1, 0, 2).astype(float, order="C")
    return turned.reshape(width, -1)


def _store(sums: Weights, units: int, target: Pixels) -> None:
    """Divide, round, and write sums ``(columns, rows · channels)``."""
    # The quotient is rounded correctly, and no fraction of these units is as close below a half
    # as the rounding could move it.
    sums /= units
    sums += 0.5
    # What is cast to an integer is cut, which for numbers from 0 on is the floor.
    height, width, channels = target.shape
    target[...] = sums.reshape(width, height, channels).transpose(1, 0, 2)
