"""A processor of one's own: brightness and contrast per window, without a model.

    python examples/own_processor.py OUT SLIDE...

A frozen dataclass that overrides `compute` is all there is to it; it runs in a thread, and its
fields identify the results.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamwsi import Batch, Pipeline, run_sync
from streamwsi.processors import BatchProcessor
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import Pdmcsv
from streamwsi.sources import TiffSource


@dataclass(frozen=True, slots=True)
class BrightnessAndContrast(BatchProcessor[npt.NDArray[np.float32]]):
    """Mean and standard deviation of the grey values, ``(n, 2)``."""

    white: float = 255.0

    def compute(self, batch: Batch) -> npt.NDArray[np.float32]:
        """See `BatchProcessor`."""
        grey = batch.pixels.mean(axis=3, dtype=np.float32) / self.white
        return np.stack([grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))], axis=1)


def main(out: str, slides: list[str]) -> None:
    """Write ``OUT/<slide>.csv`` for each slide."""
    report = run_sync(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(kernel_size=256),
            processor=BrightnessAndContrast(batch_size=64),
            sink=Pdmcsv(out),
        ),
        slides,
    )
    report.raise_for_failures()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
