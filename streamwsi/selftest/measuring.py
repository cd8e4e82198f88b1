"""Where fiducials are found in an output, against where they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .fiducials import Fiducial

__all__ = ["Finding", "Marks", "lattice_marks", "worst_error"]

Floats = npt.NDArray[np.float64]


class Marks(NamedTuple):
    """What an output says is dark, and where; places are level-0 pixels from the slide's corner.

    Attributes:
        output: what was read: ``"zarr"``, ``"zarr, smaller level 1"``, …
        x, y, weight: ``(n,)``.
        pitch: distance between the places, as far as they lie apart evenly; 0 where they do not.
    """

    output: str
    x: Floats
    y: Floats
    weight: Floats
    pitch: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """How well an output lines up with the slide.

    Attributes:
        windows: what was computed.
        output: where it was read.
        error: how far the worst fiducial is from where it is found, in level-0 pixels along the
            worse axis; infinite where it is not there.
        problem: why there is no error to tell, as a sentence.
    """

    windows: str
    output: str
    error: float
    problem: str = ""


def lattice_marks(
    output: str, weights: npt.NDArray[Any], xs: Floats, ys: Floats, pitch: float = 0.0
) -> Marks:
    """The marks of an array ``(rows, columns)`` with places per column and per row."""
    weights = np.nan_to_num(weights.astype(np.float64))
    i, j = np.nonzero(weights)
    return Marks(output, xs[j], ys[i], weights[i, j], pitch)


def worst_error(marks: Marks, fiducials: Sequence[Fiducial]) -> float:
    """How far the centroid of the marks that are nearest to a fiducial is from it, at most.

    Along the worse axis: whole coordinates of windows may be off by half a pixel in each.
    """
    if not len(marks.x):
        return math.inf
    apart = [np.hypot(marks.x - f.centre[0], marks.y - f.centre[1]) for f in fiducials]
    nearest = np.argmin(apart, axis=0)
    errors = []
    for number, spot in enumerate(fiducials):
        own = nearest == number
        weight = marks.weight[own]
        if not weight.sum() > 0:
            return math.inf
        x, y = (float((at[own] * weight).sum() / weight.sum()) for at in (marks.x, marks.y))
        errors.append(max(abs(x - spot.centre[0]), abs(y - spot.centre[1])))
    return max(errors)
