"""The bytes of an output do not depend on limits, on the kind of worker, or on interruptions.

Each example interrupts a run some times, in the middle of a batch's way to the sink, and goes on
with other limits; what lies there in the end must be what one run writes. Runs that are killed
rather than interrupted are in `test_kills`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from streamwsi import Limits, Pipeline, run
from streamwsi.geometry import Size
from streamwsi.processors import TorchModule
from streamwsi.reports import Event, PiecesWritten
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr, Pdmcsv
from streamwsi.sources import TiffSource
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import write_slide

SIZES = (Size(700, 500), Size(401, 333))


def vector() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def cells() -> nn.Module:
    return nn.AvgPool2d(16)


JOBS = [
    (HeatmapZarr, vector, 96, 41),
    (HeatmapZarr, cells, 64, 64),
    (Pdmcsv, vector, 50, 33),
    (Pdmcsv, cells, 48, 29),
]
LIMITS = st.builds(
    Limits,
    workers=st.integers(1, 3),
    slides=st.integers(1, 2),
    memory=st.sampled_from(["24 MiB", "64 MiB", "1 GiB"]),
    worker_kind=st.sampled_from(["inline", "threads", "processes"]),
)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    paths = [folder / f"{i}.svs" for i in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        write_slide(path, size, levels=1)
    return paths


async def interrupted(pipeline: Pipeline[Any], slides: list[Path], limits: Limits, at: int) -> None:
    """Run until so many pieces were written, unless it ends before."""
    written = 0
    with anyio.CancelScope() as scope:

        def observe(event: Event) -> None:
            nonlocal written
            if isinstance(event, PiecesWritten):
                written += event.count
                if written >= at:
                    scope.cancel()

        report = await run(pipeline, slides, limits=limits, observers=[observe])
        report.raise_for_failures()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job[0].__name__}-{job[1].__name__}")
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(LIMITS, st.integers(1, 200)), max_size=3), LIMITS)
def test_the_same_bytes_whatever_limits_worker_kind_and_interruptions(
    slides: list[Path], job: Any, interruptions: list[tuple[Limits, int]], last: Limits
) -> None:
    sink, model, kernel, stride = job

    def pipeline(out: str) -> Pipeline[Any]:
        processor = TorchModule(model(), batch_size=7, device="cpu")
        for value in processor.model.parameters():  # type: ignore[union-attr]
            value.data.fill_(0.3)
        return Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel, stride),
            processor=processor,
            sink=sink(out),
        )

    async def main(out: str) -> None:
        for limits, at in interruptions:
            await interrupted(pipeline(out), slides, limits, at)
        (await run(pipeline(out), slides, limits=last)).raise_for_failures()

    async def whole(out: str) -> None:
        limits = Limits(worker_kind="inline", memory="1 GiB", slides=1)
        (await run(pipeline(out), slides, limits=limits)).raise_for_failures()

    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as reference:
        anyio.run(main, out)
        anyio.run(whole, reference)
        found = tree(Path(out))
        assert found == tree(Path(reference))
        assert len(found) >= 2 * len(slides)
