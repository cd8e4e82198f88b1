"""Level 1 of blended maps, which is made band by band: what halving level 0 as a whole gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio.to_thread
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.geometry import Grid, Size
from streamwsi.sinks import HeatmapZarr
from streamwsi.sinks.pyramids import mean_of_cells, most_frequent_of_cells
from streamwsi.testing.outputs import recipe, stream, tree

from .test_sink_merging import GENERATE, Case, write

CELLS = Size(16, 12)


@st.composite
def cases(draw: Any) -> Case:
    """Maps that are large enough to have a smaller level, of any parity, in any panels."""
    size = Size(draw(st.integers(275, 330)), draw(st.integers(60, 150)))
    stride = Size(draw(st.integers(5, 16)), draw(st.integers(4, 12)))
    grid = Grid(size, CELLS, stride)
    panel = draw(st.integers(2, grid.columns))
    kept, invalid = draw(st.sampled_from([None, 0.1])), draw(st.sampled_from([0.0, 0.2]))
    chunk = draw(st.sampled_from([17, 32, 33, 515]))
    return Case(replace(grid, panel=panel), CELLS, 2, chunk, kept, invalid)


def levels(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Levels 0 and 1."""
    group = zarr.open_group(path, mode="r")
    prefix = "labels/classes/" if "labels" in group else ""
    zero, one = (np.asarray(group[f"{prefix}{k}"][...]) for k in (0, 1))  # type: ignore[index]
    return zero, one


@pytest.mark.parametrize("dtype", ["float32", "float16", "labels"])
@settings(deadline=None, max_examples=5, phases=GENERATE)
@given(case=cases())
async def test_it_is_the_half_of_level_0(
    tmp_path_factory: pytest.TempPathFactory, dtype: Any, case: Case
) -> None:
    folder, plan = tmp_path_factory.mktemp("out"), case.plan
    values, valid = case.values(plan.count)
    sink = HeatmapZarr(folder, case.chunk, dtype=dtype)
    with patch("streamwsi.sinks.half_level._COLUMNS", 64):
        path = await write(sink, plan, values, valid=valid, batch=64)
    zero, one = await anyio.to_thread.run_sync(levels, path)
    halve = most_frequent_of_cells if dtype == "labels" else mean_of_cells
    np.testing.assert_array_equal(one, halve(zero))


@settings(deadline=None, max_examples=3, phases=GENERATE)
@given(case=cases(), stop=st.floats(0.1, 0.9))
async def test_an_interrupted_run_has_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, case: Case, stop: float
) -> None:
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    plan = case.plan
    values, valid = case.values(plan.count)
    await write(HeatmapZarr(whole, case.chunk), plan, values, valid=valid, batch=64)
    sink = HeatmapZarr(broken, case.chunk)

    class Stopped(Exception):
        pass

    async def some() -> Any:
        end = int(stop * plan.count)
        async for pieces in stream(plan, values, start=0, stop=end, valid=valid, batch=64):
            yield pieces
        raise Stopped

    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        with pytest.raises(Stopped):
            await writer.write(some())
    await write(sink, plan, values, valid=valid, batch=64)
    assert tree(broken) == tree(whole)
