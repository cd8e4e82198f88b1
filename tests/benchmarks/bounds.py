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
from typing import Any, NamedTuple

import numpy as np

from streamwsi.limits import cores

from .jobs import Job, model_of

__all__ = ["Setting", "best_setting", "decode_bound", "model_bound"]


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


class Setting(NamedTuple):
    """How the model is called.

    Attributes:
        batch: windows per call.
        channels_last: the memory order of model and windows.
        callers: threads that call it.
        threads: of torch's, in each call.
    """

    batch: int
    channels_last: bool
    callers: int
    threads: int


def best_setting(job: Job, seconds: float = 0.4) -> Setting:
    """The setting with which the model is fastest, all measured twice."""
    pairs = {(1, cores()), (cores(), 1)}
    settings = [
        Setting(batch, last, *pair)
        for batch, last, pair in itertools.product((4, 8, 16, 32), (False, True), pairs)
    ]
    walls = dict.fromkeys(settings, 0.0)
    for setting in (*settings, *reversed(settings)):
        walls[setting] += model_bound(job, setting, seconds)["wall"]
    return min(settings, key=walls.__getitem__)


def model_bound(job: Job, setting: Setting, seconds: float = 1.5) -> dict[str, float]:
    """Uint8 windows in memory → float → model, for as many windows as the job has.

    The setting was found before: the best of many measurements on a machine whose speed
    fluctuates is less than any of them takes on average.
    """
    import torch

    windows = np.random.default_rng(0).integers(0, 256, (64, job.kernel, job.kernel, 3), np.uint8)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    model = model_of(job.model).to(memory_format=layout)
    found = _rate(model, windows, setting.batch, layout, setting.callers, seconds)
    torch.set_num_threads(before)
    return {key: value * job.windows for key, value in found.items()}


def _rate(
    model: Any, windows: Any, batch: int, layout: Any, callers: int, seconds: float
) -> dict[str, float]:
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
