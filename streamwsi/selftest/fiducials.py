"""Fiducials: dark spots on a white slide, whose centres are known to any fraction of a pixel.

A spot's darkness is ``hann(x) · hann(y)`` with ``hann(u) = (1 + cos(π u / r)) / 2`` within its
radius r: it is smooth, symmetric, and zero from its edge on. A pixel of any level is the mean of
it over the pixel's footprint on level 0, from the integral in closed form, so that all levels show
the same spot and none was made from another. Where it is sampled at a distance s, the centroid of
the samples is off by less than ``s / 4000`` from ``r = 4 s`` on: its spectrum is that small there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..blocks import ArrayRef
from ..chunks import Damage
from ..geometry import Box
from ..slides import PyramidLevel, Slide, SlideRef
from ..sources.base import ScrollReader, scroll_reader
from ..workers import Workers

__all__ = ["WHITE", "Fiducial", "FiducialMask", "FiducialSource", "blank", "paint"]

Floats = npt.NDArray[np.float64]

WHITE = 65535
_DTYPE = "uint16"


class Fiducial(NamedTuple):
    """A spot in level-0 pixels, counted from the slide's corner.

    Attributes:
        centre: ``(x, y)``.
        radius: likewise.
    """

    centre: tuple[float, float]
    radius: tuple[float, float]

    def means(self, axis: int, edges: Floats) -> Floats:
        """The means between neighbouring edges, ``(len(edges) - 1,)``, along x (0) or y (1)."""
        radius = self.radius[axis]
        u = np.clip(edges - self.centre[axis], -radius, radius)
        integral = u / 2 + radius / (2 * np.pi) * np.sin(np.pi * u / radius)
        means: Floats = np.diff(integral) / np.diff(edges)
        return means


def blank(slide: Slide) -> Slide:
    """The slide with its pyramid, and pixels of one channel of uint16."""
    ref = SlideRef("fiducials", slide.ref.uri)
    return replace(slide, ref=ref, dtype=_DTYPE, channels=1, identity="fiducials")


def paint(
    level: PyramidLevel, box: Box, fiducials: Sequence[Fiducial], out: npt.NDArray[Any]
) -> None:
    """Fill ``out``, ``(height, width, 1)``, with a box of a level. Spots must not overlap."""
    out[...] = WHITE
    starts = (box.x, box.y)
    for spot in fiducials:
        parts, means = [], []
        for axis, count in enumerate((box.width, box.height)):
            scale = level.downsample[axis]
            ends = (spot.centre[axis] - spot.radius[axis], spot.centre[axis] + spot.radius[axis])
            first = max(0, int(ends[0] / scale) - starts[axis])
            stop = min(count, int(ends[1] / scale) + 1 - starts[axis])
            parts.append(slice(first, stop))
            if first < stop:
                edges = np.arange(first, stop + 1, dtype=np.float64) + starts[axis]
                means.append(spot.means(axis, edges * scale))
        if len(means) == 2:
            out[parts[1], parts[0], 0] = np.rint(WHITE * (1 - np.outer(means[1], means[0])))


@dataclass(frozen=True, slots=True)
class FiducialSource:
    """One slide, whose tiles are painted when they are asked for.

    Attributes:
        slide: of one channel of uint16 (`blank`).
        fiducials: what is on it.
    """

    slide: Slide
    fiducials: tuple[Fiducial, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """See `streamwsi.stages.Source`."""
        return {"type": "fiducials", "fiducials": [[*f.centre, *f.radius] for f in self.fiducials]}

    def accepts(self, ref: SlideRef) -> bool:
        """Whether it is that slide."""
        return ref == self.slide.ref

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[ScrollReader]:
        """See `streamwsi.stages.Source`."""
        return self._open(workers)

    @asynccontextmanager
    async def _open(self, workers: Workers) -> AsyncIterator[ScrollReader]:
        async def fill(level: PyramidLevel, box: Box, target: ArrayRef) -> tuple[Damage, ...]:
            out = workers.arena.resolve(target)
            await anyio.to_thread.run_sync(paint, level, box, self.fiducials, out)
            return ()

        async with scroll_reader(self.slide, fill, workers) as reader:
            yield reader


@dataclass(frozen=True, slots=True)
class FiducialMask:
    """The surroundings of fiducials, as `streamwsi.samplers.masks.Mask`: all else is white.

    Attributes:
        fiducials: what is to be seen.
        margin: level-0 pixels around them, ``(x, y)``.
    """

    fiducials: tuple[Fiducial, ...]
    margin: tuple[float, float]

    @property
    def name(self) -> str:
        """See `streamwsi.samplers.masks.Mask`."""
        return "fiducials"

    @property
    def config(self) -> Mapping[str, Any]:
        """See `streamwsi.samplers.masks.Mask`."""
        return {"kind": "fiducials", "margin": [*self.margin]}

    def shares(self, base: Any, top: float, bottom: float, lefts: Floats, rights: Floats) -> Floats:
        """See `streamwsi.samplers.masks.Mask`; where surroundings overlap, the sum, at most 1."""
        covered = np.zeros(len(lefts))
        for (x, y), (rx, ry) in self.fiducials:
            rx, ry = rx + self.margin[0], ry + self.margin[1]
            height = max(0.0, min(bottom, y + ry) - max(top, y - ry))
            covered += height * np.maximum(
                0, np.minimum(rights, x + rx) - np.maximum(lefts, x - rx)
            )
        shares: Floats = np.minimum(1, covered / ((bottom - top) * (rights - lefts)))
        return shares
