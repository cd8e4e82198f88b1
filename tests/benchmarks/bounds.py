"""The bounds: decoding alone and the model alone, each as fast as this machine does it.

What is reported is CPU seconds: nothing that does this work can take less than their sum
divided by the cores.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from .jobs import Job, model_of

__all__ = ["decode_bound", "model_bound"]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _decode(slide: str, tiles: list[int]) -> float:
    import imagecodecs
    import tifffile

    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0].aspage()
        offsets, counts, tables = page.dataoffsets, page.databytecounts, page.jpegtables
        # RGB without a JFIF header is RGB; libjpeg would guess YCbCr.
        space = 2 if page.photometric == 2 and not page.is_jfif else None
        fd = tiff.filehandle.fileno()
        began = time.process_time()
        for tile in tiles:
            data = os.pread(fd, counts[tile], offsets[tile])
            imagecodecs.jpeg8_decode(data, tables=tables, colorspace=space, outcolorspace=2)
        return time.process_time() - began


def decode_bound(job: Job, slide: Path) -> dict[str, float]:
    """Decode every needed tile once on all cores and drop the pixels."""
    tiles, n = job.tiles(), cores()
    with ProcessPoolExecutor(n, mp_context=get_context("forkserver")) as pool:
        list(pool.map(_decode, [str(slide)] * n, [[0]] * n))  # start, and warm the page cache
        began = time.perf_counter()
        cpu = sum(pool.map(_decode, [str(slide)] * n, [tiles[i::n] for i in range(n)]))
        return {"wall": time.perf_counter() - began, "cpu": cpu, "tiles": len(tiles)}


def model_bound(job: Job, seconds: float = 0.7) -> dict[str, Any]:
    """Uint8 windows in memory → float → model: the best of several batch sizes and threads."""
    import torch

    model = model_of(job.model)
    windows = np.random.default_rng(0).integers(0, 256, (64, job.kernel, job.kernel, 3), np.uint8)
    best: dict[str, Any] = {}
    before = torch.get_num_threads()
    layouts = (torch.contiguous_format, torch.channels_last)
    for batch, layout in itertools.product((4, 8, 16, 32), layouts):
        model = model.to(memory_format=layout)
        for callers, inside in {(1, cores()), (cores(), 1)}:
            torch.set_num_threads(inside)
            found = _rate(model, windows, batch, layout, callers, seconds)
            found |= {"batch": batch, "callers": callers, "threads": inside, "layout": str(layout)}
            if not best or found["wall"] < best["wall"]:
                best = found
    torch.set_num_threads(before)
    for key in ("wall", "cpu"):
        best[key] *= job.windows
    return best


def _rate(
    model: Any, windows: Any, batch: int, layout: Any, callers: int, seconds: float
) -> dict[str, Any]:
    """Seconds of wall and CPU per window."""
    import torch

    done = [0] * callers

    def work(i: int, until: float) -> None:
        x = torch.empty(batch, 3, *windows.shape[1:3]).to(memory_format=layout)
        at = 0
        with torch.inference_mode():
            while time.perf_counter() < until:
                part = torch.from_numpy(windows[at : at + batch]).permute(0, 3, 1, 2)
                model(x.copy_(part).mul_(1 / 255)).sum().item()
                at = (at + batch) % len(windows)
                done[i] += batch

    for warm in (0.1 * seconds, seconds):
        done[:] = [0] * callers
        began, cpu = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=work, args=(i, began + warm)) for i in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    n = sum(done)
    return {"wall": (time.perf_counter() - began) / n, "cpu": (time.process_time() - cpu) / n}
