"""Pixel size, objective, vendor and further facts, from where each vendor keeps them.

Aperio writes ``key = value`` pairs into the image description, OME-TIFF has OME-XML, Hamamatsu
has private tags. Where nothing else is said, the TIFF resolution tags count, if they are
plausible: programs fill them with placeholders (1 or 72 or 96 per inch, 10 per millimetre),
which would make pixels of 0.1 to 25 mm. No slide scanner has pixels outside 0.01 to 20 µm.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from tifffile import TiffFile, TiffPage, TiffPageSeries

from ..geometry import Size
from ..slides import Mpp
from . import tiff_ome as ome

__all__ = ["PLAUSIBLE_MPP", "Facts", "slide_facts"]

PLAUSIBLE_MPP = (0.01, 20.0)
"""Resolution tags that say anything else are placeholders, in µm per pixel."""

_VENDORS = {
    "ndpi": "hamamatsu",
    "ome": "ome",
    "philips": "philips",
    "qpi": "akoya",
    "scn": "leica",
    "svs": "aperio",
}
# Technical keys only: file names, users and barcodes may tell who the patient is.
_APERIO_KEYS = ("AppMag", "MPP", "ScanScope ID", "StripeWidth", "ICC Profile")
_UNIT_MICRONS = {2: 25400.0, 3: 10000.0, 4: 1000.0, 5: 1.0}
_NDPI_MAGNIFICATION = 65421


class Facts(NamedTuple):
    """See the fields of `streamwsi.slides.Slide`."""

    vendor: str
    mpp: Mpp | None
    power: float | None
    properties: dict[str, Any]


def slide_facts(
    tif: TiffFile, series: TiffPageSeries, size: Size, document: Element | None
) -> Facts:
    """What the file says about the slide.

    Args:
        tif: the file.
        series: its main image.
        size: of level 0.
        document: the OME-XML, where there is one.
    """
    page = series.keyframe
    vendor = "aperio" if tif.is_svs else _VENDORS.get(series.kind, "generic")
    mpp, power, properties = None, None, _common(tif, series, page)
    if vendor == "aperio":
        pairs = _aperio_pairs(page.description)
        value, power = _number(pairs.get("MPP")), _number(pairs.get("AppMag"))
        mpp = None if value is None else Mpp(value, value)
        properties["aperio"] = {key: pairs[key] for key in _APERIO_KEYS if key in pairs}
    elif vendor == "hamamatsu":
        power = _number(page.tags.valueof(_NDPI_MAGNIFICATION))
    elif document is not None and (found := ome.pixels_of(document, size)):
        image, pixels = found
        mpp, power = ome.mpp(pixels), ome.objective_power(document, image)
        if names := ome.channel_names(pixels):
            properties["channels"] = names
    return Facts(vendor, mpp or _resolution_mpp(page), power, properties)


def _common(tif: TiffFile, series: TiffPageSeries, page: TiffPage) -> dict[str, Any]:
    photometric = page.photometric
    others = [s.name or f"image {s.index}" for s in tif.series if s is not series]
    return {
        "photometric": getattr(photometric, "name", str(photometric)).lower(),
        "icc_profile": 34675 in page.tags,
        "associated": others,
    }


def _aperio_pairs(description: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _resolution_mpp(page: TiffPage) -> Mpp | None:
    """From XResolution, YResolution and ResolutionUnit, where they are plausible."""
    microns = _UNIT_MICRONS.get(page.tags.valueof(296, default=2))
    sizes = []
    for code in (282, 283):
        match page.tags.valueof(code):
            case (int(n), int(d)) if microns is not None and n > 0 and d > 0:
                sizes.append(microns * d / n)
    least, most = PLAUSIBLE_MPP
    if len(sizes) < 2 or not all(least <= size <= most for size in sizes):
        return None
    return Mpp(*sizes)


def _number(value: object) -> float | None:
    """A positive, finite number, or None."""
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
