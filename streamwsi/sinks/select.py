"""Select: one of a processor's several outputs for a sink.

::

    Pipeline(
        ...,
        processor=TorchModule(model, output=("logits", "features")),
        sink=Tee(
            Select(HeatmapZarr("out"), "logits"),
            Select(FeaturesHdf5("out"), "features"),
        ),
    )

The sink sees the values and the recipe that it would see if its output were the only one: what
it writes has the very bytes of a run with ``output="features"`` alone, and either run completes
what the other began.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..chunks import Pieces, Plan, Receipt
from ..errors import ConfigError, ContractBroken, StageMismatch
from ..slides import SlideRef
from ..stages import HoldsOutput, Recipe, Sink, SlideWriter
from ..values import ValueType

__all__ = ["Select"]


@dataclass(frozen=True, slots=True)
class Select:
    """A sink that is given one output of several.

    Attributes:
        sink: writes it.
        output: the output's name, or its number where it has none.
    """

    sink: Sink[Any] = field(metadata={"role": "sink"})
    output: str | int

    @property
    def config(self) -> Mapping[str, Any]:
        """The sink's own; the choice is part of the recipe's processor."""
        return self.sink.config

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The sink's paths."""
        return self.sink.outputs(slide)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        return self.sink.memory(plan, self._of(values)) if isinstance(self.sink, HoldsOutput) else 0

    def _of(self, values: ValueType | None) -> ValueType | None:
        return None if values is None else values.field(str(self.output))

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[SlideWriter[Any]]:
        """The output of one slide.

        Raises:
            StageMismatch: the processor gives no several outputs.
            ConfigError: it has no such output; or what the sink raises.
        """
        several, name = recipe.processor.get("outputs"), str(self.output)
        if not isinstance(several, Mapping):
            raise StageMismatch(
                f"Select({type(self.sink).__name__}(…), {self.output!r}) chooses one of several "
                "outputs, and the processor gives one: name them there, as in "
                "TorchModule(model, output=(…, …)), or leave out Select"
            )
        if name not in several:
            raise ConfigError(
                f"the processor gives no output {name!r}; it gives {', '.join(several)}"
            )
        own = replace(
            recipe,
            processor=several[name],
            sink=self.sink.config,
            values=self._of(recipe.values),
        )
        async with self.sink.open(plan, own, overwrite=overwrite) as writer:
            yield _Writer(writer, name)


class _Writer:
    def __init__(self, writer: SlideWriter[Any], name: str) -> None:
        self._writer = writer
        self._name = name

    @property
    def resume_at(self) -> int:
        """The sink's."""
        return self._writer.resume_at

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        """Have the sink write the pieces' one output."""
        async with aclosing(self._selected(pieces)) as selected:
            return await self._writer.write(selected)

    async def _selected(
        self, pieces: AsyncIterator[Pieces[Any]]
    ) -> AsyncGenerator[Pieces[Any], None]:
        async for some in pieces:
            values = some.values
            if not isinstance(values, np.ndarray) or self._name not in (values.dtype.names or ()):
                raise ContractBroken(f"the processor gave pieces without the output {self._name}")
            yield Pieces(some.places, values[self._name], some.valid)
