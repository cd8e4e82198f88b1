"""A heatmap, its values as text, and features: three files of one pass over each slide.

    python examples/heatmap_and_features.py OUT SLIDE...

The model returns a dict; each sink gets one of its outputs. The slide is decoded once, and the
model called once per batch. ``OUT/<slide>.h5`` is what CLAM and TRIDENT load.
"""

import sys

import torch
from torch import Tensor, nn

from streamwsi import Pipeline, run_sync
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import FeaturesHdf5, HeatmapZarr, Pdmcsv, Select, Tee
from streamwsi.sources import TiffSource


class Classifier(nn.Module):
    """An encoder with a head: both are of interest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.encoder = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.ReLU(), pool)
        self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)
        return {"logits": self.head(features), "features": features}


def main(out: str, slides: list[str]) -> None:
    """Write the files of each slide; running it again completes what is missing."""
    report = run_sync(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel_size=256),
            processor=TorchModule(Classifier(), output=("logits", "features")),
            sink=Tee(
                Select(HeatmapZarr(out), "logits"),
                Select(Pdmcsv(out), "logits"),
                Select(FeaturesHdf5(out), "features"),
            ),
        ),
        slides,
    )
    report.raise_for_failures()
    for outcome in report.outcomes:
        print(outcome.slide, *outcome.outputs)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
