"""A heatmap as a pdmcsv file, asynchronously, with progress from the run's events.

python examples/heatmap_to_pdmcsv.py OUT SLIDE...
"""

import sys

import anyio

from streamwsi import Pipeline, run
from streamwsi.processors import TorchModule
from streamwsi.reports import Event, PiecesWritten
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import Pdmcsv
from streamwsi.sources import TiffSource


async def main(out: str, slides: list[str]) -> None:
    """Write ``OUT/<slide>.csv`` for each slide: mean hematoxylin of 128-pixel windows."""
    written = 0

    def count(event: Event) -> None:
        nonlocal written
        if isinstance(event, PiecesWritten):
            written += event.count

    pipeline = Pipeline(
        source=TiffSource(),
        sampler=SlidingWindow(kernel_size=128, stride=128),
        processor=TorchModule("hematoxylin", batch_size=64),
        sink=Pdmcsv(out),
    )
    report = await run(pipeline, slides, observers=[count])
    report.raise_for_failures()
    print(f"{written} windows of {len(report.outcomes)} slides")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2:])
