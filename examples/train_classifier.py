"""Train a small classifier on random windows of several slides, mixed.

    python examples/train_classifier.py SLIDE...

It learns which windows have much hematoxylin; labels of your own come from `batch.places`,
which say for each window on which slide and where it lies.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from streamwsi.processors.hematoxylin import Hematoxylin
from streamwsi.samplers import RandomPatches
from streamwsi.sources import TiffSource
from streamwsi.torch_dataset import PatchDataset


def main(slides: list[str], epochs: int = 3, threshold: float = 0.08) -> None:
    """Train for some steps and print what became of the loss."""
    torch.manual_seed(0)
    dataset = PatchDataset(
        TiffSource(), RandomPatches(160, 64), slides, batch_size=32, shuffle_buffer=128
    )
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    teacher, losses = Hematoxylin(), []
    for _ in range(epochs):
        for batch in DataLoader(dataset, batch_size=None):  # each time another shuffle
            images = batch.pixels.permute(0, 3, 1, 2) / 255
            labels = (teacher(images) > threshold).float()
            loss = nn.functional.binary_cross_entropy_with_logits(model(images), labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")


if __name__ == "__main__":
    main(sys.argv[1:])
