"""The jobs, their models and their slides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["JOBS", "Job", "model_of", "quick", "slide_of"]

SLIDES = Path(__file__).resolve().parents[2] / ".benchmarks"


@dataclass(frozen=True)
class Job:
    """Windows of a slide through a model.

    Attributes:
        name: as in the README.
        kernel, stride: in pixels of level 0.
        width, height: of the slide.
        model: ``thin``, ``map``, ``resnet18`` or ``null``.
        peers: whether the peers run as well.
    """

    name: str
    kernel: int
    stride: int
    width: int = 16384
    height: int = 16384
    model: str = "thin"
    peers: bool = True

    @property
    def columns(self) -> int:
        return (self.width - self.kernel) // self.stride + 1

    @property
    def rows(self) -> int:
        return (self.height - self.kernel) // self.stride + 1

    @property
    def windows(self) -> int:
        return self.rows * self.columns

    def corners(self) -> Iterator[tuple[int, int]]:
        """The windows' ``(x, y)``, row by row."""
        for row in range(self.rows):
            for column in range(self.columns):
                yield column * self.stride, row * self.stride

    def tiles(self, tile: int = 256) -> list[int]:
        """Numbers of the tiles that the windows need, in order."""
        across = -(-self.width // tile)
        columns = {x // tile for c in range(self.columns) for x in self._span(c, tile)}
        rows = {y // tile for r in range(self.rows) for y in self._span(r, tile)}
        return [row * across + column for row in sorted(rows) for column in sorted(columns)]

    def _span(self, i: int, tile: int) -> range:
        first = i * self.stride
        return range(first // tile * tile, first + self.kernel, tile)


JOBS = (
    Job("aligned", 256, 256),
    Job("overlap", 256, 128),
    Job("unaligned", 224, 224),
    Job("dense", 512, 64, height=2048),
    Job("resnet18", 224, 224, 7168, 7168, "resnet18"),
    Job("null", 256, 64, model="null", peers=False),
    Job("scale-1g", 256, 256, 32768, 32768, peers=False),
    Job("scale-4g", 256, 256, 65536, 65536, peers=False),
)


def quick(job: Job) -> Job:
    """The job on a slide of a sixteenth of the size."""
    return replace(job, width=max(2048, job.width // 4), height=max(1024, job.height // 4))


def slide_of(job: Job) -> Path:
    """The job's slide, painted where it is not there yet."""
    path = SLIDES / f"{job.width}x{job.height}.svs"
    if not path.is_file():
        from streamwsi.geometry import Size
        from streamwsi.testing.synthetic import write_slide

        SLIDES.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        write_slide(unfinished, Size(job.width, job.height))
        unfinished.rename(path)
    return path


def model_of(name: str) -> Any:
    """The model, in evaluation mode, with weights that depend on nothing but its name."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "resnet18":
        from .resnet import resnet18

        return resnet18().eval()

    if name == "map":
        return nn.Conv2d(3, 2, 1, stride=2).eval()

    class Thin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return y.mean((2, 3))

    return Thin().eval()
