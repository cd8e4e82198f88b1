"""Who takes part. Each function does the whole job and returns the heatmap, ``(rows, columns, C)``.

A contender is a generator function: what it does before its first ``yield`` is imports and is
not timed; what it yields second is the heatmap, or None where it gives none.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .jobs import Job, model_of

__all__ = ["CONTENDERS", "PEERS", "available"]

Contender = Callable[[Job, Path], Iterator[Any]]
CONTENDERS: dict[str, Contender] = {}
PEERS = {
    "openslide": "openslide",
    "openslide-dataloader": "openslide",
    "cucim": "cucim",
    "fastslide": "fastslide",
    "tiffslide": "tiffslide",
}


def available() -> list[str]:
    """The peers that are installed."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module)]


def _contender(function: Contender) -> Contender:
    CONTENDERS[function.__name__.replace("_", "-")] = function
    return function


@_contender
def streamwsi(job: Job, slide: Path) -> Iterator[Any]:
    import torch  # noqa: F401
    import zarr

    from streamwsi import Pipeline, run_sync
    from streamwsi.processors import TorchModule
    from streamwsi.samplers import SlidingWindow
    from streamwsi.sinks import HeatmapZarr
    from streamwsi.sources import TiffSource

    model = model_of(job.model)
    yield None
    with tempfile.TemporaryDirectory() as out:
        report = run_sync(
            Pipeline(
                source=TiffSource(),
                sampler=SlidingWindow(job.kernel, job.stride),
                processor=TorchModule(model, device="cpu"),
                sink=HeatmapZarr(out),
            ),
            [slide],
        )
        report.raise_for_failures()
        values = zarr.open_group(f"{out}/{slide.stem}.zarr", mode="r")["0"]
        outcome = report.outcomes[0]
        yield np.moveaxis(np.asarray(values[...]), 0, -1)  # type: ignore[index]
        yield {"amplification": outcome.amplification, "stages": outcome.to_json()["stages"]}


@_contender
def null(job: Job, slide: Path) -> Iterator[Any]:
    """The engine alone: a memory source and a model that does nothing."""
    from streamwsi import Limits, Pipeline, run_sync
    from streamwsi.samplers import SlidingWindow
    from streamwsi.sources import MemorySource

    from .null_stages import CountSink, NullProcessor

    pixels = np.zeros((job.height, job.width, 3), np.uint8)
    yield None
    report = run_sync(
        Pipeline(
            source=MemorySource({"null": (pixels,)}),
            sampler=SlidingWindow(job.kernel, job.stride),
            processor=NullProcessor(),
            sink=CountSink(),
        ),
        ["null"],
        limits=Limits(worker_kind="inline"),
    )
    report.raise_for_failures()
    assert report.outcomes[0].pieces == job.windows
    yield None


def _peer_values(job: Job, batches: Iterator[Any]) -> Any:
    """What users write around a reader: batches of uint8 windows to floats to the model."""
    import torch

    model = model_of(job.model)
    values = []
    with torch.inference_mode():
        for batch in batches:
            x = torch.as_tensor(batch).permute(0, 3, 1, 2).float().div_(255)
            values.append(model(x).numpy())
    return np.concatenate(values).reshape(job.rows, job.columns, -1)


def _in_batches(windows: Iterator[Any], size: int = 32) -> Iterator[Any]:
    batch = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


@_contender
def openslide(job: Job, slide: Path) -> Iterator[Any]:
    import openslide
    import torch  # noqa: F401

    yield None
    handle = openslide.OpenSlide(str(slide))
    size = (job.kernel, job.kernel)
    windows = (np.asarray(handle.read_region(c, 0, size))[:, :, :3] for c in job.corners())
    yield _peer_values(job, _in_batches(windows))


class _Windows:
    """A map-style dataset of windows, its handle opened in the loader's process."""

    def __init__(self, job: Job, slide: Path) -> None:
        self.corners = list(job.corners())
        self.size = (job.kernel, job.kernel)
        self.slide = str(slide)
        self.handle: Any = None

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, i: int) -> Any:
        if self.handle is None:
            import openslide

            self.handle = openslide.OpenSlide(self.slide)
        return np.asarray(self.handle.read_region(self.corners[i], 0, self.size))[:, :, :3]


@_contender
def openslide_dataloader(job: Job, slide: Path) -> Iterator[Any]:
    import openslide  # noqa: F401
    from torch.utils.data import DataLoader

    yield None
    dataset: Any = _Windows(job, slide)
    yield _peer_values(job, iter(DataLoader(dataset, batch_size=32, num_workers=2)))


@_contender
def cucim(job: Job, slide: Path) -> Iterator[Any]:
    import torch  # noqa: F401
    from cucim import CuImage

    yield None
    CuImage.cache("per_process", memory_capacity=1024)
    image = CuImage(str(slide))
    regions = image.read_region(
        list(job.corners()), (job.kernel, job.kernel), level=0, batch_size=32, num_workers=2
    )
    yield _peer_values(
        job, (np.asarray(batch).reshape(-1, job.kernel, job.kernel, 3) for batch in regions)
    )


@_contender
def fastslide(job: Job, slide: Path) -> Iterator[Any]:
    import torch  # noqa: F401
    from fastslide import CacheManager, FastSlide

    yield None
    image = FastSlide.from_file_path(str(slide))
    image.set_cache(CacheManager.create(4096))
    size = (job.kernel, job.kernel)
    windows = (
        image.read_region(location=c, level=0, size=size).numpy()[:, :, :3] for c in job.corners()
    )
    yield _peer_values(job, _in_batches(windows))


@_contender
def tiffslide(job: Job, slide: Path) -> Iterator[Any]:
    import tiffslide
    import torch  # noqa: F401

    yield None
    handle = tiffslide.TiffSlide(str(slide))
    size = (job.kernel, job.kernel)
    windows = (handle.read_region(c, 0, size, as_array=True) for c in job.corners())
    yield _peer_values(job, _in_batches(windows))
