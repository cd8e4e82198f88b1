"""``streamwsi tissue``: what ``--tissue auto`` finds on a slide, to be looked at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamwsi.apart import check_apart
from streamwsi.errors import ConfigError
from streamwsi.limits import Limits
from streamwsi.slides import SlideRef

from .terminal import Debug, errors_as_sentences, run_interruptible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["tissue"]

_MEMORY = "1GiB"
_GLASS = (0, 70, 110)
_EDGE = (255, 0, 0)


def tissue(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", show_default=False)],
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.", show_default=False)],
    mask_only: Annotated[
        bool,
        typer.Option(
            "--mask-only",
            help="Write the mask itself, white on black, to edit it and use it again.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a picture that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Find the tissue on a slide and show it: glass is tinted, and tissue has a red edge."""
    with errors_as_sentences(debug):
        from streamwsi.exporting.replacing import check_replaceable, replacing
        from streamwsi.pictures import write_png
        from streamwsi.tissue import require_skimage

        require_skimage()
        if out.suffix.lower() != ".png":
            raise ConfigError(f"--out {out} is no name for a picture; choose one that ends in .png")
        check_apart(slide, out)
        check_replaceable(out, overwrite)
        picture, found, lost = run_interruptible(lambda: _found(slide))
        shown = found.astype("uint8") * 255 if mask_only else _over(picture, found)
        with replacing(out, overwrite) as made:
            write_png(made, shown)
        print(f"{out}: {found.mean():.1%} of {slide} is tissue")
        if lost:
            print(f"warning: {lost} damaged tile(s) are white in the picture", file=sys.stderr)


async def _found(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], int]:
    """A picture of the slide, its tissue, and how many tiles could not be had."""
    from streamwsi.samplers.tissue_mask import find_tissue
    from streamwsi.workers import open_workers

    from .opening import any_source

    limits, source = Limits(memory=_MEMORY), any_source()
    async with (
        open_workers(limits, source.worker_modules) as workers,
        source.open(SlideRef.of(path), workers) as reader,
    ):
        picture, found, _ = await find_tissue(reader, limits.memory_bytes)
        return picture, found, reader.tally.damaged_tiles


def _over(picture: npt.NDArray[np.uint8], found: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    import numpy as np

    shown = picture.copy()
    shown[~found] = np.rint(picture[~found] * 0.55 + np.array(_GLASS) * 0.45)
    edge = np.zeros_like(found)
    edge[1:] |= found[1:] != found[:-1]
    edge[:, 1:] |= found[:, 1:] != found[:, :-1]
    shown[edge] = _EDGE
    return shown
