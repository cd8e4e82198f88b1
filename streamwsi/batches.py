"""Batches: windows gathered for the model, across rows and big chunks.

The boundaries lie at multiples of the batch size, counted in windows of the slide, wherever a
run begins: a resumed run gives the model the very batches of an uninterrupted one, so that its
floats are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
import numpy.typing as npt

from .chunks import Batch, BigChunk, Pixels, Places, Plan, SmallChunks
from .errors import ContractBroken

__all__ = ["batches"]


class _Filling:
    """The batch that is being filled."""

    def __init__(self, plan: Plan, start: int, stop: int) -> None:
        self._plan = plan
        self._start = start
        self.next = start
        self.stop = stop
        self._parts: list[Pixels] = []
        #: The big chunk that lends each part; None where it is the batch's own.
        self._lenders: list[BigChunk | None] = []
        self._valid: list[npt.NDArray[np.bool_]] = []

    def add(self, windows: SmallChunks, begin: int, end: int) -> None:
        pixels = windows.pixels[begin:end]
        if windows.chunk is not None:
            windows.chunk.retain()
        else:
            # The sampler owns these pixels and may use them again for the next windows.
            pixels = pixels.copy()
        self._parts.append(pixels)
        self._lenders.append(windows.chunk)
        self._valid.append(windows.valid[begin:end])
        self.next += end - begin

    def settle(self, last: BigChunk | None) -> None:
        """Copy what was gathered so far, and give the chunks back: the next big chunk may need
        their memory, and would never come.

        Args:
            last: the last one; it is kept if it may be.
        """
        lasting = last is not None and last.lasting and last in self._lenders
        n = self._lenders.index(last) if lasting else len(self._lenders)
        given = [lender for lender in self._lenders[:n] if lender is not None]
        if given:
            self._parts[:n] = [np.concatenate(self._parts[:n])]
            self._lenders[:n] = [None]
            for lender in given:
                lender.release()

    def batch(self) -> Batch:
        return Batch(
            Places(self._plan, self._start, self.next),
            tuple(self._parts),
            np.concatenate(self._valid),
            tuple(lender for lender in self._lenders if lender is not None),
        )


async def batches(
    plan: Plan, windows: AsyncIterator[SmallChunks], size: int, start: int = 0
) -> AsyncGenerator[Batch, None]:
    """Batches of the windows from number `start` on; the receiver releases each.

    Args:
        plan: what is sampled.
        windows: in order; those before `start` are passed over.
        size: windows per batch; `start` is a multiple of it.

    Raises:
        ContractBroken: the sampler's windows do not come in order, or not all of them.
    """
    filling = _Filling(plan, start, min(start + size, plan.count))
    behind: int | None = None
    async for some in windows:
        if some.first > start if behind is None else some.first != behind:
            raise ContractBroken(
                f"the sampler gave window {some.first} where {behind or start} comes next"
            )
        begin, behind = max(0, filling.next - some.first), some.first + len(some)
        if behind > plan.count:
            raise ContractBroken(
                f"the sampler gave window {behind - 1}, beyond the {plan.count} that it promised"
            )
        while begin < len(some):
            end = min(len(some), begin + filling.stop - filling.next)
            filling.add(some, begin, end)
            begin = end
            if filling.next == filling.stop:
                yield filling.batch()
                filling = _Filling(plan, filling.stop, min(filling.stop + size, plan.count))
        if some.chunk is None or behind == some.chunk.region.first + some.chunk.region.count:
            filling.settle(some.chunk)
    if filling.next < plan.count:
        raise ContractBroken(
            f"the sampler ended after {filling.next} of the {plan.count} windows that it promised"
        )
