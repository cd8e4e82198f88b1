"""The two functions of the TIFF source that run in decode workers.

The parent refers to them and imports neither tifffile nor imagecodecs; a worker imports what
they need when it is first called, and nothing of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..chunks import Damage
    from ..geometry import Box
    from ..slides import Slide, SlideRef

__all__ = ["inspect_tiff", "read_tiff"]


def inspect_tiff(ref: SlideRef) -> Slide:
    """What a TIFF slide is; runs in a worker.

    Raises:
        CannotOpen: it is no TIFF, damaged, or of a kind that cannot be read exactly.
    """
    from . import tiff_slides

    return tiff_slides.inspect(ref)


def read_tiff(ref: SlideRef, level: int, box: Box, out: npt.NDArray[Any]) -> tuple[Damage, ...]:
    """Fill ``out[:box.height, :box.width, :channels]`` with pixels; runs in a worker.

    Args:
        ref: the slide.
        level: index of the pyramid level.
        box: whole tiles of the level, cut at its edges.
        out: an array of the slide's dtype; rows may be strided.

    Returns:
        The tiles that could not be had; their pixels are 0.

    Raises:
        CannotRead: the file is gone, or was changed.
        LevelNotFound: the slide has no such level.
    """
    from . import tiff_slides

    return tiff_slides.read(ref, level, box, out)
