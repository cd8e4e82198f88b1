"""Models for the command line that take their time, so that a kill at random hits the run.

They also make the sinks record how far they are some times a second: between two records there
is nothing to resume, and these runs last seconds where real ones last hours.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from streamwsi.sinks import base

__all__ = ["cells", "vector"]

base.CHECKPOINT_S = 0.1
base.CHECKPOINT_SHARE = 1

_SLEEP_S = 0.04


class Slow(nn.Module):
    """Two channels of plain arithmetic, as one number each per window or as a map."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(_SLEEP_S)
        pooled = nn.functional.adaptive_avg_pool2d(images.contiguous(), self.cells)
        values = torch.cat([pooled[:, :1], pooled.sum(1, keepdim=True).sqrt()], 1)
        return values if self.cells > 1 else values[:, :, 0, 0]


def vector() -> nn.Module:
    """N×2."""
    return Slow(1)


def cells() -> nn.Module:
    """N×2×4×4."""
    return Slow(4)
