"""Merging overlapping maps against decoding: python -m tests.benchmarks.merging

Maps of 2 × 256 × 256 cells for windows of 512 pixels, 256 apart, of a level of 16384 × 16384,
from memory into a zarr heatmap: what a null model would give the sink. The bound is decoding
every tile of the slide once, in the same run. CPU seconds and wall, and the ratio of walls; the
share of the smaller levels is measured by a run that leaves them out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import numpy as np

from streamwsi.chunks import Pieces, Places
from streamwsi.geometry import Grid, Size
from streamwsi.heaps import share_one_heap
from streamwsi.limits import cores
from streamwsi.sinks import HeatmapZarr, zarr_pyramid
from streamwsi.sinks.heatmap_image import HeatmapImage
from streamwsi.testing.outputs import grid_plan, recipe

from .bounds import decode_bound
from .jobs import Job, slide_of

__all__ = ["main"]

_BATCH = 16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.merging")
    parser.add_argument("--blend", default="mean")
    parser.add_argument("--side", type=int, default=16384, help="of the level, in pixels")
    args = parser.parse_args()
    share_one_heap()  # as a run does
    job = Job("merging", 512, 256, args.side, args.side)
    decode = decode_bound(job, slide_of(job))
    print(
        f"decoding: CPU {decode['cpu']:.2f} s, {decode['cpu'] / cores():.2f} s on {cores()} cores"
    )
    anyio.run(_merge, job, args.blend)  # imports, and what is done once
    for smaller in (False, True):
        began, cpu = time.perf_counter(), time.process_time()
        anyio.run(_merge, job, args.blend, smaller)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"merging {args.blend}, {'all levels' if smaller else 'level 0 alone'}: wall "
            f"{wall:.2f} s, CPU {cpu:.2f} s; ÷ decoding {wall / (decode['cpu'] / cores()):.2f} "
            f"(CPU {cpu / decode['cpu']:.2f})",
            flush=True,
        )


async def _merge(job: Job, blend: Any, smaller: bool = True) -> None:
    """Write the map of a slide."""
    grid = Grid(
        Size(job.width, job.height), Size(job.kernel, job.kernel), Size(job.stride, job.stride)
    )
    plan = grid_plan(grid)
    ramp = np.linspace(0, 1, 256 * 256, dtype=np.float32).reshape(1, 1, 256, 256)
    values = np.repeat(np.repeat(ramp, 2, 1), _BATCH, 0)

    async def pieces() -> AsyncIterator[Pieces[Any]]:
        for start in range(0, plan.count, _BATCH):
            stop = min(plan.count, start + _BATCH)
            yield Pieces(
                Places(plan, start, stop), values[: stop - start], np.ones(stop - start, bool)
            )

    async def none(store: object, path: str, **_: object) -> list[str]:
        return [path]

    with tempfile.TemporaryDirectory() as out:
        sink = HeatmapZarr(Path(out), blend=blend)
        async with AsyncExitStack() as stack:
            if not smaller:
                stack.enter_context(patch.object(HeatmapImage, "half", None))
                stack.enter_context(patch.object(zarr_pyramid, "build_pyramid", none))
            writer = await stack.enter_async_context(
                sink.open(plan, recipe(plan, sink), overwrite=False)
            )
            await writer.write(pieces())


if __name__ == "__main__":
    main()
