"""Runs the cases of the self-test, one after another, and measures what they wrote."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio.to_thread

from ..chunks import Plan
from ..errors import ConfigError
from ..limits import Limits
from ..pipelines import Pipeline
from ..resolutions import assuming
from ..runs import run
from ..samplers.masked import Masked
from ..sinks.features_hdf5 import FeaturesHdf5
from ..sinks.features_zarr import FeaturesZarr
from ..sinks.heatmap_zarr import HeatmapZarr
from ..sinks.pdmcsv import Pdmcsv
from ..sinks.tee import Tee
from ..slides import Mpp, Slide
from . import reading, reading_exports
from .cases import Case, cases
from .darkness import Darkness
from .fiducials import Fiducial, FiducialMask, FiducialSource, blank
from .measuring import Finding, Marks, worst_error
from .placing import FINER, Pitch, place

__all__ = ["TOLERANCE", "Findings", "check_alignment"]

TOLERANCE = 0.5
"""Level-0 pixels that a fiducial may be off by; it must be less."""

_TINY = 1e-6
_BATCH = 128
_LABEL_PIXELS = 40.0
"""Labels are picked: of coarser cells than that, they do not tell where a spot is to a pixel."""

Read = Callable[[Path, Mpp | None], Iterator[Marks]]

_SINKS: dict[str, tuple[str, Any]] = {
    "zarr": ("fiducials.zarr", HeatmapZarr),
    "features-zarr": ("fiducials.features.zarr", FeaturesZarr),
    "features-hdf5": ("fiducials.h5", FeaturesHdf5),
    "pdmcsv": ("fiducials.csv", Pdmcsv),
}
#: What is read, from which sink's output.
_READERS: dict[str, tuple[str, Read]] = {
    "zarr": ("zarr", reading.zarr_image),
    "features-zarr": ("features-zarr", reading.features_zarr),
    "features-hdf5": ("features-hdf5", reading.features_hdf5),
    "pdmcsv": ("pdmcsv", reading.pdmcsv),
    "raster": ("pdmcsv", reading.pdmcsv_raster),
    "ome-tiff": ("zarr", reading_exports.ome_tiff),
    "geojson": ("zarr", reading_exports.geojson),
    "csv": ("zarr", reading_exports.csv_table),
    "parquet": ("zarr", reading_exports.parquet),
    "png": ("zarr", reading_exports.png),
}
_NEEDS = {
    "features-hdf5": "h5py",
    "geojson": "shapely",
    "parquet": "pyarrow",
    "png": "matplotlib",
}


@dataclass(slots=True)
class Findings:
    """What the self-test found.

    Attributes:
        findings: one per case and output.
        left_out: what was not checked, and why, in words.
    """

    findings: list[Finding] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def worst(self) -> Finding:
        """The one with the largest error."""
        return max(self.findings, key=lambda finding: finding.error)

    @property
    def failures(self) -> list[Finding]:
        """Those that are off by `TOLERANCE` or more."""
        return [finding for finding in self.findings if not finding.error < TOLERANCE]


async def check_alignment(
    slide: Slide, *, done: Callable[[int, int], None] = lambda done, of: None
) -> Findings:
    """Check that outputs line up with the slide, in a temporary folder.

    Args:
        slide: whose pyramid is used; none of its pixels are read.
        done: is told how many cases of how many are done.

    Raises:
        ConfigError: the slide is too small for a fiducial.
    """
    found = Findings()
    missing = {output for output, module in _NEEDS.items() if find_spec(module) is None}
    found.left_out += [f"{output}: {_NEEDS[output]} is not installed" for output in sorted(missing)]
    todo = [*cases(slide)]
    for number, case in enumerate(todo):
        await _check(slide, case, missing, found)
        done(number + 1, len(todo))
    if not found.findings:
        raise ConfigError(
            f"{slide.ref.uri}: {slide.level(0).size} pixels are too few for a fiducial; choose a "
            "larger slide"
        )
    return found


async def _check(slide: Slide, case: Case, missing: set[str], found: Findings) -> None:
    empty = assuming(blank(slide), case.sampler.assume_mpp)
    try:
        plan = case.sampler.plan(empty)
        pitch, radius = _pitch(case, plan)
        spots = place(plan, pitch, radius, case.snapped, "raster" in case.outputs)
    except ConfigError as error:
        found.left_out.append(f"{case.windows}: {error}")
        return
    outputs = [output for output in case.outputs if output not in missing]
    if case.sampler.kernel.width != case.sampler.kernel.height:
        outputs = [output for output in outputs if _READERS[output][0] != "pdmcsv"]
    margin = tuple(
        (radius * pitch.size[a] / FINER + plan.grid.kernel[a]) * plan.level.downsample[a]
        for a in (0, 1)
        if plan.grid is not None
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            sinks = {_READERS[output][0] for output in outputs}
            made = {name: Path(folder, _SINKS[name][0]) for name in sorted(sinks)}
            await _run(case, empty, spots, (margin[0], margin[1]), Path(folder), [*made])
            for output in outputs:
                sink, read = _READERS[output]
                found.findings += await anyio.to_thread.run_sync(
                    _measure, case, spots, read, made[sink], empty.pyramid.mpp
                )
        except Exception as error:  # an output that cannot be made or read is a finding too
            found.findings.append(Finding(case.windows, "all", math.inf, _first(error)))


async def _run(
    case: Case,
    slide: Slide,
    spots: tuple[Fiducial, ...],
    margin: tuple[float, float],
    folder: Path,
    sinks: list[str],
) -> None:
    opened = [
        _SINKS[name][1](folder, **(case.sink or {}) if name == "zarr" else {}) for name in sinks
    ]
    mask = FiducialMask(spots, margin)
    pipeline = Pipeline(
        source=FiducialSource(slide, spots),
        sampler=Masked(case.sampler, mask, _TINY),
        processor=Darkness(case.cells, case.classes, batch_size=_BATCH),
        sink=opened[0] if len(opened) == 1 else Tee(*opened),
    )
    limits = Limits(slides=1, worker_kind="threads")
    (await run(pipeline, [slide.ref], limits=limits)).raise_for_failures()


def _measure(
    case: Case, spots: tuple[Fiducial, ...], read: Read, path: Path, mpp: Mpp | None
) -> list[Finding]:
    """The findings in one output; levels whose cells are too coarse for the spots are none."""
    least = min(min(spot.radius) for spot in spots) / FINER
    if case.classes > 1:
        least = min(least / 2, _LABEL_PIXELS)
    found = []
    for number, marks in enumerate(read(path, mpp)):
        if number == 0 or marks.pitch <= least * (1 + _TINY):
            found.append(Finding(case.windows, marks.output, worst_error(marks, spots)))
    return found


def _pitch(case: Case, plan: Plan) -> tuple[Pitch, float]:
    """The output's cells, and a spot's radius in them."""
    assert plan.grid is not None
    kernel, stride, origin = plan.grid.kernel, plan.grid.stride, plan.grid.origin
    if case.cells:
        size = kernel.width / case.cells, kernel.height / case.cells
        return Pitch(size, (float(origin[0]), float(origin[1])), True), case.radius
    first = origin[0] + kernel.width / 2, origin[1] + kernel.height / 2
    wider = max(kernel[a] / stride[a] for a in (0, 1))
    return Pitch((stride.width, stride.height), first, False), case.radius * max(1.0, wider)


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
