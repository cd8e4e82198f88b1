"""What travels along a lane.

``Region ▶ BigChunk ▶ SmallChunks ▶ Batch ▶ Pieces ▶ Receipt``

Pixels are arrays ``(height, width, channels)``, read-only, on loan from the reader: a
`BigChunk` is a view of the reader's memory, the windows of a `SmallChunks` are strided views
of that, and a `Batch` refers to the same views. The one copy on the way is the one that the
processor makes into its own buffer (`Batch.gather`). Who keeps a view beyond the step that
handed it out calls `BigChunk.retain` and, when done, `BigChunk.release`.

Windows are handled many at a time: `Places` is a lazy sequence of `Placement`, so that a slide
of a million windows has no list of a million objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from .errors import ContractBroken
from .geometry import Box, Grid, Run
from .slides import PyramidLevel, Slide, SlideRef

__all__ = [
    "Batch",
    "BigChunk",
    "Damage",
    "Pieces",
    "Pixels",
    "Placement",
    "Places",
    "Plan",
    "ProcessedPiece",
    "Receipt",
    "Region",
    "SmallChunks",
]

Pixels = npt.NDArray[Any]
V = TypeVar("V", covariant=True)


@dataclass(frozen=True, slots=True)
class Region:
    """One read: a box of a level that holds the windows ``first … first + count - 1`` whole.

    Attributes:
        index: tells the reads of a plan apart; rises.
        level: index of the pyramid level.
        box: in pixels of that level.
        first: number of the first window.
        count: how many windows.
        wanted: boxes of the level that hold all pixels of the windows; what else lies in `box`
            need not be read, and its pixels mean nothing. None means all of it.
    """

    index: int
    level: int
    box: Box
    first: int
    count: int
    wanted: tuple[Box, ...] | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a window lies.

    Attributes:
        slide: whose window it is.
        level: index of the pyramid level.
        box: in pixels of that level.
        index: number of the window, 0 … n-1 without gaps, in the order of the lane.
    """

    slide: SlideRef
    level: int
    box: Box
    index: int


class Plan(Protocol):
    """What a sampler promises before any pixel is read.

    The same slide and the same sampler give the same plan, whatever the limits.
    """

    @property
    def slide(self) -> Slide: ...
    @property
    def level(self) -> PyramidLevel:
        """The level that is read."""

    @property
    def count(self) -> int:
        """How many windows there are."""

    @property
    def grid(self) -> Grid | None:
        """The grid that the windows lie on, where there is one."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The sampler's configuration, JSON-able: what identifies the plan besides the slide."""

    def place(self, index: int) -> Placement:
        """Where a window lies."""

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """The windows ``start … stop - 1`` as runs of cells of the grid.

        Raises:
            ContractBroken: the plan has no grid.
        """

    def regions(self, start: int = 0) -> Iterator[Region]:
        """The reads, lazily, from the first one that holds window `start` or a later one."""


@dataclass(frozen=True, slots=True)
class Places(Sequence[Placement]):
    """The placements of the windows ``start … stop - 1`` of a plan, made when asked for."""

    plan: Plan
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, item: int) -> Placement: ...
    @overload
    def __getitem__(self, item: slice) -> Places: ...
    def __getitem__(self, item: int | slice) -> Placement | Places:
        wanted = range(self.start, self.stop)[item]
        if isinstance(wanted, int):
            return self.plan.place(wanted)
        if wanted.step != 1:
            raise ValueError("places are cut in steps of 1 only")
        return Places(self.plan, wanted.start, max(wanted.start, wanted.stop))

    def runs(self) -> Iterator[Run]:
        """The windows as runs of grid cells."""
        return self.plan.runs(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Damage:
    """Pixels that could not be had.

    Attributes:
        level: index of the pyramid level.
        tile: number of the tile in the level's row-major order; -1 where there are no tiles.
        box: the pixels, in the level.
        reason: one clause, such as ``"JPEG data end early"``.
    """

    level: int
    tile: int
    box: Box
    reason: str


def _nothing() -> None:
    """The lease of a chunk that owns its pixels."""


@dataclass(slots=True, eq=False)
class BigChunk:
    """The pixels of a region, on loan.

    Attributes:
        region: what was asked for.
        pixels: ``(height, width, channels)``, read-only.
        damage: the pixels in it that are not valid (their values mean nothing).
        on_release: called once, when nobody holds the chunk any more.
        filled: damage that was painted over in a colour; these pixels are valid.
        lasting: whether the reader gives the next chunk while this one is held, and none of those
            before it is. Otherwise it may wait for the memory.
    """

    region: Region
    pixels: Pixels
    damage: tuple[Damage, ...] = ()
    on_release: Callable[[], None] = _nothing
    filled: tuple[Damage, ...] = ()
    lasting: bool = False
    _holders: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        box = self.region.box
        if self.pixels.shape[:2] != (box.height, box.width) or self.pixels.ndim != 3:
            raise ContractBroken(
                f"a source returned pixels of shape {self.pixels.shape} for a region of "
                f"{box.height}×{box.width} (height × width)"
            )

    @property
    def released(self) -> bool:
        """Whether nobody holds it any more."""
        return self._holders == 0

    def retain(self) -> None:
        """Keep the pixels valid until one more `release`."""
        if self._holders == 0:
            raise ContractBroken("a big chunk was retained after its release")
        self._holders += 1

    def release(self) -> None:
        """Give the pixels back; call it once for each holder."""
        if self._holders == 0:
            raise ContractBroken("a big chunk was released more often than it was held")
        self._holders -= 1
        if self._holders == 0:
            self.on_release()


@dataclass(slots=True, eq=False)
class SmallChunks:
    """Consecutive windows as one strided view, valid until the next ones are asked for.

    Attributes:
        first: number of the first window.
        pixels: ``(n, height, width, channels)``, read-only.
        valid: ``(n,)`` bool: whether all pixels of the window are valid.
        chunk: the big chunk that lends the pixels; None where the sampler owns them.
    """

    first: int
    pixels: Pixels
    valid: npt.NDArray[np.bool_]
    chunk: BigChunk | None = None

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(slots=True, eq=False)
class Batch:
    """Consecutive windows for one call of the model, valid until the next batch is asked for.

    A processor that works on several batches at once calls `keep` before it asks for the next
    one, and `release` as soon as it has copied the windows.

    Attributes:
        places: where the windows lie.
        parts: arrays ``(n_i, height, width, channels)`` that make up the batch, in order.
        valid: ``(n,)`` bool: whether all pixels of the window are valid.
        chunks: the big chunks that lend the pixels.
    """

    places: Places
    parts: tuple[Pixels, ...]
    valid: npt.NDArray[np.bool_]
    chunks: tuple[BigChunk, ...] = ()

    def keep(self) -> None:
        """Keep the pixels valid until one more `release`."""
        for chunk in self.chunks:
            chunk.retain()

    def release(self) -> None:
        """Give the pixels back; to be called in the event loop, once for each holder."""
        for chunk in self.chunks:
            chunk.release()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, height, width, channels)``."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The pixels' dtype."""
        return self.parts[0].dtype

    def gather(self, out: Pixels) -> Pixels:
        """Copy the windows into `out`, ``(n, height, width, channels)``, and return it."""
        done = 0
        for part in self.parts:
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def cuts(self, size: int) -> Iterator[Batch]:
        """The batch in pieces of at most `size` windows, over the same pixels.

        None is of a single window where that can be helped: some models drop an axis then.
        """
        ends = [*range(size, len(self), size), len(self)]
        if size > 2 and len(ends) > 1 and ends[-1] - ends[-2] == 1:
            ends[-2] -= 1
        for begin, end in pairwise((0, *ends)):
            parts, at = [], 0
            for part in self.parts:
                cut = part[max(0, begin - at) : max(0, end - at)]
                if len(cut):
                    parts.append(cut)
                at += len(part)
            yield Batch(self.places[begin:end], tuple(parts), self.valid[begin:end], self.chunks)

    @property
    def pixels(self) -> Pixels:
        """The windows as one array ``(n, height, width, channels)`` (a copy of the caller's)."""
        return self.gather(np.empty(self.shape, self.dtype))


@dataclass(frozen=True, slots=True)
class ProcessedPiece(Generic[V]):
    """What became of one window; it carries no pixels.

    Attributes:
        place: where the window lies.
        value: what the processor returned for it.
        valid: False where the window touched pixels that could not be had.
    """

    place: Placement
    value: V
    valid: bool = True


@dataclass(slots=True, eq=False)
class Pieces(Generic[V]):
    """What became of a batch, as it travels; iterating gives a `ProcessedPiece` a window.

    Attributes:
        places: where the windows lie.
        values: one value a window: for arrays one array ``(n, …)``, for several outputs one of
            records ``(n,)``, with an output in each field.
        valid: ``(n,)`` bool: False where the window touched pixels that could not be had; its
            value is then NaN (arrays) or what the processor made of the rest.
    """

    places: Places
    values: Sequence[V] | npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not len(self.places) == len(self.values) == len(self.valid):
            raise ContractBroken(
                f"a processor returned {len(self.values)} values for {len(self.places)} windows"
            )

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[ProcessedPiece[V]]:
        for place, value, valid in zip(self.places, self.values, self.valid, strict=True):
            yield ProcessedPiece(place, value, bool(valid))

    def since(self, index: int) -> Pieces[V]:
        """The pieces from the window with that number on (all of them where it is earlier)."""
        skip = min(max(0, index - self.places.start), len(self))
        if skip == 0:
            return self
        return Pieces(self.places[skip:], self.values[skip:], self.valid[skip:])


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a sink has written for a slide.

    Attributes:
        slide: the slide's id.
        pieces: pieces written by this run.
        outputs: the files and folders that now hold the result.
        invalid: pieces that are NaN because of damaged pixels.
    """

    slide: str
    pieces: int
    outputs: tuple[str, ...]
    invalid: int = 0
