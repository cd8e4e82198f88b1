"""heatmaps: blocks and chunks partition the cells; transforms against pixel centres."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi import heatmaps
from streamwsi.errors import StageMismatch
from streamwsi.geometry import Grid, Size
from streamwsi.heatmaps import Block, Raster
from streamwsi.slides import Mpp, PyramidLevel


@st.composite
def rasters(draw: st.DrawFn) -> Raster:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kernel = Size(draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    stride = Size(draw(st.integers(1, kernel.width)), draw(st.integers(1, kernel.height)))
    size = Size(
        kernel.width + (columns - 1) * stride.width, kernel.height + (rows - 1) * stride.height
    )
    grid = Grid(size, kernel, stride, draw(st.integers(1, columns)))
    window = Size(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    return Raster(grid, draw(st.integers(1, 3)), window, draw(st.integers(1, 9)))


@settings(deadline=None, max_examples=200)
@given(rasters(), st.integers(1, 2000), st.integers(1, 2000))
def test_blocks_are_left_for_good_and_bounded(
    raster: Raster, chunk_bytes: int, block_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heatmaps, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(heatmaps, "_BLOCK_BYTES", block_bytes)
        grid, blocks = raster.grid, list[Block]()
        seen = np.zeros((grid.rows, grid.columns), np.int64)
        for run in grid.runs(0, grid.count):
            for column in range(run.column, run.column + run.count):
                block = raster.block(run.row, column)
                assert block.holds(run.row, column)
                if not blocks or block != blocks[-1]:
                    blocks.append(block)
                    seen[
                        block.row : block.row + block.rows,
                        block.column : block.column + block.columns,
                    ] += 1
        # Each window is in exactly one block, and no block is entered twice.
        assert (seen == 1).all()
        assert len(set(blocks)) == len(blocks)
        one = raster.channels * raster.window.width * raster.window.height * raster.itemsize
        for block in blocks:
            nbytes = block.rows * block.columns * one
            assert nbytes <= max(block_bytes, raster.chunk.width * one)
            assert block.row % raster.chunk.height == 0
            first, _ = grid.panel_at(block.column)
            assert block.column == first or block.column % raster.chunk.width == 0


@given(rasters())
def test_chunks_hold_whole_windows_and_reach_over_no_more_than_the_array(raster: Raster) -> None:
    for chunk, size, window in zip(
        raster.chunks[1:], raster.shape[1:], reversed(raster.window), strict=True
    ):
        assert chunk % window == 0
        assert 1 <= chunk <= size


@pytest.mark.parametrize(
    ("channels", "window", "columns", "chunk"),
    [
        (1, (1, 1), 1000, (256, 256)),
        (32, (1, 1), 1000, (128, 256)),  # 4 MiB a chunk
        (1024, (1, 1), 1000, (128, 8)),  # 32 MiB of rows at most
        (1, (8, 8), 1000, (32, 32)),
        (2, (224, 224), 400, (4, 1)),  # a row of windows is too heavy: one window high
        (3, (1024, 1024), 50, (1, 1)),  # a window is beyond the size of a chunk
        (1, (1, 1), 100, (100, 50)),  # no larger than the array
    ],
)
def test_chunks_of_common_shapes(
    channels: int, window: tuple[int, int], columns: int, chunk: tuple[int, int]
) -> None:
    grid = Grid(Size(columns * 4, columns * 2), Size(4, 4), Size(4, 4))
    assert Raster(grid, channels, Size(*window)).chunk == chunk


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3), (5, 0), (5, 1, 0, 2), (5, 1, 1, 1, 1)])
def test_values_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    grid = Grid(Size(9, 9), Size(3, 3), Size(3, 3))
    with pytest.raises(StageMismatch, match=r"\(n, C\) or \(n, C, h, w\)"):
        Raster.of_values(grid, shape, 256)


def test_maps_of_one_cell_are_vectors() -> None:
    grid = Grid(Size(9, 9), Size(3, 3), Size(2, 3))
    assert Raster.of_values(grid, (5, 7, 1, 1), 256).shape == (7, 3, 4)


@pytest.mark.parametrize("mpp", [None, Mpp(0.5, 0.25)])
@pytest.mark.parametrize(
    ("kernel", "stride", "downsample", "window"),
    [
        ((6, 4), (3, 2), (1, 1), (1, 1)),
        ((6, 4), (9, 5), (4, 2), (1, 1)),
        ((6, 4), (6, 4), (2, 3), (3, 2)),
        ((4, 4), (4, 4), (1, 1), (4, 2)),
    ],
)
def test_cells_lie_at_the_mean_of_their_pixels(
    mpp: Mpp | None,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    downsample: tuple[int, int],
    window: tuple[int, int],
) -> None:
    size = Size(kernel[0] + 4 * stride[0], kernel[1] + 4 * stride[1])
    raster = Raster(Grid(size, Size(*kernel), Size(*stride)), 1, Size(*window))
    level = PyramidLevel(1, size, (float(downsample[0]), float(downsample[1])), Size(8, 8))
    transform = raster.transform(level, mpp)
    assert transform.unit == ("micrometer" if mpp else None)
    micrometres = (mpp.x, mpp.y) if mpp else (1.0, 1.0)
    for axis in (0, 1):
        # Level-0 pixels of each cell in a row (or column) of windows, and their mean.
        starts = [
            (i * stride[axis] + j * kernel[axis] // window[axis]) * downsample[axis]
            for i in range(5)
            for j in range(window[axis])
        ]
        extent = kernel[axis] // window[axis] * downsample[axis]
        centres = [np.arange(s, s + extent).mean() * micrometres[axis] for s in starts]
        scale, translation = transform.scale[1 - axis], transform.translation[1 - axis]
        assert translation == pytest.approx(centres[0])
        assert [b - a for a, b in pairwise(centres)] == pytest.approx([scale] * (len(starts) - 1))
