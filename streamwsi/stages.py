"""The four stages, as protocols, and the rules they keep.

A stage is a frozen dataclass whose fields are its configuration: its repr is the recipe, it
compares, pickles and goes to TOML. What runs comes from ``open()``, an async context manager;
iteration is an async generator that opens nothing.

Rules, each tested by `streamwsi.testing.conformance`:

1. never yield inside a task group, cancel scope or lock: resources live in the context
   managers, iteration in the generators;
2. never block the loop: files, codecs and models run in `Workers` or in a thread;
3. keep order: placements go through every stage numbered 0 … n-1 without gaps;
4. ask for the next item only when done with the last: what was handed out is on loan until then;
5. never swallow cancellation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from .chunks import Batch, BigChunk, Damage, Pieces, Plan, Receipt, Region, SmallChunks
from .slides import Slide, SlideRef
from .values import ValueType
from .workers import Workers

__all__ = [
    "HoldsBuffers",
    "HoldsOutput",
    "LeavesTilesOut",
    "NeedsPixels",
    "Processor",
    "ReadTally",
    "Recipe",
    "RunningProcessor",
    "Sampler",
    "Sink",
    "SlideReader",
    "SlideWriter",
    "Source",
    "TellsValues",
]

V_co = TypeVar("V_co", covariant=True)
V_contra = TypeVar("V_contra", contravariant=True)


@dataclass(slots=True)
class ReadTally:
    """What a reader did, counted while it runs.

    Attributes:
        tiles_decoded: tiles decoded, each time counted.
        distinct_tiles: different tiles among them.
        damage: what could not be had, the first of them.
        damaged_tiles: how many tiles could not be had.
    """

    tiles_decoded: int = 0
    distinct_tiles: int = 0
    damage: list[Damage] = field(default_factory=list)
    damaged_tiles: int = 0

    @property
    def amplification(self) -> float:
        """Tiles decoded ÷ distinct tiles; 1.0 where nothing was decoded."""
        return self.tiles_decoded / self.distinct_tiles if self.distinct_tiles else 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a lane's output is made from besides the slide.

    The JSON-able configurations of the stages identify it. `values` does not: it follows from
    them.

    Attributes:
        values: what the processor gives per window, where it could say so beforehand.
    """

    sampler: Mapping[str, Any]
    processor: Mapping[str, Any]
    sink: Mapping[str, Any]
    source: Mapping[str, Any] = field(default_factory=dict)
    values: ValueType | None = None


class SlideReader(Protocol):
    """An opened slide; it owns every piece of memory that it hands out."""

    @property
    def slide(self) -> Slide: ...
    @property
    def tally(self) -> ReadTally: ...
    def needs(self, region: Region) -> int:
        """The least `memory` that `bigchunks` can work in, for regions of this size."""

    def bigchunks(self, regions: Iterator[Region], memory: int) -> AsyncGenerator[BigChunk, None]:
        """The pixels of the regions, in the order asked.

        Args:
            regions: what to read, taken lazily.
            memory: bytes that the chunks, in use and read ahead, may take together.

        Raises:
            ConfigError: not even one region fits in `memory`; raised before anything is read.
            CannotRead: the slide's pixels cannot be had at all.
        """


class Source(Protocol):
    """Opens slides.

    The pixels of a slide are what they are, whichever source reads them. A source that changes
    them has a property `config`, a JSON-able mapping, which becomes part of the recipe.
    """

    def accepts(self, ref: SlideRef) -> bool:
        """Whether this source is made for such a slide: cheap, decodes nothing, never raises."""

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        """A reader for the slide.

        Raises:
            CannotOpen: on entering, where the slide cannot be read.
        """


class Sampler(Protocol):
    """Decides which windows a slide gives, and cuts them."""

    def plan(self, slide: Slide) -> Plan:
        """The windows of a slide; pure: the same slide gives the same plan.

        Raises:
            ConfigError: the windows do not fit the slide.
            LevelNotFound: the slide lacks the level.
        """

    def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The windows of each big chunk, in order: all that its region promises."""


@runtime_checkable
class NeedsPixels(Protocol):
    """A sampler whose plan depends on what is on the slide, or in a file."""

    def needs_pixels(self, slide: SlideRef) -> bool:
        """Whether it has to be prepared for this slide; where not, its `plan` does at once."""

    async def prepare(self, reader: SlideReader, memory: int) -> Sampler:
        """The sampler for one slide, whose `plan` needs no pixels; the same slide gives the
        same one. A sampler that needs no pixels comes back as it is.

        Args:
            reader: the slide; nothing else reads through it.
            memory: bytes of pixels that it may take.

        Raises:
            ConfigError, SlideError: as `Sampler.plan`; or the slide cannot be read.
        """


@runtime_checkable
class LeavesTilesOut(Protocol):
    """A plan that does not need all tiles that its grid touches."""

    @property
    def tiles_saved(self) -> int:
        """How many tiles need not be decoded for it."""


class RunningProcessor(Protocol[V_co]):
    """A processor that is ready to run: its model is loaded and on its device.

    One that copies windows into buffers of its own is a `HoldsBuffers` too.
    """

    @property
    def batch_size(self) -> int:
        """Windows a batch holds (the last batch of a slide may hold fewer)."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the results, JSON-able: the model's content, normalisation, …

        One that gives several outputs says for each, in a mapping ``outputs``, what it would say
        if that were the only one.
        """

    def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[V_co], None]:
        """One `Pieces` a batch, in order. Several lanes may call this at the same time.

        Raises:
            CannotProcess: the model failed or returned something unusable.
        """


@runtime_checkable
class TellsValues(Protocol):
    """A running processor that can say what its values will be, before it is given windows."""

    def value_type(self, blank: Batch) -> ValueType | None:
        """What it gives per window; None where it cannot tell. Blocks: it may call a model.

        Args:
            blank: white windows of the size and dtype of those to come
                (`streamwsi.values.blank_batch`).

        Raises:
            CannotProcess: such windows cannot be processed.
        """


@runtime_checkable
class HoldsBuffers(Protocol):
    """A running processor that holds windows, values or a model in memory of its own."""

    def fit(self, plan: Plan, room: int) -> int:
        """Work on as many batches at a time as `room` holds, from now on, but on one at least.

        Args:
            plan: whose windows the batches are of.
            room: bytes.

        Returns:
            Bytes that it takes, for all slides together; more than `room` where one batch
            does. Blocks: it may call a model.
        """


@runtime_checkable
class HoldsOutput(Protocol):
    """A sink that holds values in memory until it stores them."""

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """Bytes that one open output takes at most.

        Args:
            plan: what goes into it.
            values: what a window gives, where that is known.
        """


class Processor(Protocol[V_co]):
    """Turns batches of windows into values."""

    def open(self, workers: Workers) -> AbstractAsyncContextManager[RunningProcessor[V_co]]:
        """Load what is needed; once per run, shared by all lanes.

        Raises:
            ConfigError: on entering, where the model cannot be had.
        """


class SlideWriter(Protocol[V_contra]):
    """The open output of one slide."""

    @property
    def resume_at(self) -> int:
        """Number of the first piece that is still needed: 0 for a fresh output, the plan's
        count for a finished one."""

    async def write(self, pieces: AsyncIterator[Pieces[V_contra]]) -> Receipt:
        """Write the pieces, which come in order from `resume_at` on, and complete the output.

        When it is left by an error or by cancellation, what was written stays valid.

        Raises:
            CannotWrite: the output cannot be written.
        """


@runtime_checkable
class Sink(Protocol[V_contra]):
    """Writes what became of a slide's windows.

    One that collects values before it stores them is a `HoldsOutput` too.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """The sink's configuration, JSON-able."""

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The paths that `open` would write to; asked before anything is read."""

    def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AbstractAsyncContextManager[SlideWriter[V_contra]]:
        """The output of one slide.

        Raises:
            ConfigError: on entering, where the output exists and may not be overwritten.
            PlanChanged: on entering, where the output was begun by another plan.
            CannotWrite: on entering, where the output cannot be created.
        """
