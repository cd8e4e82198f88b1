"""What both sinks of features share: rows of numbers, and what is said about their windows.

A feature vector is what a model makes of a window: an embedding. The sinks write the vectors of
a slide as the rows of one table, in the order of the windows, with the windows' places beside
them. A window with damaged pixels keeps its row, of NaN, and is False in ``valid``: row k is
window k, whatever could not be read.

The names in `patch_attributes` are those that TRIDENT and CLAM give the attributes of ``coords``
(https://github.com/mahmoodlab/TRIDENT, trident/IO.py; https://github.com/mahmoodlab/CLAM,
wsi_core/WholeSlideImage.py). Not written are ``savetodir`` and ``save_path``: they tell a folder,
which nobody reads, and the same features would have other bytes in another folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..chunks import Pieces, Plan
from ..errors import CannotWrite, ConfigError, StageMismatch
from ..geometry import Size
from ..slides import Slide
from .corners import Corners, Windows, level0_corners

__all__ = ["Dtype", "FeatureRows", "check_dtype", "patch_attributes", "window_attributes"]

Dtype = Literal["float32", "float16"]

#: TRIDENT's nominal magnifications, each with the mpp of level 0 that it lies below.
_NOMINAL = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))


def check_dtype(dtype: str) -> None:
    """Refuse what features are not written as.

    Raises:
        ConfigError: it is neither float32 nor float16.
    """
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"the dtype of features must be float32 or float16, not {dtype!r}")


class FeatureRows:
    """The rows of one output.

    Args:
        plan: whose windows they are.
        dtype: of the features.
        path: of the output, for messages.

    Attributes:
        dimensions: the length of the vectors; 0 until the first ones came.
    """

    def __init__(self, plan: Plan, dtype: str, path: Path) -> None:
        self.dimensions = 0
        self._plan = plan
        self._dtype = dtype
        self._path = path
        self._windows = Windows()

    def of(self, pieces: Pieces[Any]) -> tuple[npt.NDArray[Any], Corners, npt.NDArray[np.bool_]]:
        """Features ``(n, d)``, NaN where they are not valid; coords ``(n, 2)`` in level-0
        pixels; valid ``(n,)``.

        Raises:
            StageMismatch: the values are no vectors of numbers of one length, or float16 does
                not hold them.
        """
        rows = _vectors(pieces, self._dtype)
        self.dimensions = self.dimensions or rows.shape[1]
        if rows.shape[1] != self.dimensions:
            raise StageMismatch(
                f"{self._path}: the processor returned {self.dimensions} numbers and then "
                f"{rows.shape[1]} per window; features need one length"
            )
        corners = level0_corners(self._windows.corners(pieces.places), self._plan.level)
        return rows, corners, pieces.valid

    def another_length(self) -> CannotWrite:
        """The error where an earlier run has begun the output with other vectors."""
        return CannotWrite(
            f"{self._path} was begun with vectors of another length than {self.dimensions}; "
            "--overwrite starts afresh"
        )


def check_vectors(shape: tuple[int, ...]) -> None:
    """Refuse values of a shape ``(n, …)`` that are not a vector per window.

    Raises:
        StageMismatch: they are not.
    """
    if len(shape) not in (1, 2) or 0 in shape[1:]:
        raise StageMismatch(
            "features are one vector per window, (n, D), but the processor returned values of "
            f"shape {shape}; pool them, or choose a heatmap"
        )


def _vectors(pieces: Pieces[Any], dtype: str) -> npt.NDArray[Any]:
    values: Any = pieces.values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        what = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
        raise StageMismatch(f"features need arrays of numbers, but the processor returned {what}")
    check_vectors(values.shape)
    with np.errstate(over="ignore"):
        rows = values.reshape(len(values), -1).astype(dtype, copy=False)
    if dtype == "float16" and np.isinf(rows).any() and not np.isinf(values).any():
        raise StageMismatch(
            f"features reach {np.nanmax(np.abs(values)):.6g}, and float16 holds at most 65504; "
            "choose float32"
        )
    if not pieces.valid.all():
        rows = np.where(pieces.valid[:, None], rows, np.array(np.nan, dtype))
    return rows


def window_attributes(plan: Plan, kernel: Size | None) -> dict[str, Any]:
    """What the windows are, JSON-able; sizes are ``[width, height]``, pairs ``[x, y]``.

    - ``kernel_size``, ``stride``: in pixels of the level (None where there is none to tell);
    - ``level``, ``factor``: the pyramid level that was read, and how many of its pixels make
      one of the windows';
    - ``downsample``: level-0 pixels per pixel of the windows;
    - ``mpp``: micrometres per pixel of the windows, where known;
    - ``kernel_size_level0``: a window in level-0 pixels;
    - ``level0_size``: the slide.
    """
    level, mpp = plan.level, plan.slide.pyramid.mpp
    x, y = level.downsample
    return {
        "kernel_size": kernel and [*kernel],
        "stride": [*plan.grid.stride] if plan.grid is not None else None,
        "level": level.index,
        "factor": [*level.factor],
        "downsample": [x, y],
        "mpp": [mpp.x * x, mpp.y * y] if mpp else None,
        "kernel_size_level0": kernel and [kernel.width * x, kernel.height * y],
        "level0_size": [*plan.slide.level(0).size],
    }


def patch_attributes(plan: Plan, kernel: Size | None) -> dict[str, Any]:
    """What TRIDENT and CLAM say about the windows, which are square.

    ``patch_size`` is in pixels of the windows, ``patch_size_level0`` in level-0 pixels (of the x
    axis, to the nearest). Where the windows were resampled there is no ``patch_level``: CLAM
    would take it for the level that has windows of `patch_size`. Where neither mpp nor
    magnification is known there are no magnifications.
    """
    level, slide, grid = plan.level, plan.slide, plan.grid
    found: dict[str, Any] = {
        "name": slide.ref.id,
        "downsample": [*level.downsample],
        "level_dim": [*level.size],
        "downsampled_level_dim": [*level.size],
        "level0_width": slide.level(0).size.width,
        "level0_height": slide.level(0).size.height,
    }
    if kernel is not None:
        found["patch_size"] = kernel.width
        found["patch_size_level0"] = round(kernel.width * level.downsample[0])
    if level.source is None:
        found["patch_level"] = level.index
    if grid is not None and grid.stride.width == grid.stride.height:
        found["overlap"] = grid.kernel.width - grid.stride.width
    power = _magnification(slide)
    if power is not None:
        found["level0_magnification"] = _whole(power)
        found["target_magnification"] = _whole(power / level.downsample[0])
    return found


def _magnification(slide: Slide) -> float | None:
    """The nominal magnification of level 0, as TRIDENT has it: by the mpp, where that is known."""
    mpp = slide.pyramid.mpp
    if mpp is not None:
        for below, power in _NOMINAL:
            if mpp.x < below:
                return power
    return slide.power


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
