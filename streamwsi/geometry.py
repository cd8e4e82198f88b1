"""Grids of windows, and the boxes that they are made of (`streamwsi.boxes`): integers only, no
numpy, no I/O.

A `Grid` has the meaning of ``torch.nn.Conv2d`` without padding: windows start at multiples of
the stride while they fit, ``floor((size - kernel) / stride) + 1`` per axis. A grid that pads
goes on over the level's edge: its cells, a stride wide each, cover the level,
``ceil(size / stride)`` per axis, and windows reach beyond it to the right and below (and, where
the grid's origin is moved, to the left and above).

A grid that *shifts* covers the level without reaching beyond it: the last window of each axis is
moved back until it ends where the level does, ``ceil((size - kernel) / stride) + 1`` per axis.
So that windows see the level's own borders, as a model that is applied to the whole level does.

A level wider than a reader can hold is walked in *panels*: ranges of columns of windows,
each walked from top to bottom before the next. Windows are numbered in that order: by panel,
then by row, then by column. With one panel (the usual case) this is plain row-major order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .boxes import Box, Size, tiled_extent
from .errors import ConfigError

__all__ = ["Box", "Grid", "Run", "Size", "tiled_extent"]


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
        shift: None: every window lies where the stride puts it. A number: the grid shifts, and
            the level is taken to end at its last multiple of that number.
        last: x and y of the last window; the window at (row, column) lies at
            ``min(origin + (column, row) · stride, last)``.

    Raises:
        ConfigError: a kernel or stride is below 1 or beyond the level, or the origin leaves
            no window; or a grid that shifts cannot cover the level.
    """

    size: Size
    kernel: Size
    stride: Size
    panel: int = 0
    origin: tuple[int, int] = (0, 0)
    pad: Literal["white", "reflect"] | None = None
    shift: int | None = None
    last: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_sizes()
        if self.shift is not None:
            self._check_shift(self.shift)
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
        object.__setattr__(self, "last", (self._last(0), self._last(1)))

    def _check_sizes(self) -> None:
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

    def _check_shift(self, unit: int) -> None:
        if unit < 1 or any(n % unit for n in (*self.kernel, *self.stride)):
            raise ConfigError(
                f"kernel size {self.kernel} and stride {self.stride} must be multiples of {unit}"
            )
        if self.pad is not None or any(self.origin):
            raise ConfigError("a grid that shifts begins at the level's corner and does not pad")
        if self.stride.width > self.kernel.width or self.stride.height > self.kernel.height:
            raise ConfigError(
                f"windows of {self.kernel} that lie {self.stride} apart do not cover the level; "
                "choose a stride that is at most the kernel size"
            )

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
        if self.shift is not None:
            return -(-self._end(axis) // stride) + 1
        return (room - self.kernel[axis]) // stride + 1

    def _end(self, axis: int) -> int:
        """Where the last window of a grid that shifts begins."""
        return self.size[axis] // (self.shift or 1) * (self.shift or 1) - self.kernel[axis]

    def _last(self, axis: int) -> int:
        last = self.origin[axis] + (self._count(axis) - 1) * self.stride[axis]
        return last if self.shift is None else min(last, self._end(axis))

    @property
    def regular(self) -> bool:
        """Whether all neighbours lie a stride apart: no window was moved."""
        return self.shift is None or not any(self._end(i) % self.stride[i] for i in (0, 1))

    @property
    def count(self) -> int:
        """All windows."""
        return self.rows * self.columns

    def box(self, row: int, column: int) -> Box:
        """The window at a cell of the grid."""
        x = min(self.origin[0] + column * self.stride.width, self.last[0])
        y = min(self.origin[1] + row * self.stride.height, self.last[1])
        return Box(x, y, *self.kernel)

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
