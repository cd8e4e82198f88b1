"""Sinks that write no file: all values of a slide, or one value made of them.

For notebooks, tests and whatever goes on in the same program::

    sink = MemorySink()
    run_sync(Pipeline(..., sink=sink), ["a.svs"]).raise_for_failures()
    sink.values["a"]          # (n, channels)

    areas = FoldSink(0, lambda sum, piece: sum + (piece.value > 0.5))

`MemorySink` takes memory that grows with the slide; `FoldSink` does not, as long as what it
accumulates does not. A slide's result appears when the slide is complete; there is nothing to
resume, so that every run computes all of it.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..chunks import Pieces, Places, Plan, ProcessedPiece, Receipt
from ..errors import CannotWrite, ConfigError, ContractBroken, StageMismatch, StreamwsiError
from ..slides import SlideRef
from ..stages import Recipe, SlideWriter

__all__ = ["FoldSink", "MemorySink"]

A = TypeVar("A")


@dataclass(frozen=True, slots=True, eq=False)
class MemorySink:
    """Keeps all values in memory, by slide id; a slide that is run again replaces its own.

    Attributes:
        values: one array ``(n, …)``, or a list where the processor gives no arrays.
        places: where the windows lie, a lazy sequence of `Placement`.
        valid: ``(n,)`` bool: False where the window touched pixels that could not be had.
    """

    values: dict[str, npt.NDArray[Any] | list[Any]] = field(
        default_factory=dict, init=False, repr=False
    )
    places: dict[str, Places] = field(default_factory=dict, init=False, repr=False)
    valid: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False, repr=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """There is nothing to be configured."""
        return {"type": "memory"}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """None: nothing is written to a disk."""
        return ()

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[SlideWriter[Any]]:
        """Begin a slide; nothing is refused."""
        yield _Keeper(self, plan)


class _Keeper:
    resume_at = 0

    def __init__(self, sink: MemorySink, plan: Plan) -> None:
        self._sink = sink
        self._plan = plan
        self._values: npt.NDArray[Any] | list[Any] | None = None

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        """Keep the pieces.

        Raises:
            StageMismatch: the values change their shape or dtype on the way.
            ContractBroken: pieces are missing, or come out of order.
        """
        plan, sink = self._plan, self._sink
        valid = np.ones(plan.count, np.bool_)
        async for some in _complete(plan, pieces):
            valid[some.places.start : some.places.stop] = some.valid
            self._keep(some)
        slide = plan.slide.ref.id
        sink.values[slide] = [] if self._values is None else self._values
        sink.places[slide] = Places(plan, 0, plan.count)
        sink.valid[slide] = valid
        return Receipt(slide, plan.count, (), int(np.count_nonzero(~valid)))

    def _keep(self, some: Pieces[Any]) -> None:
        values = some.values
        kept = self._values
        if kept is None:
            kept = self._values = (
                np.empty((self._plan.count, *values.shape[1:]), values.dtype)
                if isinstance(values, np.ndarray)
                else []
            )
        if _kind(values) != _kind(kept):
            raise StageMismatch(
                f"the processor returned {_kind(kept)} per window, and {_kind(values)} from window "
                f"{some.places.start} on; all must be alike"
            )
        if isinstance(kept, list):
            kept.extend(values)
        else:
            kept[some.places.start : some.places.stop] = values


def _kind(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {values.shape[1:]}"
    return "an object"


@dataclass(frozen=True, slots=True, eq=False)
class FoldSink(Generic[A]):
    """Makes one value per slide, piece by piece in order.

    Attributes:
        initial: what a slide begins with: a value, of which each slide gets a deep copy, or a
            function without arguments (a class such as ``list`` is one).
        step: takes what there is so far and a `ProcessedPiece`, returns what there is then. It
            runs in a thread, and may keep the piece's value.
        results: the slides' last values, by slide id.

    Raises:
        ConfigError: `step` is not a function.
    """

    initial: A | Callable[[], A]
    step: Callable[[A, ProcessedPiece[Any]], A]
    results: dict[str, A] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.step):
            raise ConfigError(f"the step of a FoldSink must be a function, not {self.step!r}")

    @property
    def config(self) -> Mapping[str, Any]:
        """Nothing that a resume would have to know."""
        return {"type": "fold"}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """None: nothing is written to a disk."""
        return ()

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[SlideWriter[Any]]:
        """Begin a slide; nothing is refused."""
        yield _Folder(self, plan)

    def start(self) -> A:
        """What a slide begins with."""
        return self.initial() if callable(self.initial) else copy.deepcopy(self.initial)


class _Folder(Generic[A]):
    resume_at = 0

    def __init__(self, sink: FoldSink[A], plan: Plan) -> None:
        self._sink = sink
        self._plan = plan

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        """Fold the pieces.

        Raises:
            CannotWrite: the step failed.
            ContractBroken: pieces are missing, or come out of order.
        """
        slide = self._plan.slide.ref.id
        result, invalid = self._sink.start(), 0
        async for some in _complete(self._plan, pieces):
            result = await anyio.to_thread.run_sync(self._folded, result, some)
            invalid += int(np.count_nonzero(~some.valid))
        self._sink.results[slide] = result
        return Receipt(slide, self._plan.count, (), invalid)

    def _folded(self, result: A, some: Pieces[Any]) -> A:
        # The values are on loan, and a step may well put them into a list.
        for piece in Pieces(some.places, copy.copy(some.values), some.valid):
            try:
                result = self._sink.step(result, piece)
            except StreamwsiError:
                raise
            except Exception as error:
                raise CannotWrite(
                    f"the step of a FoldSink failed on window {piece.place.index} of "
                    f"{piece.place.slide.uri}: {type(error).__name__}: {error}"
                ) from error
        return result


async def _complete(
    plan: Plan, pieces: AsyncIterator[Pieces[Any]]
) -> AsyncGenerator[Pieces[Any], None]:
    """The pieces, if they are all there are, in order."""
    expected = 0
    async for some in pieces:
        if some.places.start != expected:
            raise ContractBroken(
                f"piece {some.places.start} of slide {plan.slide.ref.id} came where piece "
                f"{expected} was due"
            )
        expected = some.places.stop
        yield some
    if expected != plan.count:
        raise ContractBroken(
            f"the pieces of slide {plan.slide.ref.id} ended at {expected} of {plan.count}"
        )
