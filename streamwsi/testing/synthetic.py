"""Pixels to try things on: a believable slide as a file, and small arrays for unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..geometry import Size
from .svs_writer import area_averaged, write_svs
from .tissue_painter import TissuePainter

__all__ = ["memory_pyramid", "slide_array", "write_slide"]


def write_slide(
    path: str | Path,
    size: Size = Size(8192, 8192),  # noqa: B008 (a value, never changed)
    *,
    seed: int = 0,
    tile: int = 256,
    levels: int = 3,
    factor: int = 4,
    mpp: float = 0.25,
    power: float = 40,
    quality: int = 80,
) -> None:
    """Write a slide of pieces of stained tissue as an Aperio-style SVS file.

    The same arguments give the same file; memory does not grow with the slide's height and
    hardly with its width. An existing file is replaced once the new one is whole.

    Args:
        path: the file, customarily ``*.svs``.
        size: of level 0, in pixels.
        seed: another seed is another slide.
        tile: edge of the square tiles, in pixels; a multiple of 16 and of `factor`.
        levels: how many; each is the one before divided by `factor`, rounded down.
        factor: between one level and the next.
        mpp: µm per pixel of level 0; cells have their size in µm, pieces of tissue do not.
        power: the objective's magnification, for the header.
        quality: of the JPEG tiles, 1 … 100.

    Raises:
        ConfigError: the arguments do not fit each other; nothing was written.
    """
    write_svs(
        path,
        size,
        TissuePainter(size, mpp, seed).paint,
        tile=tile,
        levels=levels,
        factor=factor,
        mpp=mpp,
        power=power,
        quality=quality,
    )


def slide_array(
    size: Size, channels: int = 3, dtype: npt.DTypeLike = np.uint8, seed: int = 0
) -> npt.NDArray[Any]:
    """A small picture ``(height, width, channels)``: smooth, with a little noise on top.

    Integers use their whole range, floats 0 … 1. The same arguments give the same picture.
    """
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: size.height, : size.width]
    picture = 0.5 + rng.normal(0, 0.015, (size.height, size.width, channels))
    for c in range(channels):
        for wavelength in (97.0, 41.0, 17.0):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            along = (x * np.cos(angle) + y * np.sin(angle)) / wavelength
            picture[:, :, c] += np.cos(2 * np.pi * along + phase) / 6
    kind = np.dtype(dtype)
    scale = np.iinfo(kind).max if kind.kind in "iu" else 1
    picture = picture.clip(0, 1) * scale
    return (np.rint(picture) if kind.kind in "iu" else picture).astype(kind)


def memory_pyramid(picture: npt.NDArray[Any], levels: int) -> list[npt.NDArray[Any]]:
    """The picture ``(height, width, channels)`` and its reductions, each half of the one before.

    Sizes are rounded down; pixels are the means of squares of four.
    """
    pyramid = [picture]
    for _ in range(levels - 1):
        pyramid.append(area_averaged(pyramid[-1], 2))
    return pyramid
