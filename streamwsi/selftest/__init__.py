"""The alignment self-test: synthetic fiducials, sent through every resolution, stride, blend and
export, are found again where they are.

The slide's pyramid is taken as it is (levels, downsamples, tiles, mpp), and its pixels are
replaced: white, with a few dark spots whose centres are known (`fiducials`, `placing`). A model
that is trivially exact (`darkness`) runs over them through ordinary pipelines into real outputs
(`cases`, `checking`). Each output is read by its own metadata and by nothing else (`reading`
and beside it), and where the spots' centroids lie is compared with the truth (`measuring`).

All coordinates here are level-0 pixels, counted from the slide's corner: pixel i covers
``[i, i + 1)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use

if TYPE_CHECKING:
    from .checking import TOLERANCE, Findings, check_alignment
    from .measuring import Finding

__all__ = ["TOLERANCE", "Finding", "Findings", "check_alignment"]

__getattr__ = loaded_on_use(
    __name__,
    {
        "TOLERANCE": "checking",
        "Finding": "measuring",
        "Findings": "checking",
        "check_alignment": "checking",
    },
)
