"""The whole way on real slides, against a slow and obvious reference.

For every slide: ``info`` says what the header says, and the heatmap of several plans equals the
model called on one crop after the other of tifffile's whole level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
import zarr

from streamwsi import Limits, Pipeline, run
from streamwsi.processors import TorchModule
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr
from streamwsi.sources import TiffSource

SLIDES = (
    "aperio_jpeg_cmu1_small_region.svs",
    "aperio_jpeg2000_tcga.svs",
    "generic_boxes.tiff",
    "hamamatsu_fluorescence.ndpi",
    "ometiff_uint16_3ch_subifd.ome.tif",
    "edge/BigTIFFMotorola.tif",
    "edge/no_rows_per_strip.tiff",
    "edge/planar-rgb-u8.tif",
    "edge/rgb-3c-16b.tiff",
    "edge/tiled-rect-rgb-u8.tif",
    "edge/yb10kx5k.zstd.tiff",
)


class Moments(torch.nn.Module):
    """Per window and channel: the sum of the samples, exact in float64, and two corners.

    Sums of integers tell a single wrong pixel; the corners tell a shifted window.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counts = (x.double() * self.scale).round()
        parts = (counts.mean((2, 3)), counts[:, :, 0, 0], counts[:, :, -1, -1])
        return torch.cat(parts, 1).float()


def whole_level(path: Path, level: int) -> npt.NDArray[np.generic]:
    """tifffile's array of a level as ``(height, width, channels)``."""
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0].levels[level]
        pixels = series.asarray()
        if series.axes[0] in "CS":
            pixels = np.moveaxis(pixels, 0, -1)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


async def written(output: str) -> npt.NDArray[np.float32]:
    """The heatmap of a zarr output, ``(channels, rows, columns)``."""
    group = await zarr.api.asynchronous.open_group(output, mode="r")
    array: Any = await group.getitem("0")
    return np.asarray(await array.getitem(...))


def reference(
    pixels: npt.NDArray[np.generic], kernel: tuple[int, int], stride: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """``(channels · 3, rows, columns)``: mean, first and last pixel of each crop."""
    rows = (pixels.shape[0] - kernel[1]) // stride[1] + 1
    columns = (pixels.shape[1] - kernel[0]) // stride[0] + 1
    values = np.zeros((3 * pixels.shape[2], rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            y, x = row * stride[1], column * stride[0]
            crop = pixels[y : y + kernel[1], x : x + kernel[0]].astype(np.float64)
            values[:, row, column] = np.concatenate([crop.mean((0, 1)), crop[0, 0], crop[-1, -1]])
    return values


def plans(width: int, height: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Kernels and strides: many small windows to the edges, unaligned ones, one window only."""
    small = max(1, min(width, height) // 7)
    middle = max(1, min(width, height, 1500) // 2 + 1)
    some = [
        ((small, small), (max(1, small // 2 + 1),) * 2),
        ((middle, max(1, middle - 3)), (max(1, width // 5), max(1, height // 9))),
    ]
    # The model wants 16 bytes and more per sample of a window.
    return [*some, ((width, height), (1, 1))] if width * height < 4e6 else some


@pytest.mark.parametrize("name", SLIDES)
async def test_heatmap_equals_the_slow_reference(shared: Path, name: str, tmp_path: Path) -> None:
    path = shared / "slides" / name
    with tifffile.TiffFile(path) as tiff:
        levels = len(tiff.series[0].levels)
    for level in range(levels):
        pixels = whole_level(path, level)
        scale = np.iinfo(str(pixels.dtype)).max
        for i, (kernel, stride) in enumerate(plans(pixels.shape[1], pixels.shape[0])):
            out = tmp_path / f"{level}-{i}"
            report = await run(
                Pipeline(
                    source=TiffSource(),
                    sampler=SlidingWindow(kernel, stride, level),
                    processor=TorchModule(Moments(float(scale)), batch_size=7),
                    sink=HeatmapZarr(str(out)),
                ),
                [path],
                limits=Limits(worker_kind="threads", workers=2),
            )
            report.raise_for_failures()
            outcome = report.outcomes[0]
            assert outcome.tiles_decoded == outcome.distinct_tiles
            found = await written(outcome.outputs[0])
            expected = reference(pixels, kernel, stride)
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=f"{level} {kernel}")


@pytest.mark.parametrize(
    ("name", "tiles"),
    [
        ("jpeg_zero_bytecount_lastcol", 13),
        ("jpeg_bytecount_halved_1tile", 1),
        ("jpeg_garbage_1tile", 1),
        ("jpeg_offset_past_eof_1tile", 1),
        ("jpeg2000_garbage_1tile", 1),
    ],
)
async def test_damaged_tiles_become_nan_and_nothing_else_does(
    shared: Path, name: str, tiles: int, tmp_path: Path
) -> None:
    path = shared / "slides" / "broken" / f"{name}.svs"
    whole = {"jpeg2": "aperio_jpeg2000_tcga.svs"}.get(name[:5], "aperio_jpeg_cmu1_small_region.svs")
    pixels = whole_level(shared / "slides" / whole, 0)
    report = await run(
        Pipeline(
            source=TiffSource(),
            sampler=SlidingWindow(100, 60),
            processor=TorchModule(Moments(255.0)),
            sink=HeatmapZarr(str(tmp_path)),
        ),
        [path],
        limits=Limits(workers=2),
    )
    outcome = report.outcomes[0]
    assert outcome.status == "done"
    assert outcome.damaged_tiles == tiles
    found = await written(outcome.outputs[0])
    expected = reference(pixels, (100, 100), (60, 60))
    for row, column in np.ndindex(*expected.shape[1:]):
        y, x = row * 60, column * 60
        hit = any(
            d.box.x < x + 100 and x < d.box.right and d.box.y < y + 100 and y < d.box.bottom
            for d in outcome.damage
        )
        if hit:
            assert np.isnan(found[:, row, column]).all()
        else:
            np.testing.assert_allclose(found[:, row, column], expected[:, row, column], rtol=1e-6)
    assert outcome.invalid == np.isnan(found[0]).sum() > 0
