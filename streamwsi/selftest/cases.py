"""What the self-test computes on a slide: windows at every level, stride, padding and resolution,
with each blend and number type, and what is written of each.

Windows are as small as the level's size allows for some hundreds of them a side: then spots that
are several cells wide fit into the corners, and nothing depends on a slide's size but the number
of tiles that hold a spot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..blending import BLENDS
from ..samplers.sliding_window import SlidingWindow
from ..geometry import Size
from ..slides import PyramidLevel, Slide

__all__ = ["CELLS", "Case", "cases"]

CELLS = 8
"""Cells per side of a window's map."""

_CLASSES = 200
_SPOT, _MAP_SPOT = 8.0, 16.0
#: Most windows and cells along a level's longer side.
_MOST_WINDOWS, _MOST_CELLS, _MOST_LABELS = 1024, 1600, 4096
_TABLES = ("features-zarr", "features-hdf5", "pdmcsv")
_ASSUMED_MPP = 0.25


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Attributes:
        windows: what is computed, in words.
        sampler: the windows.
        radius: of a spot, in cells of the output, or in windows or strides, if larger.
        outputs: names of what is read; see `streamwsi.selftest.checking`.
        cells: per side of a window's map; 0 for vectors.
        classes: channels of the model.
        snapped: whether spots are to be symmetric on the cells.
        sink: further arguments of `HeatmapZarr`.
    """

    windows: str
    sampler: SlidingWindow
    radius: float
    outputs: tuple[str, ...]
    cells: int = 0
    classes: int = 1
    snapped: bool = False
    sink: Any = None


def cases(slide: Slide) -> Iterator[Case]:
    """All cases for a slide; those that its levels are too small for cannot be placed."""
    for level in slide.pyramid.levels:
        what = f"level {level.index}"
        yield from _vectors(what, level, {"level": level.index})
        yield from _maps(what, level, {"level": level.index})
    yield from _edges(slide.level(0))
    yield from _types(slide.level(0))
    yield from _resampled(slide)


def _kernel(level: PyramidLevel) -> int:
    """A window for vectors: a power of two."""
    few = max(8, _power(max(level.size) / _MOST_WINDOWS))
    return min(few, max(1, _power(min(level.size) / (5 * _SPOT)) // 2))


def _cell(level: PyramidLevel, most: int = _MOST_CELLS) -> int:
    """A cell of maps: a power of two."""
    few = max(2, _power(max(level.size) / most))
    return min(few, max(1, _power(min(level.size) / (4 * _MAP_SPOT)) // 2))


def _power(least: float) -> int:
    """The smallest power of two that is at least that."""
    n = 1
    while n < least:
        n *= 2
    return n


def _vectors(what: str, level: PyramidLevel, resolution: dict[str, Any]) -> Iterator[Case]:
    k = _kernel(level)
    for stride, outputs in (
        (k, ("zarr", *_TABLES, "raster", "csv", "ome-tiff")),
        (k // 2 or 1, ("zarr", *_TABLES, "raster", "csv", "parquet", "ome-tiff")),
        (max(1, 3 * k // 4), ("zarr", *_TABLES, "csv", "ome-tiff")),
        (k + max(1, k // 4), ("zarr", *_TABLES, "csv")),
    ):
        sampler = SlidingWindow(k, stride, **resolution)
        yield Case(f"{what}, windows {k}, stride {stride}", sampler, _SPOT, outputs)
    sampler = SlidingWindow((2 * k, k), (k, k // 2 or 1), **resolution)
    outputs = "zarr", "features-zarr", "csv", "ome-tiff", "geojson"
    windows = f"{what}, windows {2 * k}×{k}, stride {k}×{k // 2 or 1}"
    yield Case(windows, sampler, _SPOT, outputs, snapped=True)


def _maps(what: str, level: PyramidLevel, resolution: dict[str, Any]) -> Iterator[Case]:
    cell = _cell(level)
    kernel = CELLS * cell
    for stride in (kernel, 3 * kernel // 4):
        sampler = SlidingWindow(kernel, stride, **resolution)
        blends = BLENDS if stride < kernel else BLENDS[:1]
        for blend in blends:
            outputs: tuple[str, ...] = ("zarr",)
            if blend == BLENDS[0]:
                outputs = "zarr", "pdmcsv", "raster", "csv", "ome-tiff"
            windows = f"{what}, maps of {cell}-pixel cells, stride {stride}, {blend}"
            yield Case(windows, sampler, _MAP_SPOT, outputs, CELLS, sink={"blend": blend})
    windows = f"{what}, maps of {cell}-pixel cells, outlines and picture"
    sampler = SlidingWindow(kernel, kernel // 2, **resolution)
    yield Case(windows, sampler, _MAP_SPOT, ("geojson", "png"), CELLS, snapped=True)


def _edges(level: PyramidLevel) -> Iterator[Case]:
    """Paddings, offsets and halos."""
    k, kernel = _kernel(level), CELLS * _cell(level)
    for pad in ("white", "reflect"):
        for offset in ((0, 0), (k // 4, k // 2)):
            sampler = SlidingWindow(k, k // 2 or 1, padding="same", pad=pad, offset=offset)
            windows = f"level 0, windows {k}, padding same, {pad}, offset {offset[0]},{offset[1]}"
            yield Case(windows, sampler, _SPOT, ("zarr", *_TABLES, "csv", "ome-tiff"))
        sampler = SlidingWindow(
            kernel, kernel // 2, padding="same", pad=pad, offset=(kernel // 4, kernel // 8)
        )
        windows = f"level 0, maps, padding same, {pad}, offset {kernel // 4},{kernel // 8}"
        yield Case(windows, sampler, _MAP_SPOT, ("zarr", "pdmcsv", "csv", "ome-tiff"), CELLS)
    cell = kernel // CELLS
    for windows, more in (
        ("padding shift", {"stride": kernel // 2, "padding": "shift"}),
        ("halo", {"halo": 2 * cell}),
    ):
        sampler = SlidingWindow(kernel, align=cell, **more)  # type: ignore[arg-type]
        for blend in ("mean", "crop"):
            outputs = ("zarr", "csv", "ome-tiff")
            name = f"level 0, maps, {windows}, {blend}"
            yield Case(name, sampler, _MAP_SPOT, outputs, CELLS, sink={"blend": blend})


def _types(level: PyramidLevel) -> Iterator[Case]:
    """Numbers of other types, and labels."""
    kernel = CELLS * _cell(level)
    sampler = SlidingWindow(kernel, kernel // 2)
    outputs: tuple[str, ...] = ("zarr", "csv", "ome-tiff")
    windows = "level 0, maps, float16"
    yield Case(windows, sampler, _MAP_SPOT, outputs, CELLS, sink={"dtype": "float16"})
    kernel = CELLS * _cell(level, _MOST_LABELS)
    windows = f"level 0, maps of {kernel // CELLS}-pixel cells, labels"
    labels = {"dtype": "labels"}
    yield Case(
        windows,
        SlidingWindow(kernel),
        _MAP_SPOT,
        (*outputs, "geojson"),
        CELLS,
        _CLASSES,
        snapped=True,
        sink=labels,
    )
    k = _kernel(level)
    windows = f"level 0, windows {k}, labels"
    sampler = SlidingWindow(k, k // 2 or 1)
    yield Case(windows, sampler, _SPOT, outputs, 0, _CLASSES, snapped=True, sink=labels)


def _resampled(slide: Slide) -> Iterator[Case]:
    """Pixel sizes between those of the levels: by an integer factor, and by one that is none."""
    mpp = slide.pyramid.mpp.x if slide.pyramid.mpp else _ASSUMED_MPP
    base = slide.level(0)
    for factor in (1.3, 3.0):
        size = Size(int(base.size.width / factor), int(base.size.height / factor))
        resolution: dict[str, Any] = {"mpp": mpp * factor, "assume_mpp": _ASSUMED_MPP}
        level = replace(base, size=Size(max(1, size.width), max(1, size.height)))
        what = f"{mpp * factor:.4g} µm per pixel"
        yield from _vectors(what, level, resolution)
        yield from _maps(what, level, resolution)
