"""Mixing: single windows of several slides, in turn and through a shuffle buffer.

Nothing here depends on timing: windows are taken from the slots in turn, whichever is ready
first, and a slot's error counts when its turn comes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import anyio
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream

from .chunks import Pixels, Placement
from .errors import StageMismatch
from .slides import Slide

__all__ = ["ShuffleBuffer", "Window", "in_turn"]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One window under way.

    Attributes:
        pixels: ``(height, width, channels)``, a copy.
        place: where it lies.
        slide: whose it is.
    """

    pixels: Pixels
    place: Placement
    slide: Slide


async def in_turn(
    slots: list[MemoryObjectReceiveStream[Window | Exception]],
) -> AsyncGenerator[Window, None]:
    """A window of each slot in turn, until all slots are at their ends.

    Raises:
        Exception: what a slot sent instead of a window.
        StageMismatch: a window is of another shape or dtype than the first.
    """
    going, first = [*slots], None
    while going:
        for slot in [*going]:
            try:
                item = await slot.receive()
            except anyio.EndOfStream:
                going.remove(slot)
                continue
            if isinstance(item, Exception):
                raise item
            first = first or item
            _check_alike(first, item)
            yield item


def _check_alike(first: Window, other: Window) -> None:
    a, b = first.pixels, other.pixels
    if a.shape != b.shape or a.dtype != b.dtype:
        raise StageMismatch(
            f"windows of {other.slide.ref.uri} are {b.shape} {b.dtype}, those of "
            f"{first.slide.ref.uri} are {a.shape} {a.dtype}; one stream needs windows alike"
        )


@dataclass(slots=True, eq=False)
class ShuffleBuffer:
    """Windows that wait for a random moment.

    Attributes:
        size: how many it holds; 1 keeps the order.
        random: decides; it is asked once per window and once at the end.
    """

    size: int
    random: np.random.Generator
    _held: list[Window] = field(default_factory=list)

    def exchange(self, window: Window) -> Window | None:
        """Take one in and, where the buffer is full, give a random one out for it."""
        if len(self._held) < self.size:
            self._held.append(window)
            return None
        at = int(self.random.integers(self.size))
        given, self._held[at] = self._held[at], window
        return given

    def rest(self) -> list[Window]:
        """All that are held, in random order; the buffer is empty then."""
        rest = [self._held[i] for i in self.random.permutation(len(self._held))]
        self._held.clear()
        return rest
