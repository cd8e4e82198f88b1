"""Colours of classes, where nobody has chosen them: as viewers show them, less white.

Thresholds have steps of inferno, which get lighter as they rise.
"""

from __future__ import annotations

import numpy as np

from ..pictures import coloured
from ..sinks.channel_display import PALETTE, hex_colour
from .documents import Named

__all__ = ["label_colour", "steps"]

_WHITE = "FFFFFF"
_COLOURS = [hex_colour(colour) for colour in PALETTE if colour != _WHITE]


def label_colour(named: Named | None, label: int) -> tuple[int, int, int]:
    """The colour that the metadata name for a label, or one of the palette's."""
    if named is not None and named.colour is not None:
        return named.colour
    return _COLOURS[(label - 1) % len(_COLOURS)]


def steps(count: int) -> list[tuple[int, int, int]]:
    """Colours of so many ascending thresholds."""
    places = (np.arange(count) + 1) / (count + 1)
    return [(r, g, b) for r, g, b in coloured(places, 0, 1, "inferno").tolist()]
