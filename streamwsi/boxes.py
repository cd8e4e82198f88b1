"""Boxes and sizes: integers only, no numpy, no I/O.

x points right and y down; boxes are half-open and count pixels of exactly one level.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import NamedTuple

from .errors import ConfigError

__all__ = ["Box", "Size", "tiled_extent"]


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"

    @classmethod
    def of(cls, value: int | tuple[int, int]) -> Size:
        """A square for an int; ``(width, height)`` for a pair.

        Raises:
            ConfigError: it is neither.
        """
        pair = value if isinstance(value, tuple | list) else (value, value)
        try:
            width, height = map(index, pair)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{value!r} is not a size: give an integer, or two for width and height"
            ) from None
        return cls(width, height)


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle: columns ``x … x + width - 1``, rows ``y … y + height - 1``."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 0 or self.height < 0:
            raise ValueError(f"a box cannot have the size {self.width}×{self.height}")

    @property
    def right(self) -> int:
        """First column behind the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.y + self.height

    @property
    def empty(self) -> bool:
        """Whether the box holds no pixel."""
        return self.width == 0 or self.height == 0

    @classmethod
    def between(cls, x: int, y: int, right: int, bottom: int) -> Box:
        """The box from ``(x, y)`` to just before ``(right, bottom)``; empty where they cross."""
        return cls(x, y, max(0, right - x), max(0, bottom - y))

    def intersection(self, other: Box) -> Box:
        """The pixels that both boxes hold (an empty box where there are none)."""
        return Box.between(
            max(self.x, other.x),
            max(self.y, other.y),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )

    def contains(self, other: Box) -> bool:
        """Whether every pixel of `other` is in this box."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def shifted(self, dx: int, dy: int) -> Box:
        """The box moved by ``(dx, dy)``."""
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def snapped(self, tile: Size, size: Size) -> Box:
        """The smallest box of whole tiles around this one, cut at the level's `size`."""
        return Box.between(
            self.x // tile.width * tile.width,
            self.y // tile.height * tile.height,
            min(-(-self.right // tile.width) * tile.width, size.width),
            min(-(-self.bottom // tile.height) * tile.height, size.height),
        )


def tiled_extent(length: int, tile: int, size: int) -> int:
    """Pixels along an axis of the tiles that `length` pixels touch: the most, at any place.

    Args:
        length: at least 1.
        tile: a tile's size.
        size: the level's.
    """
    return min(size, (length + 2 * tile - 2) // tile * tile)
