"""RandomPatches: windows at random places, the same ones each time, for training.

A slide's places depend on the seed and on the slide's id only, and on its size and the weights:
not on the order of the slides, on the limits or on Python's hash. The random bits are those of
numpy's PCG64, whose stream numpy keeps the same between its versions, and are turned into
places by integer and float arithmetic that is written out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ..chunks import BigChunk, Plan, SmallChunks
from ..errors import ConfigError, ContractBroken
from ..geometry import Size
from ..resolutions import asked, assuming, chosen_level
from ..slides import Level, Microns, Resolution, Slide, SlideRef
from ..stages import SlideReader
from .masks import Mask, MaskSource
from .patch_plans import Corners, PatchPlan

__all__ = ["RandomPatches"]

_Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[Any] | Callable[[Slide], npt.NDArray[Any]] | Mask | MaskSource

_CELLS = 1024
"""Cells along the longer side of the grid that a mask is laid on."""


@dataclass(frozen=True, slots=True)
class RandomPatches:
    """`count` windows per slide, drawn independently: two may overlap or be the same.

    Without weights every place where the window fits is as likely as any other. Weights are a
    2-D array (a tissue mask, say) that is laid over the whole level, cell (r, c) of R×C over
    rows ``r·height/R …`` and columns ``c·width/C …``; a place is then as likely as the weight
    of the cell that holds the window's centre pixel ``(x + width // 2, y + height // 2)``. A mask
    (`TissueMask()`, say) weighs the cells of a grid by their share of it.

    Attributes:
        count: windows per slide.
        kernel_size: a window's size in pixels of the level: an int for squares, or
            ``(width, height)``.
        level: what to read: the index of a pyramid level (0 where neither it nor `mpp` is given),
            or another resolution, as in `SlidingWindow`.
        seed: another seed gives other places.
        weights: bool or numbers, ``(rows, columns)``, none negative; a function that returns
            them for a `Slide`; or a mask of `streamwsi.samplers`, which is made from the slide's
            pixels where it has to be.
        mpp: size of the windows' pixels in micrometres, instead of `level`.
        tolerance: a level that is this close to the pixel size, relative, is taken as it is.
        assume_mpp: micrometres of a level-0 pixel of slides that do not say it.

    Raises:
        ConfigError: a number is out of range; or, when planning, the kernel is beyond the level
            or the weights leave no place.
    """

    count: int
    kernel_size: int | tuple[int, int] = 256
    level: Resolution | None = field(default=None, metadata={"role": "function"})
    seed: int = 0
    weights: Weights | None = field(
        default=None, compare=False, metadata={"role": "mask", "function": True}
    )
    mpp: float | None = None
    tolerance: float = 0.02
    assume_mpp: float | None = None
    _weights_identity: object = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"the number of patches must be at least 1, not {self.count}")
        if min(self.kernel) < 1:
            raise ConfigError(f"kernel size {self.kernel} must be at least 1 in both axes")
        if not 0 <= self.tolerance < 0.5:
            raise ConfigError(
                f"the tolerance of a resolution must be from 0 to below 0.5, not {self.tolerance}"
            )
        if self.assume_mpp is not None and not 0 < self.assume_mpp < float("inf"):
            raise ConfigError(f"assume_mpp must be positive, not {self.assume_mpp}")
        _ = self.resolution
        if self.seed < 0:
            raise ConfigError(f"the seed must be 0 or more, not {self.seed}")
        identity: object = self.weights
        if not (self.weights is None or callable(self.weights) or _is_mask(self.weights)):
            checked = _checked(self.weights, "the weights")
            object.__setattr__(self, "weights", checked)
            identity = _digest(checked)
        object.__setattr__(self, "_weights_identity", identity)

    @property
    def kernel(self) -> Size:
        """A window's size."""
        return Size.of(self.kernel_size)

    @property
    def resolution(self) -> Resolution:
        """What was given of level and mpp.

        Raises:
            ConfigError: both were, or one that cannot be.
        """
        if self.mpp is not None:
            if self.level is not None:
                raise ConfigError("level and mpp exclude each other; give one of them")
            return Microns(self.mpp)
        return Level(self.level or 0) if isinstance(self.level, int | None) else self.level

    def needs_pixels(self, slide: SlideRef) -> bool:
        """Whether the weights are a mask that has to be made for the slide."""
        return isinstance(self.weights, MaskSource)

    async def prepare(self, reader: SlideReader, memory: int) -> RandomPatches:
        """The same sampler with a mask that needs no pixels any more."""
        if not isinstance(self.weights, MaskSource):
            return self
        return replace(self, weights=await self.weights.prepare(reader, memory))

    def plan(self, slide: Slide) -> PatchPlan:
        """The windows of a slide.

        Raises:
            ContractBroken: the weights are made from pixels, and `prepare` was not called.
            LevelNotFound: the slide lacks the level.
            ConfigError: the kernel is beyond the level, the weights leave no place, or the slide
                cannot have the resolution.
        """
        slide = assuming(slide, self.assume_mpp)
        resolution = asked(slide, self.resolution)
        level, kernel = chosen_level(slide, resolution, self.tolerance), self.kernel
        if kernel.width > level.size.width or kernel.height > level.size.height:
            raise ConfigError(
                f"{slide.ref.uri}, level {level.index}: kernel size {kernel} is beyond the level's "
                f"size {level.size}; choose a smaller one or a finer level"
            )
        weights = self._weights(slide)
        if weights is None:
            drawn = _anywhere(self._uniform(slide, 2), level.size, kernel)
        else:
            drawn = _weighted(self._uniform(slide, 3), level.size, kernel, weights, slide)
        config = {
            "type": "random-patches",
            "count": self.count,
            "kernel_size": list(kernel),
            "level": level.index,
            "seed": self.seed,
            "weights": None if weights is None else _digest(weights),
            "factor": [*level.factor],
        }
        if isinstance(resolution, Microns):
            config |= {"mpp": resolution.mpp, "tolerance": self.tolerance}
        if self.assume_mpp is not None:
            config["assume_mpp"] = self.assume_mpp
        return PatchPlan(slide, level, kernel, drawn, config)

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The windows of each region, one by one, as views of its pixels."""
        async for chunk in bigchunks:
            region = chunk.region
            for index in range(region.first, region.first + region.count):
                box = plan.place(index).box
                at = box.shifted(-region.box.x, -region.box.y)
                pixels = chunk.pixels[None, at.y : at.bottom, at.x : at.right]
                valid = all(damage.box.intersection(box).empty for damage in chunk.damage)
                yield SmallChunks(index, pixels, np.array([valid]), chunk)

    def _weights(self, slide: Slide) -> _Floats | None:
        weights = self.weights
        if isinstance(weights, MaskSource):
            raise ContractBroken(
                f"{type(weights).__name__} must be prepared with the slide's reader"
            )
        if isinstance(weights, Mask):
            return _shares(weights, slide.level(0).size)
        made = weights(slide) if callable(weights) else weights
        return None if made is None else _checked(made, f"{slide.ref.uri}: the weights")

    def _uniform(self, slide: Slide, columns: int) -> _Floats:
        """Numbers in [0, 1), ``(columns, count)``, of the seed and the slide's id."""
        digest = hashlib.sha256(slide.ref.id.encode()).digest()
        entropy = [self.seed, *np.frombuffer(digest, "<u4").tolist()]
        bits = np.random.PCG64(np.random.SeedSequence(entropy))
        raw = np.asarray(bits.random_raw((self.count, columns))).T
        uniform: _Floats = (raw >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)
        return uniform


def _anywhere(uniform: _Floats, size: Size, kernel: Size) -> Corners:
    room = np.array([[size.width - kernel.width + 1], [size.height - kernel.height + 1]])
    return np.ascontiguousarray((uniform * room).astype(np.int64).T)


def _weighted(
    uniform: _Floats, size: Size, kernel: Size, weights: _Floats, slide: Slide
) -> Corners:
    rows, columns = weights.shape
    lefts = _first_places(size.width, kernel.width, columns)
    tops = _first_places(size.height, kernel.height, rows)
    across, down = np.diff(lefts), np.diff(tops)
    cells = np.cumsum(weights * down[:, None] * across[None, :])
    if not cells[-1] > 0:
        raise ConfigError(
            f"{slide.ref.uri}: the weights are zero wherever a window of {kernel} fits; leave the "
            "slide out, or give it other weights"
        )
    # The first cell whose sum exceeds the number: never one without weight, not even where the
    # product is rounded up to the whole sum.
    last = np.searchsorted(cells, cells[-1], "left")
    cell = np.minimum(np.searchsorted(cells, uniform[0] * cells[-1], "right"), last)
    row, column = np.divmod(cell, columns)
    x = lefts[column] + (uniform[1] * across[column]).astype(np.int64)
    y = tops[row] + (uniform[2] * down[row]).astype(np.int64)
    return np.stack([x, y], axis=1)


def _first_places(size: int, kernel: int, cells: int) -> npt.NDArray[np.int64]:
    """For each cell of an axis the first place whose window has its centre there; and the end.

    Pixel p lies in cell ``p · cells // size``.
    """
    begins = -(-np.arange(cells + 1, dtype=np.int64) * size // cells)
    return (begins - kernel // 2).clip(0, size - kernel + 1)


def _checked(weights: Any, whose: str) -> _Floats:
    array = np.array(weights, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ConfigError(f"{whose} have the shape {array.shape}; they must be (rows, columns)")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ConfigError(f"{whose} must be finite numbers, none below zero")
    array.flags.writeable = False
    return array


def _is_mask(weights: object) -> TypeGuard[Mask | MaskSource]:
    return isinstance(weights, Mask | MaskSource)


def _shares(mask: Mask, base: Size) -> _Floats:
    """The share that a mask has of each cell of a grid over the slide."""
    cell = max(1.0, max(base) / _CELLS)
    columns, rows = round(base.width / cell) or 1, round(base.height / cell) or 1
    lefts, tops = (
        np.linspace(0, extent, count + 1)
        for extent, count in ((base.width, columns), (base.height, rows))
    )
    shares = [
        mask.shares(base, top, bottom, lefts[:-1], lefts[1:])
        for top, bottom in pairwise(tops.tolist())
    ]
    return np.stack(shares).clip(0, 1)


def _digest(weights: _Floats) -> str:
    return hashlib.sha256(f"{weights.shape}".encode() + weights.tobytes()).hexdigest()[:16]
