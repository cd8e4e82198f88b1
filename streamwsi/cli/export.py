"""``streamwsi export``: heatmaps as files for other programs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from streamwsi.errors import ConfigError

from .terminal import Debug, errors_as_sentences, interruptible

__all__ = ["export"]


class Target(StrEnum):
    """What a heatmap becomes."""

    PNG = "png"
    OME_TIFF = "ome-tiff"
    GEOJSON = "geojson"
    CSV = "csv"
    PARQUET = "parquet"


_ENDINGS = {Target.OME_TIFF: ".ome.tiff"}
_TABLES = {Target.CSV, Target.PARQUET}
#: Options that count for some formats only, with their names in Python.
_PARTIAL = {
    "--channel": ("channel", {Target.PNG, Target.GEOJSON}),
    "--threshold": ("thresholds", {Target.GEOJSON}),
    "--slide": ("slide", {Target.PNG}),
    "--no-slide": ("plain", {Target.PNG}),
    "--colormap": ("colormap", {Target.PNG}),
    "--alpha": ("alpha", {Target.PNG}),
    "--range": ("value_range", {Target.PNG}),
    "--max-size": ("max_size", {Target.PNG}),
    "--all-windows": ("every", _TABLES),
}


def export(
    heatmaps: Annotated[list[Path], typer.Argument(metavar="HEATMAP.zarr...", show_default=False)],
    to: Annotated[Target, typer.Option("--to", help="The format.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder; or, of one heatmap, a file with the format's ending.",
            show_default="beside each heatmap",
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="png, geojson: its name or number.", show_default="the only one"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="A label image of the group, instead of the heatmap itself."),
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            help="geojson: regions at or above it; may be given several times.", show_default="0.5"
        ),
    ] = None,
    slide: Annotated[
        Path | None,
        typer.Option(
            help="png: the slide, or a folder that holds it.", show_default="beside the heatmap"
        ),
    ] = None,
    no_slide: Annotated[bool, typer.Option("--no-slide", help="png: the map on white.")] = False,
    colormap: Annotated[
        str | None, typer.Option(help="png: one of matplotlib's.", show_default="viridis")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="png: opacity of the map on the slide, 0 to 1.", show_default="0.5"),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="MIN,MAX",
            help="png: values of the first and the last colour.",
            show_default="lowest and highest",
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(help="png: pixels of the longer side at most.", show_default="2048"),
    ] = None,
    all_windows: Annotated[
        bool,
        typer.Option("--all-windows", help="csv, parquet: rows for windows not computed as well."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that are there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write heatmaps as pictures, OME-TIFF, outlines or tables.

    Heatmaps that are not finished are exported as far as they are. One that fails is reported, and
    the others go on.
    """
    with errors_as_sentences(debug), interruptible():
        options = _options(
            to,
            {
                "--channel": channel,
                "--threshold": threshold,
                "--slide": slide,
                "--no-slide": no_slide or None,
                "--colormap": colormap,
                "--alpha": alpha,
                "--range": None if range_ is None else _range(range_),
                "--max-size": max_size,
                "--all-windows": all_windows or None,
            },
        )
        files = _files(heatmaps, to, out, overwrite)
        codes = [
            _exported(to, heatmap, file, options | {"label": label, "overwrite": overwrite}, debug)
            for heatmap, file in files.items()
        ]
        raise typer.Exit(max(codes))


def _options(to: Target, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the format's function.

    Raises:
        ConfigError: an option is for other formats.
    """
    options = {}
    for option, value in given.items():
        name, targets = _PARTIAL[option]
        if value is None:
            continue
        if to not in targets:
            others = " and ".join(sorted(target.value for target in targets))
            raise ConfigError(f"{option} is for {others}, not for {to.value}")
        options[name] = value
    return options


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"--range {text!r} is not MIN,MAX, such as 0,1") from None
    return low, high


def _exported(to: Target, heatmap: Path, out: Path, options: dict[str, Any], debug: bool) -> int:
    """Export one heatmap; the exit code that belongs to it."""
    from streamwsi.exporting.heatmap import open_heatmap

    try:
        with errors_as_sentences(debug):
            note = open_heatmap(heatmap, options["label"]).unfinished
            made = _make(to, heatmap, out, options)
            if note is not None:
                print(f"warning: {note}", file=sys.stderr)
            print(f"{heatmap} -> {out} ({made})")
    except typer.Exit as end:
        return end.exit_code
    return 0


def _make(to: Target, heatmap: Path, out: Path, options: dict[str, Any]) -> str:
    """Write the file; what is in it."""
    from streamwsi import exporting

    if to is Target.PNG:
        from .opening import any_source

        slide = exporting.export_png(heatmap, out, source=any_source(), **options)
        if slide is None and not options.get("plain"):
            return "on white: its slide is not beside it; --slide says where it is"
        return "on white" if slide is None else f"over {slide}"
    if to is Target.OME_TIFF:
        return f"levels: {exporting.export_ome_tiff(heatmap, out, **options)}"
    if to is Target.GEOJSON:
        return f"polygons: {exporting.export_geojson(heatmap, out, **options):,}"
    table = exporting.export_csv if to is Target.CSV else exporting.export_parquet
    return f"rows: {table(heatmap, out, **options):,}"


def _files(heatmaps: list[Path], to: Target, out: Path | None, overwrite: bool) -> dict[Path, Path]:
    """The file for each heatmap.

    Raises:
        ConfigError: two are the same, or one is there already.
    """
    from streamwsi.apart import check_apart
    from streamwsi.exporting.replacing import check_replaceable

    ending = _ENDINGS.get(to, f".{to.value}")
    if out is not None and out.name.endswith(ending) and not out.is_dir():
        if len({*heatmaps}) > 1:
            raise ConfigError(
                f"--out {out} is one file for {len(heatmaps)} heatmaps; name a folder"
            )
        files = dict.fromkeys(heatmaps, out)
    else:
        files = {h: (h.parent if out is None else out) / f"{_name(h)}{ending}" for h in heatmaps}
    for heatmap, file in files.items():
        others = [h for h, other in files.items() if other == file and h != heatmap]
        if others:
            raise ConfigError(
                f"{heatmap} and {others[0]} would both become {file}; export them "
                "into different folders"
            )
        check_apart(heatmap, file)
        check_replaceable(file, overwrite)
    return files


def _name(heatmap: Path) -> str:
    name = heatmap.name or heatmap.resolve().name
    return name.removesuffix(".zarr").removesuffix(".ome")
