"""Colours of classes, where nobody has chosen them.

Labels have those of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/), which people with
colour-blindness tell apart; thresholds have steps of inferno, which get lighter as they rise.
"""

from __future__ import annotations

import numpy as np

from ..pictures import coloured
from .documents import Named

__all__ = ["label_colour", "steps"]

_OKABE_ITO = "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 000000"


def label_colour(named: Named | None, label: int) -> tuple[int, int, int]:
    """The colour that the metadata name for a label, or one of eight."""
    if named is not None and named.colour is not None:
        return named.colour
    colours = _OKABE_ITO.split()
    r, g, b = bytes.fromhex(colours[label % len(colours)])
    return r, g, b


def steps(count: int) -> list[tuple[int, int, int]]:
    """Colours of so many ascending thresholds."""
    places = (np.arange(count) + 1) / (count + 1)
    return [(r, g, b) for r, g, b in coloured(places, 0, 1, "inferno").tolist()]
