"""Outlines: regions of interest as polygons, from GeoJSON.

QuPath writes them: a FeatureCollection (or a bare list of features, or one feature) whose
geometries are polygons, with holes, and multipolygons, in level-0 pixels, x right and y down.
Bare geometries and collections of them are read too. Points and lines cover no area and are
passed over. Where outlines overlap, their union counts.

Areas are exact: a window's share is the area of its intersection with the union.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..geometry import Size

__all__ = ["Outlines", "read_outlines"]

Floats = npt.NDArray[np.float64]

_MOST_BYTES = 128 * 2**20
_AREAS = ("Polygon", "MultiPolygon")
_NO_AREAS = ("Point", "MultiPoint", "LineString", "MultiLineString")


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """The union of polygons, as a mask.

    Attributes:
        name: what it is, for messages.
        area: shapely's geometry, in level-0 pixels.
        digest: of the file it came from.
    """

    toml_hint: ClassVar[str] = "give FileMask(path) itself"

    name: str
    area: Any
    digest: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outlines) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def config(self) -> Mapping[str, Any]:
        """A digest of the file."""
        return {"kind": "outlines", "sha256": self.digest}

    def shares(
        self, base: Size, top: float, bottom: float, lefts: Floats, rights: Floats
    ) -> Floats:
        """See `streamwsi.samplers.masks.Mask`."""
        shapely = _shapely()
        # Outlines have many corners all over the slide, and few in a row of windows.
        row = shapely.intersection(
            self.area, shapely.box(float(lefts.min()), top, float(rights.max()), bottom)
        )
        parts = shapely.get_parts(row)
        windows = shapely.box(lefts, top, rights, bottom)
        window, part = shapely.STRtree(parts).query(windows, predicate="intersects")
        areas = shapely.area(shapely.intersection(windows[window], parts[part]))
        covered = np.bincount(window, areas, len(lefts))
        shares: Floats = covered / ((rights - lefts) * (bottom - top))
        return shares


def read_outlines(path: Path) -> Outlines:
    """The polygons of a GeoJSON file.

    Raises:
        ConfigError: it is not GeoJSON, or holds no polygon; or shapely is not installed.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(
            f"the outlines {path} are larger than {_MOST_BYTES // 2**20} MiB; export fewer, or "
            "simplify them"
        )
    data = path.read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the outlines {path} are not GeoJSON: {error}") from error
    shapely = _shapely()
    polygons = []
    try:
        for geometry in _geometries(document):
            if geometry.get("type") in _AREAS:
                polygons.append(_polygon(shapely, geometry))
            elif geometry.get("type") not in _NO_AREAS:
                raise ConfigError(
                    f"the outlines {path} hold {geometry.get('type')!r}, which is no geometry of "
                    "GeoJSON"
                )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"the outlines {path} hold a broken geometry: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"the outlines {path} are nested too deeply") from error
    area = shapely.union_all(polygons)
    if not polygons or not area.area > 0:
        raise ConfigError(f"the outlines {path} hold no polygon with an area")
    return Outlines(f"outlines {path.name}", area, hashlib.sha256(data).hexdigest())


def _geometries(value: Any) -> Iterator[Any]:
    """All geometries in a GeoJSON value, whatever it is."""
    if value is None:
        return  # a feature without a place
    if isinstance(value, list):
        inner = value
    elif value.get("type") == "FeatureCollection":
        inner = value["features"]
    elif value.get("type") == "GeometryCollection":
        inner = value["geometries"]
    elif value.get("type") == "Feature":
        inner = [value["geometry"]]
    else:
        yield value
        return
    for one in inner:
        yield from _geometries(one)


def _polygon(shapely: Any, geometry: Mapping[str, Any]) -> Any:
    """The geometry as shapely's, without self-intersections and stray lines."""
    coordinates = geometry["coordinates"]
    many = coordinates if geometry["type"] == "MultiPolygon" else [coordinates]
    polygons = []
    for rings in many:
        shell, *holes = [np.asarray(ring, np.float64)[:, :2] for ring in rings]
        if not all(np.isfinite(ring).all() for ring in (shell, *holes)):
            raise ValueError("a coordinate is not finite")
        # By themselves: a hole that shares an edge with the shell would be taken for a part of it.
        cut = shapely.union_all([_area(shapely, hole) for hole in holes])
        polygons.append(shapely.difference(_area(shapely, shell), cut))
    return shapely.union_all(polygons)


def _area(shapely: Any, ring: npt.NDArray[np.float64]) -> Any:
    """What a ring encloses."""
    parts = shapely.get_parts(shapely.make_valid(shapely.Polygon(ring))).tolist()
    return shapely.union_all([part for part in parts if shapely.area(part) > 0])


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise ConfigError(
            'outlines need shapely; install it with: pip install "streamwsi[tissue]"'
        ) from error
    return shapely
