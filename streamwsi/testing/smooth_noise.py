"""Random fields that any part of an endless plane can be asked for.

A `Field` is a cubic B-spline over a lattice of random numbers: smooth, without seams, and a
pure function of the seed and of the place, so a tile can be painted without its neighbours.
The lattice repeats after `_PERIOD` points; memory therefore does not grow with the slide, and
a field of one wavelength repeats only after 256 wavelengths. A `Texture` is the opposite
trade: a fine pattern, rendered once, that repeats every `_SIDE` pixels and costs next to
nothing to look up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Axis", "Field", "Floats", "Texture", "smoothstep", "stretched"]

Floats = npt.NDArray[np.float32]
_PERIOD = 256
_SIDE = 1024
# A cubic B-spline over independent numbers of variance 1 has the mean variance (151/315)² in
# two dimensions, 151/315 being the integral of the squared kernel.
_UNIT = 315 / 151


class Axis(NamedTuple):
    """Evenly spaced coordinates: ``start, start + step, …``, in pixels of level 0."""

    start: float
    step: float
    number: int

    @property
    def points(self) -> Floats:
        """The coordinates."""
        return (self.start + self.step * np.arange(self.number)).astype(np.float32)


def smoothstep(low: float, high: float, values: Floats) -> Floats:
    """0 up to `low`, 1 from `high` on, and a cubic without kinks between them."""
    t = values - np.float32(low)
    t *= np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    rise = t * np.float32(-2)
    rise += 3
    rise *= t
    rise *= t
    return rise


def stretched(coarse: Floats, step: int, x: int, y: int, width: int, height: int) -> Floats:
    """Linear interpolation of a grid with a point every `step` pixels: a box of its pixels.

    Done by hand: as a product of matrices it would set the threads of the linear algebra
    library going, which costs far more than it brings.
    """
    share = (np.arange(step) / step).astype(np.float32)
    left, top = x // step, y // step
    part = coarse[top : -(-(y + height) // step) + 1, left : -(-(x + width) // step) + 1]
    wide = part[:, :-1, None] + np.diff(part, axis=1)[:, :, None] * share
    wide = wide.reshape(len(part), -1)[:, x - left * step :][:, :width]
    high = np.diff(wide, axis=0)[:, None, :] * share[:, None]
    high += wide[:-1, None, :]
    return high.reshape(-1, width)[y - top * step :][:height]


@lru_cache(maxsize=1024)
def _spline(axis: Axis, wavelength: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Lattice indices, and the matrix ``(axis.number, indices)`` that interpolates between them."""
    t = (axis.start + axis.step * np.arange(axis.number)) / wavelength
    cell = np.floor(t).astype(np.int64)
    f = t - cell
    kernel = np.stack(
        [
            (1 - f) ** 3,
            3 * f**3 - 6 * f**2 + 4,
            -3 * f**3 + 3 * f**2 + 3 * f + 1,
            f**3,
        ],
        axis=1,
    )
    first = int(cell[0])
    weights = np.zeros((axis.number, int(cell[-1]) - first + 4), np.float32)
    columns = (cell - first)[:, None] + np.arange(4)
    weights[np.arange(axis.number)[:, None], columns] = kernel / 6
    return (first - 1 + np.arange(weights.shape[1])) % _PERIOD, weights


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A sum of octaves: mean 0, and a variance of 1 for each octave of weight 1.

    Attributes:
        octaves: ``(wavelength in pixels, weight, lattice)`` of each.
    """

    octaves: tuple[tuple[float, float, Floats], ...]

    @classmethod
    def of(cls, rng: np.random.Generator, *octaves: tuple[float, float]) -> Field:
        """A field of random octaves ``(wavelength in pixels, weight)``."""
        shape = (_PERIOD, _PERIOD)
        return cls(
            tuple(
                (wavelength, weight, rng.standard_normal(shape, np.float32) * np.float32(_UNIT))
                for wavelength, weight in octaves
            )
        )

    def sample(self, ys: Axis, xs: Axis) -> Floats:
        """The field on a grid, ``(ys.number, xs.number)``."""
        total = np.zeros((ys.number, xs.number), np.float32)
        for wavelength, weight, lattice in self.octaves:
            rows, down = _spline(ys, wavelength)
            columns, across = _spline(xs, wavelength)
            total += np.float32(weight) * (down @ lattice[np.ix_(rows, columns)] @ across.T)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Texture:
    """A pattern of 1024 × 1024 pixels whose edges fit each other, uint8.

    Its histogram is flat, so that a threshold t covers the share t / 256 of the plane.
    """

    pixels: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, rng: np.random.Generator, *octaves: tuple[float, float, float]) -> Texture:
        """Filtered noise of octaves ``(length along x, length along y, weight)``, in pixels."""
        frequency = np.fft.fftfreq(_SIDE).astype(np.float32)
        along = np.fft.rfftfreq(_SIDE).astype(np.float32)
        total = np.zeros((_SIDE, _SIDE), np.float32)
        for length, breadth, weight in octaves:
            white = np.fft.rfft2(rng.standard_normal((_SIDE, _SIDE), np.float32))
            across = np.exp(-2 * (frequency * breadth) ** 2)
            noise = np.fft.irfft2(white * across[:, None] * np.exp(-2 * (along * length) ** 2))
            total += np.float32(weight / noise.std()) * noise.astype(np.float32)
        total /= total.std()
        # The noise is normally distributed: its distribution function makes the histogram flat.
        # By tanh it is off by less than 0.001: Page, Applied Statistics 26 (1977), p. 75.
        share = 0.5 + 0.5 * np.tanh(np.float32(np.sqrt(2 / np.pi)) * (total + 0.044715 * total**3))
        return cls((share * np.float32(255.999)).astype(np.uint8))

    def crop(self, x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The pattern of a box of the plane."""
        rows, columns = np.arange(y, y + height) % _SIDE, np.arange(x, x + width) % _SIDE
        return self.pixels[np.ix_(rows, columns)]

    def warped(self, u: Floats, v: Floats) -> npt.NDArray[np.uint8]:
        """The pattern at the places ``(u, v)``, the nearest pixel of each."""
        where = v.astype(np.int32)
        where &= _SIDE - 1
        where *= _SIDE
        columns = u.astype(np.int32)
        columns &= _SIDE - 1
        where += columns
        return self.pixels.ravel().take(where)
