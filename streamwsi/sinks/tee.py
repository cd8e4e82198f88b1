"""Tee: one pass over the slide, several outputs.

::

    Tee(HeatmapZarr("out"), Pdmcsv("out"))

Each sink writes in a task of its own. Pieces are dealt in lock-step, through links that hold
one: all writers get a batch, and the next is asked for when all are done with it, for a batch is
on loan until then. A link that ends without its FINISHED mark is broken, not finished: no writer
takes half a slide for a whole one.

An output has the very bytes that its sink would write alone: each sink sees a recipe with its
own configuration, so that what a Tee began may be completed without it, and the other way
round. A writer that is further than the others gets no piece that it has. One that fails ends
the slide with its error; the others are cancelled, and keep what they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import (
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import anyio

from ..chunks import Pieces, Plan, Receipt
from ..errors import ConfigError, ContractBroken
from ..slides import SlideRef
from ..stages import HoldsOutput, Recipe, Sink, SlideWriter
from ..values import ValueType

__all__ = ["Tee"]

T = TypeVar("T")
V = TypeVar("V", contravariant=True)


@dataclass(frozen=True, slots=True, init=False)
class Tee(Generic[V]):
    """Writes to several sinks at once.

    Attributes:
        sinks: whose outputs must differ.

    Raises:
        ConfigError: no sink is given.
    """

    sinks: tuple[Sink[V], ...] = field(metadata={"role": "sink", "several": "list"})

    def __init__(self, *sinks: Sink[V]) -> None:
        if not sinks:
            raise ConfigError("Tee needs at least one sink")
        object.__setattr__(self, "sinks", sinks)

    def __repr__(self) -> str:
        return f"Tee({', '.join(map(repr, self.sinks))})"

    @property
    def config(self) -> Mapping[str, Any]:
        """The sinks' configurations."""
        return {"type": "tee", "sinks": [dict(sink.config) for sink in self.sinks]}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The paths of all sinks."""
        return tuple(path for sink in self.sinks for path in sink.outputs(slide))

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        return sum(
            sink.memory(plan, values) for sink in self.sinks if isinstance(sink, HoldsOutput)
        )

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[SlideWriter[V]]:
        """The outputs of one slide.

        Raises:
            ConfigError: two sinks would write the same output, or one may not write its own.
            PlanChanged: an output was begun by another plan.
            CannotWrite: an output cannot be created.
        """
        for path, count in Counter(self.outputs(plan.slide.ref)).items():
            if count > 1:
                raise ConfigError(
                    f"{count} sinks of a Tee would write {path}; give them different folders"
                )
        async with AsyncExitStack() as stack:
            writers = [
                await stack.enter_async_context(
                    sink.open(plan, replace(recipe, sink=sink.config), overwrite=overwrite)
                )
                for sink in self.sinks
            ]
            yield _Writer(plan, writers)


class _Writer(Generic[V]):
    def __init__(self, plan: Plan, writers: Sequence[SlideWriter[V]]) -> None:
        self._plan = plan
        self._writers = writers

    @property
    def resume_at(self) -> int:
        """The first piece that any of the writers needs."""
        return min(writer.resume_at for writer in self._writers)

    async def write(self, pieces: AsyncIterator[Pieces[V]]) -> Receipt:
        """Have all writers write the pieces.

        Raises:
            StreamwsiError: what the first writer that failed raised.
        """
        with ExitStack() as stack:
            branches = [stack.enter_context(closing(_Branch(w))) for w in self._writers]
            await _write(pieces, branches)
        receipts = [branch.receipt for branch in branches if branch.receipt is not None]
        return Receipt(
            self._plan.slide.ref.id,
            max(receipt.pieces for receipt in receipts),
            tuple(path for receipt in receipts for path in receipt.outputs),
            max(receipt.invalid for receipt in receipts),
        )


async def _write(pieces: AsyncIterator[Pieces[T]], branches: Sequence[_Branch[T]]) -> None:
    failures: list[Exception] = []
    try:
        async with anyio.create_task_group() as tasks:
            for branch in branches:
                tasks.start_soon(branch.run, failures)
            with _noting(failures):
                await _deal(pieces, branches)
    except BaseExceptionGroup:
        if not failures:
            raise
        # The one that came first: the others are its echoes.
        raise failures[0] from failures[0].__cause__


async def _deal(pieces: AsyncIterator[Pieces[T]], branches: Sequence[_Branch[T]]) -> None:
    async for some in pieces:
        for branch in branches:
            await branch.give(some)
        for branch in branches:
            await branch.done()
    for branch in branches:
        await branch.finish()


@contextmanager
def _noting(failures: list[Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures.append(error)
        raise


#: The writer has failed, and says so itself.
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class _Finished:
    """The mark that is sent last."""


class _Branch(Generic[T]):
    """One writer and the link to it."""

    def __init__(self, writer: SlideWriter[T]) -> None:
        self.receipt: Receipt | None = None
        self._writer = writer
        self._start = writer.resume_at
        self._giver, self._taker = anyio.create_memory_object_stream[Pieces[T] | _Finished](1)
        self._teller, self._listener = anyio.create_memory_object_stream[None](1)
        self._given = False

    async def run(self, failures: list[Exception]) -> None:
        """Write all that is given."""
        with closing(self), _noting(failures):
            async with aclosing(self._pieces()) as pieces:
                self.receipt = await self._writer.write(pieces)
                async for some in pieces:
                    raise ContractBroken(
                        f"a sink of a Tee ended at piece {some.places.start}, before the others"
                    )

    def close(self) -> None:
        """Let nobody wait for this branch any more."""
        for stream in (self._giver, self._taker, self._teller, self._listener):
            stream.close()

    async def _pieces(self) -> AsyncGenerator[Pieces[T], None]:
        while True:
            try:
                some = await self._taker.receive()
            except anyio.EndOfStream as error:
                raise ContractBroken("the pieces ended without their mark") from error
            if isinstance(some, _Finished):
                return
            yield some
            self._teller.send_nowait(None)

    async def give(self, pieces: Pieces[T]) -> None:
        """Hand over what the writer still needs of some pieces."""
        needed = pieces.since(self._start)
        self._given = len(needed) > 0
        if self._given:
            with suppress(*_GONE):
                await self._giver.send(needed)

    async def done(self) -> None:
        """Wait until the writer is done with the pieces."""
        if self._given:
            with suppress(*_GONE):
                await self._listener.receive()

    async def finish(self) -> None:
        """Let the writer know that these were all."""
        with suppress(*_GONE):
            await self._giver.send(_Finished())
