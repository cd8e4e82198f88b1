"""The kit for masks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import numpy as np
import numpy.typing as npt
import pytest

from ...chunks import Pixels
from ...geometry import Size
from ...samplers.masks import Mask, MaskSource
from ...slides import SlideRef
from ...sources.memory import MemorySource
from ...stages import SlideReader
from ...workers import Workers, open_workers
from .rules import LIMITS, StageRules, cancelled_after, check_json, no_files_in_the_loop

__all__ = ["MaskCase", "MaskConformance"]

_MEMORY = 2**26


@dataclass(frozen=True)
class MaskCase:
    """A mask, or what becomes one, and a slide for it.

    Attributes:
        stage: the mask.
        levels: the slide's pixels, ``(height, width, channels)`` each, finest first; level 0 some
            hundred pixels a side.
        expected: which pixels of level 0 it covers, ``(height, width)``; None where nobody knows.
        tolerance: by how much a window's share may differ from what `expected` has.
        folder: where its file lies, if it reads one.
        timeout_s: how long it may take to be made.
    """

    stage: Mask | MaskSource
    levels: tuple[Pixels, ...]
    expected: npt.NDArray[np.bool_] | None = None
    tolerance: float = 1e-9
    folder: Path | None = None
    timeout_s: float = 60.0

    @property
    def size(self) -> Size:
        """Of level 0."""
        height, width = self.levels[0].shape[:2]
        return Size(width, height)

    async def made(self, reader: SlideReader) -> Mask:
        """The mask for the slide."""
        if isinstance(self.stage, MaskSource):
            return await self.stage.prepare(reader, _MEMORY)
        return self.stage

    @asynccontextmanager
    async def reader(self, workers: Workers) -> AsyncIterator[SlideReader]:
        """The slide, opened."""
        source = MemorySource({"slide": self.levels}, mpp=0.5, tile=64)
        async with source.open(SlideRef("slide", "memory:slide"), workers) as reader:
            yield reader


async def _mask(case: MaskCase) -> Mask:
    with anyio.fail_after(case.timeout_s):
        async with open_workers(LIMITS) as workers, case.reader(workers) as reader:
            return await case.made(reader)


def _shares(mask: Mask, size: Size, top: float, bottom: float, edges: npt.ArrayLike) -> list[float]:
    """Of windows side by side, from edge to edge."""
    x = np.asarray(edges, np.float64)
    shares = mask.shares(size, top, bottom, x[:-1], x[1:])
    assert shares.shape == (len(x) - 1,), f"{len(x) - 1} windows have {shares.shape} shares"
    assert ((shares >= -1e-9) & (shares <= 1 + 1e-9)).all(), f"{shares} are not within 0 … 1"
    return [float(share) for share in shares]


class MaskConformance(StageRules):
    """Subclass it with a fixture `case` that returns a `MaskCase`."""

    role = "mask"

    async def test_it_says_what_it_is(self, case: MaskCase) -> None:
        one, other = await _mask(case), await _mask(case)
        assert isinstance(one.name, str)
        assert one.name, "messages need a name"
        check_json(one.config)
        assert isinstance(one.config["kind"], str)
        assert one.config == other.config, "a resumed run would take it for another mask"

    async def test_a_window_has_the_mean_of_its_parts(self, case: MaskCase) -> None:
        mask, size = await _mask(case), case.size
        for cut in (0.37, 0.5):
            middle = size.height * cut
            edges = [0, size.width * cut, size.width]
            upper = _shares(mask, size, 0, middle, edges)
            lower = _shares(mask, size, middle, size.height, edges)
            parts = [[share * cut for share in upper], [share * (1 - cut) for share in lower]]
            both = [sum(column) for column in zip(*parts, strict=True)]
            whole = both[0] * cut + both[1] * (1 - cut)
            (share,) = _shares(mask, size, 0, size.height, [0, size.width])
            assert share == pytest.approx(whole, abs=1e-6), "the parts do not make the whole"

    async def test_nothing_lies_beyond_the_slide(self, case: MaskCase) -> None:
        """Windows that are padded reach there."""
        mask, (width, height) = await _mask(case), case.size
        assert _shares(mask, case.size, -height, 0, [0, width]) == [0]
        assert _shares(mask, case.size, 0, height, [2 * width, 3 * width]) == [0]
        (inside,) = _shares(mask, case.size, 0, height, [0, width])
        (wide,) = _shares(mask, case.size, -height, 2 * height, [-width, 2 * width])
        assert wide == pytest.approx(inside / 9, abs=1e-6)

    async def test_shares_are_those_of_the_reference(self, case: MaskCase) -> None:
        if case.expected is None:
            return
        mask, (width, height) = await _mask(case), case.size
        assert case.expected.shape == (height, width)
        for top, bottom in ((0, height), (height // 3, height // 3 + 7), (height - 5, height)):
            edges = [*range(0, width, 11), width]
            shares = _shares(mask, case.size, top, bottom, edges)
            for left, right, share in zip(edges, edges[1:], shares, strict=False):
                exact = float(case.expected[top:bottom, left:right].mean())
                assert abs(share - exact) <= case.tolerance, (
                    f"rows {top}-{bottom}, columns {left}-{right}: {share} and not {exact}"
                )

    async def test_the_loop_opens_no_files(self, case: MaskCase) -> None:
        if case.folder is not None:
            with no_files_in_the_loop(case.folder):
                await _mask(case)

    @pytest.mark.parametrize("turns", [0, 1, 5])
    async def test_cancellation_is_not_swallowed(self, case: MaskCase, turns: int) -> None:
        async def work(workers: Workers) -> None:
            async with case.reader(workers) as reader:
                await case.made(reader)

        await cancelled_after(turns, work)
