"""Darkness: a model that is trivially exact, for its values are means of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..chunks import Batch
from ..processors.base import BatchProcessor
from .fiducials import WHITE

__all__ = ["Darkness"]


@dataclass(frozen=True, slots=True)
class Darkness(BatchProcessor[npt.NDArray[np.float32]]):
    """How dark a window is, 0 (white) … 1, or each of its cells.

    Attributes:
        cells: per side of the map of a window; 0 for a vector.
        classes: how many channels; with several, channel i is the largest where the darkness is
            nearest to ``i / (classes - 1)``.
    """

    cells: int = 0
    classes: int = 1

    def compute(self, batch: Batch) -> npt.NDArray[np.float32]:
        """``(n, classes)`` or ``(n, classes, cells, cells)``."""
        n, height, width = batch.pixels.shape[:3]
        side = self.cells or 1
        parts = batch.pixels[..., 0].reshape(n, side, height // side, side, width // side)
        dark = 1 - parts.mean(axis=(2, 4), dtype=np.float64) / WHITE
        if self.classes > 1:
            steps = np.arange(self.classes)[:, None, None] / (self.classes - 1)
            values = -np.abs(dark[:, None] - steps)
        else:
            values = dark[:, None]
        found: npt.NDArray[np.float32] = values.astype(np.float32)
        return found if self.cells else found.reshape(n, self.classes)
