"""``streamwsi info``: what a slide's header says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamwsi.limits import Limits
from streamwsi.slides import SlideRef

from .terminal import Debug, Json, errors_as_sentences, print_json, run_interruptible

if TYPE_CHECKING:
    from streamwsi.slides import PyramidLevel, Slide

__all__ = ["info"]


def info(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a slide's levels, sizes, downsamples, tiles, compression, mpp, objective and vendor."""
    with errors_as_sentences(debug):
        found = run_interruptible(lambda: _inspect(slide))
        if as_json:
            print_json(_record(found))
        else:
            _print(found)


async def _inspect(path: Path) -> Slide:
    from streamwsi.workers import open_workers

    from .opening import any_source

    async with (
        open_workers(Limits(workers=1)) as workers,
        any_source().open(SlideRef.of(path), workers) as reader,
    ):
        return reader.slide


def _level(level: PyramidLevel) -> dict[str, Any]:
    return {
        "index": level.index,
        "width": level.size.width,
        "height": level.size.height,
        "downsample": list(level.downsample),
        "tile": list(level.tile),
    }


def _record(slide: Slide) -> dict[str, Any]:
    mpp = slide.pyramid.mpp
    return {
        "id": slide.ref.id,
        "uri": slide.ref.uri,
        "bytes": slide.nbytes,
        "vendor": slide.vendor,
        "compression": slide.compression,
        "dtype": slide.dtype,
        "channels": slide.channels,
        "mpp": [mpp.x, mpp.y] if mpp else None,
        "power": slide.power,
        "levels": [_level(level) for level in slide.pyramid.levels],
        "properties": dict(slide.properties),
    }


def _print(slide: Slide) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    mpp = slide.pyramid.mpp
    facts = {
        "slide": slide.ref.uri,
        "vendor": slide.vendor,
        "compression": slide.compression,
        "pixels": f"{slide.channels} × {slide.dtype}",
        "mpp": f"{mpp.x:.6g} × {mpp.y:.6g} µm" if mpp else "unknown",
        "objective": f"{slide.power:g}×" if slide.power else "unknown",
        "file size": f"{slide.nbytes / 1e6:,.1f} MB",
    }
    for name, value in facts.items():
        console.print(Text(f"{name:<12} {value}"), soft_wrap=True)
    table = Table("level", "width", "height", "downsample", "tile", box=None, header_style="bold")
    for level in slide.pyramid.levels:
        x, y = level.downsample
        factor = f"{x:g}" if x == y else f"{x:.6g} × {y:.6g}"
        size = map(str, level.size)
        table.add_row(str(level.index), *size, factor, str(level.tile))
    console.print(table)
