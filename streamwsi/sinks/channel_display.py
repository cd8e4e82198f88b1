"""How viewers show a map's channels: names, colours and value ranges (OME-NGFF's ``omero``)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError

__all__ = ["PALETTE", "Channel", "hex_colour", "omero"]

#: Eight colours that also the colour-blind tell apart (Okabe and Ito, "Color Universal Design",
#: 2008), the brightest first, and white for their black, which is no light to add.
PALETTE = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7", "FFFFFF")


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel as it is shown.

    Args:
        label: its name.
        colour: six hexadecimal digits, red, green, blue; None for one of `PALETTE` by its number.
        window: the values that are shown black and in full colour.
        limits: the values that the window can be moved between; None for the window's.
        active: whether it is shown when the image is opened.
    """

    label: str
    colour: str | None = None
    window: tuple[float, float] = (0.0, 1.0)
    limits: tuple[float, float] | None = None
    active: bool = True

    def __post_init__(self) -> None:
        if self.colour is not None:
            hex_colour(self.colour)
        for low, high in (self.window, self.limits or self.window):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ConfigError(
                    f"channel {self.label!r} needs a range of values from a smaller to a larger "
                    f"number, not {low} to {high}"
                )


def hex_colour(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of six hexadecimal digits.

    Raises:
        ConfigError: it is something else.
    """
    if not re.fullmatch("[0-9A-Fa-f]{6}", colour):
        raise ConfigError(f"a colour is six hexadecimal digits, as in E69F00, not {colour!r}")
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


def omero(channels: Sequence[Channel]) -> dict[str, Any]:
    """The metadata ``omero`` of an image with these channels."""
    return {
        "channels": [_shown(i, channel) for i, channel in enumerate(channels)],
        "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"},
    }


def _shown(index: int, channel: Channel) -> dict[str, Any]:
    start, end = channel.window
    least, most = channel.limits or channel.window
    return {
        "label": channel.label,
        "color": (channel.colour or PALETTE[index % len(PALETTE)]).upper(),
        "window": {"min": least, "max": most, "start": start, "end": end},
        "active": channel.active,
        "coefficient": 1,
        "family": "linear",
        "inverted": False,
    }
