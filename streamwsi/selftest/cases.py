"""What the self-test computes on a slide: windows at every level, stride, padding and resolution,
with each blend and number type, and what is written of each.

Windows are as small as the level's size allows for some hundreds of them a side: then spots that
are several cells wide fit into the corners, and nothing depends on a slide's size but the number
of tiles that hold a spot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, get_args

from ..blending import Blend
from ..geometry import Size
from ..samplers.sliding_window import SlidingWindow
from ..slides import PyramidLevel, Slide

__all__ = ["CELLS", "Case", "cases"]

CELLS = 8
"""Cells per side of a window's map."""

_BLENDS: tuple[Blend, ...] = get_args(Blend)
_CLASSES = 200
_SPOT, _MAP_SPOT = 8.0, 16.0
#: Most windows and cells along a level's longer side.
_MOST_WINDOWS, _MOST_CELLS, _MOST_LABELS = 512, 1024, 2048
_TABLES = ("features-zarr", "features-hdf5", "pdmcsv")
_ASSUMED_MPP = 0.25
_MOST_RESAMPLED = 1 << 25


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
    """All cases for a slide: level 0 with everything, the other levels and pixel sizes between them
    with what depends on the resolution. Those that the slide is too small for cannot be placed."""
    base = slide.level(0)
    yield from _vectors("level 0", base, {"level": 0}, (1, 1 / 2, 3 / 4, 5 / 4))
    yield from _maps("level 0", base, {"level": 0}, _BLENDS)
    yield from _edges(base)
    yield from _types(base)
    # Pixel sizes between those of the levels: by a factor that is no integer, and by one that is.
    mpp = slide.pyramid.mpp.x if slide.pyramid.mpp else _ASSUMED_MPP
    others: list[tuple[str, PyramidLevel, dict[str, Any]]] = [
        (f"level {level.index}", level, {"level": level.index})
        for level in slide.pyramid.levels[1:]
    ]
    # Whole rows of a level are resampled, so that it is not done with the largest.
    small = [level for level in slide.pyramid.levels if prod(level.size) <= _MOST_RESAMPLED]
    source = (small or slide.pyramid.levels[-1:])[0]
    mpp *= source.downsample[0]
    for factor in (1.3, 3.0):
        size = Size(*(max(1, int(n / factor)) for n in source.size))
        resolution = {"mpp": mpp * factor, "assume_mpp": _ASSUMED_MPP}
        others.append((f"{mpp * factor:.4g} µm per pixel", replace(base, size=size), resolution))
    for number, (what, level, resolution) in enumerate(others):
        yield from _vectors(what, level, resolution, (1 / 2, 3 / 4))
        blend = _BLENDS[number % len(_BLENDS)]
        yield from _maps(what, level, resolution, (blend,))


def _kernel(level: PyramidLevel) -> int:
    """A window for vectors: a power of two."""
    few = max(16, _power(max(level.size) / _MOST_WINDOWS))
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


def _vectors(
    what: str, level: PyramidLevel, resolution: dict[str, Any], strides: Iterable[float]
) -> Iterator[Case]:
    """Windows that are strides apart, given in windows, and some that are not square."""
    k = _kernel(level)
    outputs: tuple[str, ...] = ("zarr", *_TABLES, "csv")
    for share in strides:
        stride = max(1, int(k * share))
        # Of other strides the raster's cells are covered unevenly.
        more = ("raster", "ome-tiff", "parquet") if share in (1, 1 / 2) else ()
        sampler = SlidingWindow(k, stride, **resolution)
        yield Case(f"{what}, windows {k}, stride {stride}", sampler, _SPOT, (*outputs, *more))
    half = max(1, k // 2)
    sampler = SlidingWindow((2 * k, k), (k, half), **resolution)
    windows = f"{what}, windows {2 * k}×{k}, stride {k}×{half}"
    outputs = "zarr", "features-zarr", "ome-tiff", "geojson"
    yield Case(windows, sampler, _SPOT, outputs, snapped=True)


def _maps(
    what: str, level: PyramidLevel, resolution: dict[str, Any], blends: Sequence[Blend]
) -> Iterator[Case]:
    """Maps, each blend with windows that overlap by a quarter; and side by side at level 0."""
    cell = _cell(level)
    kernel, what = CELLS * cell, f"{what}, maps of {cell}-pixel cells"
    outputs: tuple[str, ...]
    for number, blend in enumerate(blends):
        outputs = ("zarr",) if number else ("zarr", "pdmcsv", "csv", "ome-tiff")
        sampler = SlidingWindow(kernel, 3 * kernel // 4, **resolution)
        sink = {"blend": blend}
        windows = f"{what}, stride {3 * kernel // 4}, {blend}"
        yield Case(windows, sampler, _MAP_SPOT, outputs, CELLS, sink=sink)
    if resolution == {"level": 0}:
        sampler = SlidingWindow(kernel, kernel)
        outputs = "zarr", "pdmcsv", "raster", "csv", "ome-tiff", "geojson", "png"
        windows = f"{what}, stride {kernel}"
        yield Case(windows, sampler, _MAP_SPOT, outputs, CELLS, snapped=True)


def _edges(level: PyramidLevel) -> Iterator[Case]:
    """Paddings, offsets and halos."""
    k, cell = _kernel(level), _cell(level)
    kernel = CELLS * cell
    for pad in ("white", "reflect"):
        edges: dict[str, Any] = {"padding": "same", "pad": pad}
        for size, cells, radius, outputs in (
            (k, 0, _SPOT, ("zarr", *_TABLES, "csv")),
            (kernel, CELLS, _MAP_SPOT, ("zarr", "pdmcsv", "ome-tiff")),
        ):
            offset = size // 4, size // 8
            sampler = SlidingWindow(size, max(1, size // 2), offset=offset, **edges)
            kind = "maps" if cells else "windows"
            windows = f"level 0, {kind} {size}, padding same, {pad}, offset {offset[0]},{offset[1]}"
            yield Case(windows, sampler, radius, outputs, cells)
    outputs = "zarr", "csv", "ome-tiff"
    shift = SlidingWindow(kernel, kernel // 2, padding="shift", align=cell)
    yield Case(f"level 0, maps {kernel}, padding shift", shift, _MAP_SPOT, outputs, CELLS)
    halo = SlidingWindow(kernel, halo=2 * cell, align=cell)
    windows = f"level 0, maps {kernel}, halo {2 * cell}, crop"
    yield Case(windows, halo, _MAP_SPOT, outputs, CELLS, sink={"blend": "crop"})


def _types(level: PyramidLevel) -> Iterator[Case]:
    """Numbers of other types, and labels."""
    outputs: tuple[str, ...] = ("zarr", "csv", "ome-tiff")
    kernel = CELLS * _cell(level)
    half = SlidingWindow(kernel, kernel // 2)
    float16 = {"dtype": "float16"}
    yield Case(f"level 0, maps {kernel}, float16", half, _MAP_SPOT, outputs, CELLS, sink=float16)
    labels: dict[str, Any] = {"classes": _CLASSES, "snapped": True, "sink": {"dtype": "labels"}}
    cell, k = _cell(level, _MOST_LABELS), _kernel(level)
    whole, half = SlidingWindow(CELLS * cell), SlidingWindow(k, max(1, k // 2))
    # Labels are picked, not averaged: larger spots, where there is room.
    spot = 2 * _MAP_SPOT if min(level.size) > 8 * _MAP_SPOT * cell else _MAP_SPOT
    windows = f"level 0, maps {CELLS * cell}, labels"
    yield Case(windows, whole, spot, (*outputs, "geojson"), CELLS, **labels)
    yield Case(f"level 0, windows {k}, labels", half, _SPOT, outputs, **labels)
