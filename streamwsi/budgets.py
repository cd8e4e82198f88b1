"""Budgets: how the memory limit is divided among a lane's stages, before anything is read.

Every lane has the same share of the limit. Of it the sink takes what an open output needs, the
links what batches may hold in copies (where a batch reaches over the end of a big chunk, its
first part is copied) and the values on their way to the sink, and the reader gets the rest. The
processor's model and buffers serve all lanes; it may work on as many batches at a time as fit
half of what is left once each reader has its least, so that a large machine does not outgrow a
small limit by its number of threads.

What a processor gives per window is asked before the first read; of one that cannot tell (a
function of the user's) values are taken to be as large as the window's pixels, at most 64 KiB,
until the first ones come: then the same is asked again.
The reader does not use all that it is given (`streamwsi.sources.scroll`): that is the reserve
for what the libraries take inside a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chunks import Plan
from .errors import ConfigError
from .stages import HoldsBuffers, HoldsOutput, RunningProcessor, Sink, SlideReader
from .values import ValueType

__all__ = ["PIECES_IN_LINK", "Budget", "reading_share"]

_BATCHES_IN_LINKS = 4
"""Batches between sampler and processor: being filled, being sent, and two in the link."""

PIECES_IN_LINK = 4
"""Batches whose values wait for the sink ..."""
_PIECES_BESIDE = 2
"""... and those being sent and being written."""

_UNKNOWN_VALUE = 64 << 10
"""Bytes that a value is taken to have, where nobody can tell and the window is not smaller."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory limit.

    Attributes:
        nbytes: for the whole run.
        lanes: slides worked on at the same time.
    """

    nbytes: int
    lanes: int


def reading_share(
    budget: Budget,
    reader: SlideReader,
    plan: Plan,
    processor: RunningProcessor[Any],
    sink: Sink[Any],
    values: ValueType | None = None,
) -> int:
    """Bytes that a lane's reader may use. Blocks: the plan may be long, and a model be called.

    Args:
        budget: the run's.
        reader, plan, processor, sink: the lane's.
        values: what the processor gives per window, where that is known.

    Raises:
        ConfigError: the limit is too small; the message names the smallest that would do.
    """
    least, fewest = 0, 0
    # All of them: those of a masked plan are not alike.
    for region in plan.regions():
        least = max(least, reader.needs(region))
        fewest = min(fewest or region.count, region.count)
    if not fewest:
        return budget.nbytes // budget.lanes
    batch = min(processor.batch_size, plan.count)
    beside = _copied(plan, fewest, processor.batch_size)
    value = min(_UNKNOWN_VALUE, _window_bytes(plan)) if values is None else values.nbytes
    beside += (PIECES_IN_LINK + _PIECES_BESIDE) * batch * value
    if isinstance(sink, HoldsOutput):
        beside += sink.memory(plan, values)
    buffers = 0
    if isinstance(processor, HoldsBuffers):
        left = budget.nbytes - budget.lanes * (least + beside)
        buffers = processor.fit(plan, max(0, left // 2))
    needed = budget.lanes * (least + beside) + buffers
    if needed > budget.nbytes:
        raise _too_small(budget, plan, needed)
    return (budget.nbytes - buffers) // budget.lanes - beside


def _copied(plan: Plan, windows: int, batch: int) -> int:
    """Bytes of batches that are copies, because they reach over the end of a region."""
    copies = min(_BATCHES_IN_LINKS, _BATCHES_IN_LINKS * batch // windows + 1)
    if plan.grid is not None and plan.grid.pad is not None:
        copies = _BATCHES_IN_LINKS  # windows at the level's edge are copies
    return copies * min(batch, plan.count) * _window_bytes(plan)


def _window_bytes(plan: Plan) -> int:
    box, slide = plan.place(0).box, plan.slide
    return box.width * box.height * slide.channels * np.dtype(slide.dtype).itemsize


def _too_small(budget: Budget, plan: Plan, needed: int) -> ConfigError:
    many = f" for each of {budget.lanes} slides at once" if budget.lanes > 1 else ""
    fewer = ", fewer slides at once" if budget.lanes > 1 else ""
    return ConfigError(
        f"{plan.slide.ref.uri}: the memory limit of {budget.nbytes / 2**20:.4g} MiB does not hold "
        f"the model, pixels, batches and output{many}; the smallest that does is "
        f"{math.ceil(needed / 2**20)} MiB (smaller batches{fewer} or smaller windows need less)"
    )
