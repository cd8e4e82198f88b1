"""Budgets: how the memory limit is divided among a lane's stages, before anything is read.

Every lane has the same share of the limit. Of it the sink takes what an open output needs, the
links what batches may hold in copies (where a batch reaches over the end of a big chunk, its
first part is copied), and the reader gets the rest. The processor's buffers serve all lanes;
it may take as many as fit half of what is left once each reader has its least, so that a large
machine does not outgrow a small limit by its number of threads.

What nobody knows before the first batch is not counted: a model's weights and activations, and
values that are as large as the windows they are made from. The reader does not use all that it
is given (`streamwsi.sources.scroll`), which is the reserve for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chunks import Plan
from .errors import ConfigError
from .stages import HoldsBuffers, HoldsOutput, RunningProcessor, Sink, SlideReader

__all__ = ["Budget", "reading_share"]

_BATCHES_IN_LINKS = 4
"""Batches between sampler and processor: being filled, being sent, and two in the link."""


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
) -> int:
    """Bytes that a lane's reader may use.

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
    beside = _copied(plan, fewest, processor.batch_size)
    if isinstance(sink, HoldsOutput):
        beside += sink.memory(plan)
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
    box, slide = plan.place(0).box, plan.slide
    window = box.width * box.height * slide.channels * np.dtype(slide.dtype).itemsize
    copies = min(_BATCHES_IN_LINKS, _BATCHES_IN_LINKS * batch // windows + 1)
    if plan.grid is not None and plan.grid.pad is not None:
        copies = _BATCHES_IN_LINKS  # windows at the level's edge are copies
    return copies * min(batch, plan.count) * window


def _too_small(budget: Budget, plan: Plan, needed: int) -> ConfigError:
    many = f" for each of {budget.lanes} slides at once" if budget.lanes > 1 else ""
    fewer = ", fewer slides at once" if budget.lanes > 1 else ""
    return ConfigError(
        f"{plan.slide.ref.uri}: the memory limit of {budget.nbytes / 2**20:.4g} MiB does not hold "
        f"the pixels, batches and output{many}; the smallest that does is "
        f"{math.ceil(needed / 2**20)} MiB (smaller batches{fewer} or smaller windows need less)"
    )
