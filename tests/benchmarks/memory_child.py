"""One run of the memory benchmark: imports everything, says so, waits for a line, and runs."""

from __future__ import annotations

import sys
from importlib import import_module

import anyio
import torch

from streamwsi import Limits, Pipeline, SlideRef, run_sync
from streamwsi.heaps import share_one_heap
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr
from streamwsi.sources import TiffSource
from streamwsi.sources.tiff import inspect_tiff
from streamwsi.workers import open_workers

from .jobs import model_of

_PARENT = ("streamwsi.runs", "streamwsi.sinks.zarr_arrays", "streamwsi.processors.inference")


async def _import_all(limits: Limits, slide: SlideRef) -> None:
    """Import what the run will, here and in as many workers; wait until that was measured."""
    for name in _PARENT:
        import_module(name)
    async with open_workers(limits) as workers:
        async with anyio.create_task_group() as tasks:
            for _ in range(workers.count):
                # At the same time, so that each worker takes one.
                tasks.start_soon(workers.call, inspect_tiff, slide)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)


def main(slide: str, out: str, memory: str, kernel: int, stride: int, name: str) -> None:
    """Work off one slide."""
    share_one_heap()  # as a run does, before what follows starts threads
    limits = Limits(memory=memory)
    model = model_of(name)
    with torch.inference_mode():
        model(torch.zeros(1, 3, kernel, kernel))
    anyio.run(_import_all, limits, SlideRef.of(slide))
    pipeline = Pipeline(
        source=TiffSource(),
        sampler=SlidingWindow(kernel, stride),
        processor=TorchModule(model),
        sink=HeatmapZarr(out),
    )
    run_sync(pipeline, [slide], limits=limits).raise_for_failures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
