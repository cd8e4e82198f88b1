"""A heatmap of slides as OME-Zarr images.

    python examples/heatmap_to_zarr.py OUT SLIDE...

The model is any `torch.nn.Module` that maps N×3×H×W to N×C; this one is a small untrained
network, to be replaced by yours.
"""

import sys

import torch
from torch import nn

from streamwsi import Limits, Pipeline, run_sync
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr
from streamwsi.sources import TiffSource


def small_network() -> nn.Module:
    """Two classes per window."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def main(out: str, slides: list[str]) -> None:
    """Write ``OUT/<slide>.zarr`` for each slide; running it again completes what is missing."""
    report = run_sync(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel_size=256, stride=256, level=0),
            processor=TorchModule(small_network(), channel_names=("stroma", "tumour")),
            sink=HeatmapZarr(out),
        ),
        slides,
        limits=Limits(slides=2, memory="1 GiB"),
    )
    for outcome in report.outcomes:
        print(outcome.slide, outcome.status, *outcome.outputs, outcome.error or "")
    report.raise_for_failures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
