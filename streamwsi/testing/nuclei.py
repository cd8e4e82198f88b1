"""Cell nuclei for the synthetic slides: where they may lie, and what they look like.

Places are the points of a grid a cell apart, each moved at random: nuclei keep their distance
as cells do, and which place a grid point has is a hash of its number, so every tile that a
nucleus touches draws it alike. Looks are drawn once into stamps, many variants in many
directions; a nucleus is then one `np.maximum` of a small array.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..geometry import Box
from .smooth_noise import Floats, smoothstep

__all__ = ["Kind", "Sites", "Stamps", "sites_in", "stamps_at"]

_VARIANTS = 16
_DIRECTIONS = 16


class Kind(IntEnum):
    """What a nucleus belongs to."""

    EPITHELIUM = 0
    LYMPHOCYTE = 1
    FIBROBLAST = 2


class _Look(NamedTuple):
    """A kind's nucleus, lengths in µm, stain in units of hematoxylin concentration."""

    length: float
    breadth: float
    stain: float
    clumps: float  # how much the chromatin varies inside
    ripple: float  # how far the outline leaves the ellipse
    nucleolus: float


_LOOKS = (  # in the order of `Kind`
    _Look(8.6, 6.6, 1.3, 0.5, 0.08, 0.7),
    _Look(5.7, 5.0, 2.0, 0.4, 0.08, 0.0),
    _Look(13.0, 3.2, 1.8, 0.25, 0.10, 0.0),
)


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """Places for nuclei, one array element each.

    Attributes:
        x, y: centres, float64 pixels of level 0.
        chance: uniform in 0 … 1: a nucleus is there where this is below the wanted share.
        look: variant of the stamp, 0 … 15.
        turn: direction, uniform in 0 … π.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]
    look: npt.NDArray[np.int64]
    turn: npt.NDArray[np.float64]


def _hash(
    row: npt.NDArray[np.uint64], column: npt.NDArray[np.uint64], seed: int
) -> npt.NDArray[np.uint64]:
    """64 mixed bits for each grid point: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    start = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    bits = row * np.uint64(0xD1B54A32D192ED03) + column * np.uint64(0x8CB92BA72F3D8DD7) + start
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def sites_in(box: Box, pitch: float, seed: int) -> Sites:
    """The sites of all grid points that can lie in the box, and a few around it.

    The grid has a point every `pitch` pixels; every other row is moved by half of that, and
    every site by up to 0.31 of it.
    """
    rows = np.arange(int(box.y / pitch) - 1, int(box.bottom / pitch) + 2)
    columns = np.arange(int(box.x / pitch) - 1, int(box.right / pitch) + 2)
    row, column = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    bits = _hash(row.astype(np.uint64), column.astype(np.uint64), seed)

    def uniform(shift: int, width: int = 12) -> npt.NDArray[np.float64]:
        return ((bits >> np.uint64(shift)) & np.uint64(2**width - 1)) / 2.0**width

    return Sites(
        x=(column + 0.5 * (row & 1) + 0.62 * (uniform(0) - 0.5)) * pitch,
        y=(row + 0.62 * (uniform(12) - 0.5)) * pitch,
        chance=uniform(24),
        look=((bits >> np.uint64(36)) % np.uint64(_VARIANTS)).astype(np.int64),
        turn=uniform(44) * np.pi,
    )


def _half(look: _Look, mpp: float) -> int:
    """Half the edge of a stamp, in pixels: the largest variant and its soft edge."""
    return int(0.66 * look.length / mpp) + 2


def _stamp(look: _Look, mpp: float, turn: float, rng: np.random.Generator) -> Floats:
    """One nucleus as hematoxylin concentration, in a square array around its centre."""
    grow = rng.uniform(0.82, 1.2)
    half = _half(look, mpp)
    across = (np.arange(-half, half + 1) * mpp).astype(np.float32)
    x, y = np.meshgrid(across, across)
    along = (x * np.cos(turn) + y * np.sin(turn)) / (grow * look.length / 2)
    aside = (y * np.cos(turn) - x * np.sin(turn)) / (
        grow * rng.uniform(0.85, 1.1) * look.breadth / 2
    )
    angle = np.arctan2(aside, along)
    outline = 1 + look.ripple * (
        np.cos(2 * angle + rng.uniform(0, 6)) + np.cos(3 * angle + rng.uniform(0, 6))
    )
    radius = (np.hypot(along, aside) / outline).astype(np.float32)
    soft = 0.45 / look.breadth
    inside = 1 - smoothstep(1 - 2 * soft, 1 + 2 * soft, radius)
    rim = np.exp(-(((radius - 0.88) / 0.16) ** 2))
    clumps = np.zeros_like(radius)
    for _ in range(14):
        dx, dy = rng.uniform(-0.8, 0.8, 2)
        spot = ((along - dx) * look.length) ** 2 + ((aside - dy) * look.breadth) ** 2
        clumps += rng.uniform(-1, 1) * np.exp(-spot / rng.uniform(1.2, 5))
    dx, dy = rng.uniform(-0.4, 0.4, 2)
    spot = ((along - dx) * look.length) ** 2 + ((aside - dy) * look.breadth) ** 2
    stain = 0.85 + 0.16 * rim + look.clumps * clumps + look.nucleolus * np.exp(-spot / 2.2)
    stain = np.clip(stain, 0.35, 1.6) * inside * look.stain * rng.uniform(0.8, 1.15)
    return np.ascontiguousarray(stain, np.float32)


class Stamps:
    """The pictures of all kinds of nuclei at one resolution, each made when first drawn.

    Attributes:
        reach: how far a stamp goes from its centre at most, in pixels.
    """

    def __init__(self, mpp: float) -> None:
        self._mpp = mpp
        self._made: dict[tuple[int, int, int], Floats] = {}
        self.reach = max(_half(look, mpp) for look in _LOOKS)

    def _stamp(self, kind: int, variant: int, direction: int) -> Floats:
        key = kind, variant, direction
        if key not in self._made:
            rng = np.random.default_rng((kind, variant))
            turn = np.pi * direction / _DIRECTIONS
            self._made[key] = _stamp(_LOOKS[kind], self._mpp, turn, rng)
        return self._made[key]

    def draw(self, canvas: Floats, kind: int, look: int, turn: float, x: int, y: int) -> None:
        """Put a nucleus on the canvas, its centre at ``(x, y)``, cut at the edges."""
        direction = round(turn * _DIRECTIONS / np.pi) % _DIRECTIONS
        stamp = self._stamp(kind, look, direction)
        half = stamp.shape[0] // 2
        left, top = x - half, y - half
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(x + half + 1, canvas.shape[1]), min(y + half + 1, canvas.shape[0])
        if x0 < x1 and y0 < y1:
            part = canvas[y0:y1, x0:x1]
            np.maximum(part, stamp[y0 - top : y1 - top, x0 - left : x1 - left], out=part)


@lru_cache(maxsize=4)
def stamps_at(mpp: float) -> Stamps:
    """The stamps for a resolution, made once."""
    return Stamps(mpp)
