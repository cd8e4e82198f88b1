"""Masks: which part of a slide is of interest.

A `Mask` answers one question: of windows in a row, given in level-0 pixels, which share of
each one's area does it cover? What has to look at the slide or at a file first is a
`MaskSource`; it becomes a mask when a slide's reader is there.

A mask's `config` becomes part of an output's record: a digest of all that decides the answer,
so that an output begun under one mask is not completed under another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..geometry import Size
from ..stages import SlideReader

__all__ = ["ArrayMask", "Mask", "MaskSource"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@runtime_checkable
class Mask(Protocol):
    """A part of a slide."""

    @property
    def name(self) -> str:
        """What it is, for messages: ``"tissue found in the slide"``, a file's name."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies it, JSON-able."""

    def shares(
        self, base: Size, top: float, bottom: float, lefts: Floats, rights: Floats
    ) -> Floats:
        """The share of each window's area that lies on the mask, ``(n,)``, 0 … 1.

        Args:
            base: the size of level 0.
            top, bottom: the windows' edges, in level-0 pixels.
            lefts, rights: likewise, ``(n,)``.
        """


@runtime_checkable
class MaskSource(Protocol):
    """What becomes a mask when the slide is open."""

    async def prepare(self, reader: SlideReader, memory: int) -> Mask:
        """The mask for a slide.

        Args:
            reader: the slide; nothing else reads through it.
            memory: bytes of pixels that it may take.

        Raises:
            ConfigError: what it is to be made from cannot be used.
            SlideError: the slide's pixels cannot be had, or not be used for this.
        """


@dataclass(frozen=True, slots=True, eq=False)
class ArrayMask:
    """An array that covers the slide from edge to edge.

    Each element stands for a rectangle of the slide; areas are exact, so that windows that
    are smaller than an element, or lie across several, get their due.

    Attributes:
        pixels: ``(height, width)``, True where it is of interest.
        name: what it is, for messages.
        origin: further entries of the configuration.
        extent: level-0 pixels that it covers from the corner on, ``(width, height)``; the
            slide's size where None.

    Raises:
        ConfigError: the array does not have two axes, or is empty.
    """

    pixels: Bools
    name: str = "mask"
    origin: Mapping[str, Any] = field(default_factory=dict)
    extent: tuple[float, float] | None = None
    _digest: str = field(init=False, repr=False)
    toml_hint: ClassVar[str] = "save its pixels as a PNG and give FileMask(path)"

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.size == 0:
            raise ConfigError(
                f"the {self.name} has the shape {self.pixels.shape}; it must have a height and a "
                "width and nothing else"
            )
        object.__setattr__(self, "pixels", np.ascontiguousarray(self.pixels != 0))
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.packbits(self.pixels, axis=1).tobytes())
        object.__setattr__(self, "_digest", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrayMask) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self._digest)

    @property
    def config(self) -> Mapping[str, Any]:
        """Its origin, and a digest of what is in it."""
        height, width = self.pixels.shape
        extent = {"extent": [*self.extent]} if self.extent else {}
        size = {"size": [width, height], **extent}
        return {"kind": "array", **self.origin, **size, "sha256": self._digest}

    def shares(
        self, base: Size, top: float, bottom: float, lefts: Floats, rights: Floats
    ) -> Floats:
        """See `Mask`."""
        rows, columns = self.pixels.shape
        width, height = self.extent or base
        scale_x, scale_y = columns / width, rows / height
        # Windows may reach beyond the slide, and levels whose size was rounded up do.
        begin, end = max(0.0, top * scale_y), min(bottom * scale_y, rows)
        first, behind = int(begin), int(np.ceil(end))
        if end <= begin:
            return np.zeros(len(lefts))
        heights = self.pixels[first:behind].sum(axis=0, dtype=np.float64)
        heights -= (begin - first) * self.pixels[first]
        heights -= (behind - end) * self.pixels[behind - 1]
        area_left_of = np.zeros(columns + 1)
        np.cumsum(heights, out=area_left_of[1:])
        edges = np.arange(columns + 1)
        covered = np.interp(rights * scale_x, edges, area_left_of) - np.interp(
            lefts * scale_x, edges, area_left_of
        )
        shares: Floats = covered / ((rights - lefts) * scale_x * ((bottom - top) * scale_y))
        return shares
