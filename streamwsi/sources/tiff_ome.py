"""The few facts of OME-XML that a reader needs: pixel size, objective, channel names.

Schema: OME 2016-06 and its forerunners; elements are matched without their namespace, which
differs between versions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ..geometry import Size
from ..slides import Mpp

__all__ = ["channel_names", "mpp", "objective_power", "other_file", "parse", "pixels_of"]

_MICRONS = {
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter; the line above has the micro sign
    "um": 1.0,
    "micron": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "in": 25400.0,
}


def parse(xml: str) -> Element | None:
    """The root of an OME-XML document; None where it is not well-formed."""
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError):
        return None


def other_file(root: Element, name: str) -> str | None:
    """A file, other than the one named, that holds part of the image or its metadata."""
    own = root.get("UUID")
    for only in _all(root, "BinaryOnly"):
        return only.get("MetadataFile", "a companion file")
    for uuid in _all(root, "UUID"):
        filename = uuid.get("FileName", "")
        if filename.lower() != name.lower() and (own is None or uuid.text != own):
            return filename or "another file"
    return None


def pixels_of(root: Element, size: Size) -> tuple[Element, Element] | None:
    """The first ``(Image, Pixels)`` of that size."""
    for image in _all(root, "Image"):
        for pixels in _all(image, "Pixels"):
            if (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size.width), str(size.height)):
                return image, pixels
    return None


def mpp(pixels: Element) -> Mpp | None:
    """The physical size of a pixel, where it is stated in a unit of length."""
    x, y = (_microns(pixels, f"PhysicalSize{axis}") for axis in "XY")
    if x is None or y is None:
        return None
    return Mpp(x, y)


def objective_power(root: Element, image: Element) -> float | None:
    """The magnification of the image's objective, or of the only objective."""
    used = {settings.get("ID") for settings in _all(image, "ObjectiveSettings")}
    objectives = [*_all(root, "Objective")]
    chosen = [o for o in objectives if o.get("ID") in used]
    if not chosen and len(objectives) == 1:
        chosen = objectives
    for objective in chosen:
        power = _positive(objective.get("NominalMagnification"))
        if power is not None:
            return power
    return None


def channel_names(pixels: Element) -> list[str]:
    """The names of the channels; empty where not every channel has one."""
    names = [channel.get("Name", "") for channel in _all(pixels, "Channel")]
    return names if all(names) else []


def _all(parent: Element, tag: str) -> Iterator[Element]:
    return (e for e in parent.iter() if e.tag == tag or e.tag.endswith("}" + tag))


def _microns(pixels: Element, name: str) -> float | None:
    value = _positive(pixels.get(name))
    factor = _MICRONS.get(pixels.get(name + "Unit", "µm").strip())
    return None if value is None or factor is None else _positive(str(value * factor))


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
