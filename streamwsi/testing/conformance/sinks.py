"""The kit for sinks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from ...chunks import Receipt
from ...errors import ConfigError, PlanChanged
from ...geometry import Grid, Size
from ...samplers.sliding_window import GridPlan
from ...stages import Sink
from ...workers import Workers
from ..outputs import Tree, grid_plan, recipe, stream, tree
from .rules import StageRules, Upstream, cancelled_after, check_json, no_files_in_the_loop

__all__ = ["SinkCase", "SinkConformance"]

_GRID = Grid(Size(90, 60), Size(12, 12), Size(6, 6))


@dataclass(frozen=True)
class SinkCase:
    """A sink that writes files, and values for it.

    Attributes:
        make: the sink that writes into a folder.
        values: for ``n`` pieces, an array ``(n, …)`` as a processor would return it.
        grid: where the pieces lie.
        timeout_s: how long writing all of them may take.
    """

    make: Callable[[Path], Sink[Any]]
    values: Callable[[int], Any]
    grid: Grid = _GRID
    timeout_s: float = 60.0

    @property
    def stage(self) -> Sink[Any]:
        """The sink, for a folder that is not there."""
        return self.make(Path("nowhere"))

    def plan(self, id_: str = "slide") -> GridPlan:
        """The plan of the pieces."""
        return grid_plan(self.grid, id=id_)


class SinkConformance(StageRules):
    """Subclass it with a fixture `case` that returns a `SinkCase`."""

    role = "sink"

    async def _write(
        self,
        case: SinkCase,
        folder: Path,
        stop: int | None = None,
        *,
        overwrite: bool = False,
        fail_at: int | None = None,
        **processor: Any,
    ) -> tuple[int, Receipt]:
        """Write what is missing; returns where the sink began, and its receipt."""
        plan, sink = case.plan(), case.make(folder)

        def between(start: int) -> None:
            if fail_at is not None and start >= fail_at:
                raise Upstream

        with anyio.fail_after(case.timeout_s):
            async with sink.open(plan, recipe(plan, sink, **processor), overwrite=overwrite) as out:
                began = out.resume_at
                values = case.values(plan.count)
                pieces = stream(plan, values, start=began, stop=stop, between=between)
                async with aclosing(pieces):
                    return began, await out.write(pieces)

    async def _whole(self, case: SinkCase, folder: Path) -> Tree:
        """What the sink writes in one go."""
        began, receipt = await self._write(case, folder)
        plan = case.plan()
        assert began == 0, "a fresh output does not begin at 0"
        assert (receipt.slide, receipt.pieces) == (plan.slide.ref.id, plan.count)
        return tree(folder)

    def test_it_says_where_it_writes_and_what_identifies_it(
        self, case: SinkCase, tmp_path: Path
    ) -> None:
        sink = case.make(tmp_path)
        check_json(sink.config)
        one, other = (sink.outputs(case.plan(id_).slide.ref) for id_ in ("one", "other"))
        assert one, "it names no outputs"
        assert not {*one} & {*other}, "two slides would write the same output"
        for path in one + other:
            assert Path(path).is_relative_to(tmp_path), f"{path} is not in the folder"
        assert tree(tmp_path) == {}, "naming the outputs has made some"
        assert case.make(tmp_path / "elsewhere").config == sink.config, "the config tells the place"

    async def test_pieces_become_outputs(self, case: SinkCase, tmp_path: Path) -> None:
        _, receipt = await self._write(case, tmp_path)
        assert {*receipt.outputs} <= {*case.make(tmp_path).outputs(case.plan().slide.ref)}
        for path in receipt.outputs:
            assert await anyio.Path(path).exists(), f"{path} was promised and is not there"

    async def test_a_finished_output_is_left_alone(self, case: SinkCase, tmp_path: Path) -> None:
        whole = await self._whole(case, tmp_path)
        began, receipt = await self._write(case, tmp_path)
        assert (began, receipt.pieces) == (case.plan().count, 0)
        assert tree(tmp_path) == whole, "an output that was finished has changed"

    @pytest.mark.parametrize("at", [0.0, 0.3, 0.7, 1.0])
    async def test_a_failure_before_it_leaves_an_output_to_complete(
        self, case: SinkCase, tmp_path: Path, at: float
    ) -> None:
        """It is not taken for the end; and what is completed has the bytes of one go."""
        whole = await self._whole(case, tmp_path / "whole")
        count = case.plan().count
        stop = int(at * (count - 1)) // 4 * 4
        with pytest.raises((Upstream, ExceptionGroup)):
            await self._write(case, tmp_path / "broken", fail_at=stop)
        began, _ = await self._write(case, tmp_path / "broken")
        assert began <= stop, "it has pieces that it was never given"
        assert tree(tmp_path / "broken") == whole, "a resumed output differs from one in one go"

    async def test_another_plan_changes_nothing(self, case: SinkCase, tmp_path: Path) -> None:
        whole = await self._whole(case, tmp_path)
        with pytest.raises(PlanChanged):
            await self._write(case, tmp_path, model="another")
        assert tree(tmp_path) == whole, "an output of another plan was changed"

    async def test_overwriting_begins_anew(self, case: SinkCase, tmp_path: Path) -> None:
        whole = await self._whole(case, tmp_path)
        assert (await self._write(case, tmp_path, overwrite=True))[0] == 0
        assert tree(tmp_path) == whole

    async def test_one_output_has_one_writer(self, case: SinkCase, tmp_path: Path) -> None:
        plan, sink = case.plan(), case.make(tmp_path)
        async with sink.open(plan, recipe(plan, sink), overwrite=False):
            with pytest.raises(ConfigError):
                async with case.make(tmp_path).open(plan, recipe(plan, sink), overwrite=False):
                    pass

    @pytest.mark.parametrize("turns", [0, 3, 20])
    async def test_cancellation_is_not_swallowed(
        self, case: SinkCase, tmp_path: Path, turns: int
    ) -> None:
        whole = await self._whole(case, tmp_path / "whole")

        async def work(workers: Workers) -> None:
            await self._write(case, tmp_path / "broken")

        await cancelled_after(turns, work)
        await self._write(case, tmp_path / "broken")
        assert tree(tmp_path / "broken") == whole, "a resumed output differs from one in one go"

    async def test_the_loop_opens_no_files(self, case: SinkCase, tmp_path: Path) -> None:
        with no_files_in_the_loop(tmp_path):
            await self._write(case, tmp_path)
