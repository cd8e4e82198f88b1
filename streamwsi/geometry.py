"""Boxes and grids of windows: integers only, no numpy, no I/O.

x points right and y down; boxes are half-open and count pixels of exactly one level. A
`Grid` has the meaning of ``torch.nn.Conv2d`` without padding: windows start at multiples of
the stride while they fit, ``floor((size - kernel) / stride) + 1`` per axis.

A level wider than a reader can hold is walked in *panels*: ranges of columns of windows,
each walked from top to bottom before the next. Windows are numbered in that order: by panel,
then by row, then by column. With one panel (the usual case) this is plain row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from .errors import ConfigError

__all__ = ["Box", "Grid", "Run", "Size"]


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"

    @classmethod
    def of(cls, value: int | tuple[int, int]) -> Size:
        """A square for an int; ``(width, height)`` for a pair."""
        return cls(value, value) if isinstance(value, int) else cls(*value)


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
        return replace(self, x=self.x + dx, y=self.y + dy)

    def snapped(self, tile: Size, size: Size) -> Box:
        """The smallest box of whole tiles around this one, cut at the level's `size`."""
        return Box.between(
            self.x // tile.width * tile.width,
            self.y // tile.height * tile.height,
            min(-(-self.right // tile.width) * tile.width, size.width),
            min(-(-self.bottom // tile.height) * tile.height, size.height),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """Windows ``(row, column) … (row, column + count - 1)``, numbered from `first`."""

    first: int
    row: int
    column: int
    count: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows of one level.

    Attributes:
        size: the level's size.
        kernel: a window's size.
        stride: the distance between windows, per axis.
        panel: columns of windows per panel; 0 means one panel.

    Raises:
        ConfigError: a kernel or stride is below 1 or beyond the level.
    """

    size: Size
    kernel: Size
    stride: Size
    panel: int = 0

    def __post_init__(self) -> None:
        for name, value in (("kernel size", self.kernel), ("stride", self.stride)):
            if min(value) < 1:
                raise ConfigError(f"{name} {value} must be at least 1 in both axes")
            if value.width > self.size.width or value.height > self.size.height:
                raise ConfigError(
                    f"{name} {value} is beyond the level's size {self.size}; "
                    "choose a smaller one or a finer level"
                )
        if self.panel == 0:
            object.__setattr__(self, "panel", self.columns)

    @property
    def columns(self) -> int:
        """Windows per row."""
        return (self.size.width - self.kernel.width) // self.stride.width + 1

    @property
    def rows(self) -> int:
        """Windows per column."""
        return (self.size.height - self.kernel.height) // self.stride.height + 1

    @property
    def count(self) -> int:
        """All windows."""
        return self.rows * self.columns

    def box(self, row: int, column: int) -> Box:
        """The window at a cell of the grid."""
        return Box(column * self.stride.width, row * self.stride.height, *self.kernel)

    def cover(self, row: int, column: int, rows: int, columns: int) -> Box:
        """The smallest box around ``rows × columns`` windows from a cell on."""
        first, last = self.box(row, column), self.box(row + rows - 1, column + columns - 1)
        return Box.between(first.x, first.y, last.right, last.bottom)

    def panel_at(self, column: int) -> tuple[int, int]:
        """First column and number of columns of the panel that holds `column`."""
        first = column // self.panel * self.panel
        return first, min(self.panel, self.columns - first)

    def cell(self, index: int) -> tuple[int, int]:
        """Row and column of the window with that number."""
        first, columns = self.panel_at(index // (self.rows * self.panel) * self.panel)
        row, column = divmod(index - first * self.rows, columns)
        return row, first + column

    def index(self, row: int, column: int) -> int:
        """The number of the window at a cell."""
        first, columns = self.panel_at(column)
        return first * self.rows + row * columns + column - first

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The windows ``start … stop - 1``, a run per row of a panel."""
        while start < stop:
            row, column = self.cell(start)
            first, columns = self.panel_at(column)
            count = min(stop - start, first + columns - column)
            yield Run(start, row, column, count)
            start += count
