"""``streamwsi demo``: the main job on a slide that the project paints itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamwsi.errors import CannotWrite
from streamwsi.limits import Limits
from streamwsi.slides import SlideRef

from .terminal import Debug, errors_as_sentences, run_interruptible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from streamwsi.pipelines import Pipeline

__all__ = ["demo"]

_KERNEL, _STRIDE = 256, 128
_CLEAR = 0.1


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the slide and the outputs.")] = Path(
        "streamwsi-demo"
    ),
    debug: Debug = False,
) -> None:
    """Paint an H&E-like slide, write its hematoxylin heatmap, and a picture of both."""
    with errors_as_sentences(debug):
        slide = out / "demo.svs"
        _paint(slide)
        outputs = [*_heatmaps(slide, out), run_interruptible(lambda: _overlay(slide, out))]
        print("\nLook at the picture first:")
        for name, path in zip(("zarr heatmap", "pdmcsv file", "overlay"), outputs, strict=True):
            print(f"  {name:<13} {path}")


def _paint(slide: Path) -> None:
    if slide.is_file():
        print(f"The slide is there already: {slide}")
        return
    from streamwsi.testing.synthetic import write_slide

    began = time.perf_counter()
    print("Painting a slide of 8192 × 8192 pixels …")
    try:
        slide.parent.mkdir(parents=True, exist_ok=True)
        write_slide(slide)
    except OSError as error:
        raise CannotWrite(f"{slide} cannot be written: {error.strerror}") from error
    print(f"  {slide} ({time.perf_counter() - began:.1f} s)")


def _heatmaps(slide: Path, out: Path) -> list[Path]:
    from .running import run_reported

    report = run_reported(_pipeline(out), [slide], Limits(), overwrite=False, as_json=False)
    if report.failures:
        raise typer.Exit(2 if report.misconfigured else 1)
    return [Path(path) for path in report.outcomes[0].outputs]


def _pipeline(out: Path) -> Pipeline[Any]:
    from streamwsi.pipelines import Pipeline
    from streamwsi.processors.torch_module import TorchModule
    from streamwsi.samplers.sliding_window import SlidingWindow
    from streamwsi.sinks.heatmap_zarr import HeatmapZarr
    from streamwsi.sinks.pdmcsv import Pdmcsv
    from streamwsi.sinks.tee import Tee
    from streamwsi.sources.tiff import TiffSource

    return Pipeline(
        source=TiffSource(),
        sampler=SlidingWindow(kernel_size=_KERNEL, stride=_STRIDE),
        processor=TorchModule("hematoxylin"),
        sink=Tee(HeatmapZarr(str(out)), Pdmcsv(str(out))),
    )


async def _overlay(slide: Path, out: Path) -> Path:
    """Write the heatmap over the slide's coarsest level as a PNG."""
    import zarr.api.asynchronous as zarr

    from streamwsi.geometry import Box
    from streamwsi.pictures import overlay, value_range, with_legend, write_png
    from streamwsi.sources.tiff import TiffSource
    from streamwsi.thumbnails import thumbnail_rgb
    from streamwsi.workers import open_workers

    group = await zarr.open_group(str(out / f"{slide.stem}.zarr"), mode="r")
    array: Any = await group.getitem("0")
    values: npt.NDArray[np.float32] = (await array.getitem(...))[0]
    async with (
        open_workers(Limits(workers=1, memory="256MiB")) as workers,
        TiffSource().open(SlideRef.of(slide), workers) as reader,
    ):
        level, thumbnail = await thumbnail_rgb(reader)
        factor = level.downsample[0]
    rows, columns = values.shape
    # A cell stands for the middle of its window, a stride wide: the cells then tile the plane.
    margin = (_KERNEL - _STRIDE) / 2
    box = Box(
        round(margin / factor),
        round(margin / factor),
        round(columns * _STRIDE / factor),
        round(rows * _STRIDE / factor),
    )
    path = out / "demo-overlay.png"
    try:
        # Glass holds next to no hematoxylin: it stays clear, and the tissue stands out.
        picture = overlay(thumbnail, values, box, fade=_CLEAR)
        write_png(path, with_legend(picture, *value_range(values)))
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}") from error
    return path
