"""Boxes and grids of windows: integers only, no numpy, no I/O.

x points right and y down; boxes are half-open and count pixels of exactly one level. A
`Grid` has the meaning of ``torch.nn.Conv2d`` without padding: windows start at multiples of
the stride while they fit, ``floor((size - kernel) / stride) + 1`` per axis. A grid that pads
goes on over the level's edge: its cells, a stride wide each, cover the level,
``ceil(size / stride)`` per axis, and windows reach beyond it to the right and below (and, where
the grid's origin is moved, to the left and above).

A level wider than a reader can hold is walked in *panels*: ranges of columns of windows,
each walked from top to bottom before the next. Windows are numbered in that order: by panel,
then by row, then by column. With one panel (the usual case) this is plain row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import index
from typing import Literal, NamedTuple

from .errors import ConfigError

__all__ = ["Box", "Grid", "Run", "Size", "tiled_extent"]


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
        return replace(self, x=self.x + dx, y=self.y + dy)

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
        origin: x and y of the first window.
        pad: what lies beyond the level's edge, where windows reach over it: ``"white"``, or
            ``"reflect"``: the level mirrored at the centres of its outermost pixels. None: no
            window does.

    Raises:
        ConfigError: a kernel or stride is below 1 or beyond the level, or the origin leaves
            no window.
    """

    size: Size
    kernel: Size
    stride: Size
    panel: int = 0
    origin: tuple[int, int] = (0, 0)
    pad: Literal["white", "reflect"] | None = None

    def __post_init__(self) -> None:
        for name, value in (("kernel size", self.kernel), ("stride", self.stride)):
            if min(value) < 1:
                raise ConfigError(f"{name} {value} must be at least 1 in both axes")
            if self.pad is not None:
                continue
            if value.width > self.size.width or value.height > self.size.height:
                raise ConfigError(
                    f"{name} {value} is beyond the level's size {self.size}; "
                    "choose a smaller one or a finer level"
                )
        if self.pad is None and min(self.origin) < 0:
            raise ConfigError(f"windows from {self.origin} on begin outside the level; pad it")
        if self.rows < 1 or self.columns < 1:
            raise ConfigError(
                f"no window of {self.kernel} fits the level's size {self.size} from "
                f"x {self.origin[0]}, y {self.origin[1]} on; choose another offset or a smaller "
                "stride"
            )
        if self.panel == 0:
            object.__setattr__(self, "panel", self.columns)

    @classmethod
    def covering(
        cls,
        size: Size,
        kernel: Size,
        stride: Size,
        offset: tuple[int, int],
        pad: Literal["white", "reflect"],
    ) -> Grid:
        """The grid that pads and has a window at `offset`: its cells cover the level.

        A window that would lie outside altogether (kernels smaller than the stride) is not
        in it.
        """
        x = _first_start(kernel.width, stride.width, offset[0])
        y = _first_start(kernel.height, stride.height, offset[1])
        return cls(size, kernel, stride, 0, (x, y), pad)

    @property
    def columns(self) -> int:
        """Windows per row."""
        return self._count(0)

    @property
    def rows(self) -> int:
        """Windows per column."""
        return self._count(1)

    def _count(self, axis: int) -> int:
        room, stride = self.size[axis] - self.origin[axis], self.stride[axis]
        if self.pad is not None:
            return -(-room // stride)
        return (room - self.kernel[axis]) // stride + 1

    @property
    def count(self) -> int:
        """All windows."""
        return self.rows * self.columns

    def box(self, row: int, column: int) -> Box:
        """The window at a cell of the grid."""
        x, y = self.origin
        return Box(x + column * self.stride.width, y + row * self.stride.height, *self.kernel)

    def cover(self, row: int, column: int, rows: int, columns: int) -> Box:
        """The pixels of the level that ``rows × columns`` windows from a cell on are made of.

        The smallest box around them; of a grid that pads, the part of it inside the level, and
        what is mirrored into the rest.
        """
        first, last = self.box(row, column), self.box(row + rows - 1, column + columns - 1)
        left, right = self._inside(0, first.x, last.right)
        top, bottom = self._inside(1, first.y, last.bottom)
        return Box.between(left, top, right, bottom)

    def _inside(self, axis: int, begin: int, end: int) -> tuple[int, int]:
        size = self.size[axis]
        low, high = max(0, begin), min(size, end)
        if self.pad == "reflect":
            # Pixel size - 1 + i is pixel size - 1 - i, and pixel -i is pixel i.
            low = max(0, min(low, 2 * size - 1 - end)) if end > size else low
            high = min(size, max(high, 1 - begin)) if begin < 0 else high
        return low, high

    def within(self, row: int) -> range:
        """The columns of a row whose windows lie inside the level."""
        y, (width, height) = self.box(row, 0).y, self.size
        if y < 0 or y + self.kernel.height > height:
            return range(0)
        x, stride = self.origin[0], self.stride.width
        return range(max(0, -(x // stride)), (width - self.kernel.width - x) // stride + 1)

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


def _first_start(kernel: int, stride: int, offset: int) -> int:
    """Where the first window of an axis begins: at or before 0, unless it would end there."""
    start = -(-offset % max(1, stride))
    return start if start + kernel > 0 else start + stride
