"""``streamwsi heatmap``: the main job."""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamwsi.errors import ConfigError
from streamwsi.limits import Limits
from streamwsi.manifests import find_slides

from .choosing import Masking, per_slide
from .running import run_reported
from .terminal import Debug, Json, errors_as_sentences
from .windows import Padding, corner, sliding_window
from .writing import Writing

if TYPE_CHECKING:
    from streamwsi.pipelines import Pipeline
    from streamwsi.stages import Processor, Source

__all__ = ["heatmap"]


def heatmap(
    slides: Annotated[
        list[Path],
        typer.Argument(
            metavar="SLIDE...",
            show_default=False,
            help="Slides, folders of slides, patterns, and .txt or .csv lists of slides.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="hematoxylin, package.module:factory, a TorchScript file, or a .pt2 file of "
            "torch.export.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the outputs.", show_default=False)],
    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[=OUTPUT]",
            help="zarr (OUT/<slide>.zarr), pdmcsv (.csv), features-zarr (.features.zarr) or "
            "features-hdf5 (.h5), of one of the model's outputs; may be given several times.",
            show_default="zarr",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NUMBER", help="Which output, of a model that returns a dict or a tuple."
        ),
    ] = None,
    blend: Annotated[
        str | None,
        typer.Option(
            metavar="mean|gaussian|max|crop|last",
            help="What becomes of a heatmap's cells where the maps of several windows overlap.",
            show_default="mean; crop with a halo",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float16|labels",
            help="What a heatmap's cells are stored as; labels: 1 + the largest channel.",
            show_default="float32",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="What the model's channels are called."),
    ] = None,
    colors: Annotated[
        str | None,
        typer.Option(
            metavar="HEX,...",
            help="How a heatmap's channels, or the classes of labels, are shown: E69F00,56B4E9.",
            show_default="eight colours in turn",
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Cells per side of a heatmap's chunk.",
            show_default="256; 512 where maps are blended",
        ),
    ] = None,
    feature_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float16", help="What features are stored as.", show_default="float32"
        ),
    ] = None,
    kernel_size: Annotated[int, typer.Option(help="Width of a window in pixels.")] = 256,
    stride: Annotated[
        int | None,
        typer.Option(help="Distance between windows in pixels.", show_default="kernel size"),
    ] = None,
    level: Annotated[
        int | None, typer.Option(help="Pyramid level; 0 is the finest.", show_default="0")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Instead of a level: micrometres per pixel of the windows."),
    ] = None,
    power: Annotated[
        float | None, typer.Option(help="Instead of a level: the windows' magnification.")
    ] = None,
    assume_mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per level-0 pixel of slides that do not say it."),
    ] = None,
    padding: Annotated[
        Padding | None,
        typer.Option(
            help="valid: windows inside the level. same: windows that cover it, with white beyond "
            "its edge. same-reflect: with the level mirrored there. shift: windows inside it that "
            "cover it, the last of each axis moved back to its edge.",
            show_default="valid; shift with a halo",
        ),
    ] = None,
    offset: Annotated[
        str, typer.Option(metavar="X,Y", help="A window's corner, in pixels of the level.")
    ] = "0,0",
    halo: Annotated[
        int | None,
        typer.Option(
            help="Pixels at each edge of a window whose outputs are not used: the stride becomes "
            "the kernel size less twice the halo. For maps as of the whole level at once.",
            show_default="none",
        ),
    ] = None,
    align: Annotated[
        int,
        typer.Option(help="With a halo or padding shift: windows lie at multiples of this."),
    ] = 1,
    batch_size: Annotated[int, typer.Option(help="Windows per call of the model.")] = 32,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:N, or several: cuda:0,cuda:1.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 or fp16 by autocast.")] = "fp32",
    compile_model: Annotated[
        bool, typer.Option("--compile", help="Translate a Python model by torch.compile first.")
    ] = False,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Subtracted from pixels in 0…1.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Pixels are divided by it afterwards.")
    ] = None,
    invalid: Annotated[
        str,
        typer.Option(
            metavar="nan|fail|R,G,B",
            help="Windows on damaged tiles become NaN, end the slide, or are computed with the "
            "damage in this colour.",
        ),
    ] = "nan",
    tissue: Annotated[
        str,
        typer.Option(
            metavar="auto|none|FILE",
            help="Only windows on tissue: found on each slide, or what is not black in a PNG or "
            "TIFF, or the outlines in a GeoJSON.",
        ),
    ] = "none",
    tissue_fraction: Annotated[
        float, typer.Option(help="Share of a window that must be on the tissue, and in the ROI.")
    ] = 0.05,
    roi: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only windows in these outlines: GeoJSON in level-0 pixels."
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Called on each window, an array (height, width, channels), before the model.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Decoding processes.", show_default="one per core")
    ] = None,
    memory: Annotated[str, typer.Option(help="Budget for pixels, batches and outputs.")] = "2GiB",
    reads_per_second: Annotated[
        float | None,
        typer.Option(help="Tiles read and decoded per second at most.", show_default="no limit"),
    ] = None,
    nice: Annotated[
        int | None,
        typer.Option(help="Added to the decoding processes' niceness.", show_default="0"),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Begin existing outputs anew instead of completing them."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a model over slides and write a heatmap of each, or its features, or several at once.

    The same command completes what an interrupted run began. A slide that fails is reported,
    and the others finish.
    """
    with errors_as_sentences(debug):
        limits = Limits(
            workers=workers, memory=memory, reads_per_second=reads_per_second, nice=nice
        )
        source = _source(invalid)
        writing = Writing.read(
            sink or ["zarr"],
            output,
            out,
            blend=blend,
            dtype=dtype,
            colours=_words(colors),
            chunk=chunk,
            feature_dtype=feature_dtype,
            halo=bool(halo),
        )
        listed = find_slides(slides, source.accepts)
        sampler = per_slide(
            listed,
            partial(
                sliding_window,
                kernel_size,
                stride,
                padding,
                assume_mpp=assume_mpp,
                offset=corner(offset),
                halo=halo,
                align=align,
            ),
            {"level": level, "mpp": mpp, "power": power},
            Masking.read(tissue, tissue_fraction, roi),
        )
        pipeline = _pipeline(
            source=source,
            sampler=sampler,
            processor=_processor(
                transform,
                model=model,
                batch_size=batch_size,
                device=device,
                mean=_floats("--mean", mean),
                std=_floats("--std", std),
                precision=precision,
                compile=compile_model,
                channel_names=_words(channels),
                output=writing.output,
            ),
            sink=writing.sink,
        )
        refs = [each.ref for each in listed]
        report = run_reported(pipeline, refs, limits, overwrite, as_json)
        for outcome in report.failures:
            if debug and outcome.cause is not None:
                traceback.print_exception(outcome.cause)
        raise typer.Exit(2 if report.misconfigured else 1 if report.failures else 0)


def _pipeline(**stages: Any) -> Pipeline[Any]:
    from streamwsi.pipelines import Pipeline

    return Pipeline(**stages)


def _processor(transform: str | None, **settings: Any) -> Processor[Any]:
    from streamwsi.processors.torch_module import TorchModule

    processor = TorchModule(**settings)
    return processor if transform is None else _transformed(processor, transform)


def _transformed(processor: Processor[Any], transform: str) -> Processor[Any]:
    from streamwsi.functions import function_named
    from streamwsi.processors.transformed import Transformed

    try:
        return Transformed(processor, window=function_named(transform))
    except ConfigError as error:
        raise ConfigError(f"--transform {error}") from error


def _source(invalid: str) -> Source:
    from streamwsi.sources.invalid import Filled, Strict

    from .opening import any_source

    if invalid == "nan":
        return any_source()
    if invalid == "fail":
        return Strict(any_source())
    try:
        colour = _floats("--invalid", invalid)
    except ConfigError as error:
        raise ConfigError(
            f"--invalid {invalid!r} is none of nan, fail and a colour like 255,255,255"
        ) from error
    return Filled(any_source(), colour or ())


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _floats(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a list of numbers like 0.7,0.6,0.7") from None
