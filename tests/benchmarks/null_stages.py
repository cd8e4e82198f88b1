"""Stages that do nothing, as fast as Python can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamwsi.chunks import Batch, Pieces, Plan, Receipt
from streamwsi.slides import SlideRef
from streamwsi.stages import Recipe
from streamwsi.workers import Workers

__all__ = ["CountSink", "NullProcessor"]


class _Running:
    batch_size = 32
    config: Mapping[str, Any] = {}

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncIterator[Pieces[Any]]:
        async for batch in batches:
            yield Pieces(batch.places, np.zeros((len(batch), 1), np.float32), batch.valid)


@dataclass(frozen=True)
class NullProcessor:
    """Returns zeros."""

    @asynccontextmanager
    async def open(self, workers: Workers) -> AsyncIterator[Any]:
        yield _Running()


class _Writer:
    resume_at = 0

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        count = 0
        async for some in pieces:
            count += len(some)
        return Receipt("null", count, ())


@dataclass(frozen=True)
class CountSink:
    """Counts."""

    config = {"type": "count"}  # noqa: RUF012

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        return ()

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Recipe, *, overwrite: bool) -> AsyncIterator[Any]:
        yield _Writer()
