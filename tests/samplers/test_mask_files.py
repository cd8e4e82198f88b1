"""Masks from files: pictures by pixel, outlines by brute force and by shapely, hostile files."""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.geometry import Size
from streamwsi.samplers.mask_files import FileMask
from streamwsi.samplers.masks import ArrayMask
from streamwsi.samplers.outlines import Outlines, read_outlines

MASK = np.random.default_rng(0).random((7, 11)) < 0.4


def pixels_of(path: Path) -> Any:
    mask = FileMask(path).read()
    assert isinstance(mask, ArrayMask)
    return mask.pixels


@pytest.mark.parametrize(
    "picture",
    [
        MASK.astype(np.uint8),
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.uint16) * 256,
        np.stack([MASK * 0, MASK * 9, MASK * 0], -1).astype(np.uint8),
        np.stack([MASK * 0 + 9, MASK * 200], -1).astype(np.uint8),
        np.stack([MASK * 0 + 9, MASK * 0 + 9, MASK * 0, MASK * 1], -1).astype(np.uint8),
    ],
    ids=["0 and 1", "0 and 255", "16 bits", "rgb", "grey and alpha", "rgb and alpha"],
)
def test_what_is_not_black_nor_transparent_counts(picture: Any, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))
    np.testing.assert_array_equal(pixels_of(tmp_path / "mask.png"), MASK)
    options: Any = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "mask.tif", picture, **(options if picture.ndim == 3 else {}))
    np.testing.assert_array_equal(pixels_of(tmp_path / "mask.tif"), MASK)


@pytest.mark.parametrize("options", [{"bilevel": True}, {"planarconfig": "separate"}])
def test_further_tiffs(options: dict[str, Any], tmp_path: Path) -> None:
    if "bilevel" in options:
        tifffile.imwrite(tmp_path / "mask.tiff", MASK)
    else:
        planes = np.stack([MASK * 0, MASK * 7, MASK * 0]).astype(np.uint8)
        tifffile.imwrite(tmp_path / "mask.tiff", planes, photometric="rgb", **options)
    np.testing.assert_array_equal(pixels_of(tmp_path / "mask.tiff"), MASK)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("huge.png", png_header(2**31 - 1, 2**31 - 1), "million are read"),
        ("short.png", png_header(4, 4), "cannot be read"),
        ("other.png", b"GIF89a" * 20, "not a PNG"),
        ("broken.tif", b"II*\0\xff\xff\xff\xff", "cannot be read"),
        ("mask.jpg", b"", "none of"),
        ("mask.geojson", b"{", "not GeoJSON"),
        ("mask.geojson", b"[" * 100_000, "not GeoJSON"),
        ("mask.geojson", b"[]", "no polygon"),
        ("mask.geojson", b"7", "broken geometry"),
        ("mask.geojson", b'{"type": "Circle"}', "'Circle'"),
        ("mask.geojson", b'{"type": "Polygon"}', "broken geometry"),
        ("mask.geojson", b'{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "broken"),
        ("mask.geojson", b'{"type": "Polygon", "coordinates": [[[0,0],[1,NaN],[1,0]]]}', "finite"),
        ("mask.geojson", b'{"type": "Polygon", "coordinates": [[["a",0],[1,1],[1,0]]]}', "broken"),
        ("mask.geojson", b'{"type": "Point", "coordinates": [1, 1]}', "no polygon"),
    ],
)
def test_files_that_are_no_masks(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        FileMask(tmp_path / name).read()
    assert name in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        FileMask(tmp_path / "missing.png").read()


def test_a_large_tiff_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((16, 16), np.uint8))
    data = bytearray(path.read_bytes())
    for tag in (256, 257):  # ImageWidth, ImageLength
        at = data.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in data else None
        at = data.index(struct.pack("<HH", tag, 3)) if at is None else at
        data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 2**20)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="million are read"):
        FileMask(path).read()


def outlines(tmp_path: Path, document: Any) -> Outlines:
    path = tmp_path / "roi.geojson"
    path.write_text(json.dumps(document))
    return read_outlines(path)


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


SHELL, HOLE, OTHER = square(10, 10, 40), square(20, 20, 10), square(60, 5, 20)
POLYGON = {"type": "Polygon", "coordinates": [SHELL, HOLE]}
MULTI = {"type": "MultiPolygon", "coordinates": [[SHELL, HOLE], [OTHER]]}


def feature(geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}


@pytest.mark.parametrize(
    "document",
    [
        {"type": "FeatureCollection", "features": [feature(POLYGON), feature(None), feature(
            {"type": "Polygon", "coordinates": [OTHER]}), feature({"type": "Point"})]},
        [feature(MULTI)],
        feature(MULTI),
        MULTI,
        {"type": "GeometryCollection", "geometries": [MULTI, POLYGON]},
        {"type": "MultiPolygon", "coordinates": [[SHELL, HOLE], [[[*at, 7] for at in OTHER]]]},
    ],
)  # fmt: skip
def test_all_forms_of_geojson(document: Any, tmp_path: Path) -> None:
    found = outlines(tmp_path, document)
    assert found.area.area == 40 * 40 - 10 * 10 + 20 * 20
    shares = found.shares(
        Size(100, 100), 10, 30, np.array([0.0, 10, 20, 55, -50]), np.array([20.0, 30, 30, 85, -40])
    )
    assert shares == pytest.approx([0.5, 0.75, 0.5, 300 / 600, 0])


def test_a_bow_tie_counts_both_halves(tmp_path: Path) -> None:
    ring = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    found = outlines(tmp_path, {"type": "Polygon", "coordinates": [ring]})
    assert found.area.area == 50


@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
def test_shares_are_shapelys_and_those_of_counted_points(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    corner = st.tuples(st.integers(0, 40), st.integers(0, 40))
    rings = data.draw(st.lists(st.lists(corner, min_size=3, max_size=7), min_size=1, max_size=4))
    document = [feature({"type": "Polygon", "coordinates": [[*r, r[0]]]}) for r in rings]
    try:
        found = outlines(tmp_path_factory.mktemp("roi"), document)
    except ConfigError as error:
        assert "no polygon with an area" in str(error)  # noqa: PT017
        return
    top = data.draw(st.integers(-3, 38))
    kernel, stride = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
    lefts = np.arange(-4, 41, stride, dtype=np.float64)
    shares = found.shares(Size(40, 40), top, top + kernel, lefts, lefts + kernel)
    union = shapely.union_all([shapely.make_valid(shapely.Polygon(r)) for r in rings])
    for left, share in zip(lefts, shares, strict=True):
        window = shapely.box(left, top, left + kernel, top + kernel)
        assert share == pytest.approx(union.intersection(window).area / kernel**2, abs=1e-9)
    # Points on a fine grid, none on an edge of the polygons.
    steps = (np.arange(240) + 0.4871) / 240 * kernel
    x, y = np.meshgrid(lefts[-1] + steps, top + steps)
    inside = shapely.contains_xy(union, x, y).mean()
    assert shares[-1] == pytest.approx(inside, abs=0.05)
    assert shares.min() >= 0
    assert shares.max() <= 1 + 1e-9


rings = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=6)
polygons = st.tuples(rings, st.lists(rings, max_size=2)).map(lambda p: shapely.Polygon(*p))
valid = polygons.filter(lambda polygon: polygon.is_valid and polygon.area > 0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(several=st.lists(valid, min_size=1, max_size=3), top=st.integers(-3, 38))
def test_holes_and_several_polygons_are_shapelys(
    tmp_path_factory: pytest.TempPathFactory, several: list[Any], top: int
) -> None:
    """One by one, and as a multipolygon where they do not overlap."""
    documents = [[feature(shapely.geometry.mapping(polygon)) for polygon in several]]
    multi = shapely.MultiPolygon(several)
    if multi.is_valid:
        documents.append(shapely.geometry.mapping(multi))
    lefts = np.arange(-4, 41, 5, dtype=np.float64)
    union = shapely.union_all(several)
    for document in documents:
        found = outlines(tmp_path_factory.mktemp("roi"), document)
        shares = found.shares(Size(40, 40), top, top + 7, lefts, lefts + 7)
        for left, share in zip(lefts, shares, strict=True):
            window = shapely.box(left, top, left + 7, top + 7)
            assert share == pytest.approx(union.intersection(window).area / 49, abs=1e-9)


@pytest.mark.parametrize(
    ("hole", "left"),
    [
        ([[3, 0], [6, 0], [6, 4], [3, 4]], 100 - 12),  # shares an edge
        ([[6, 0], [3, 0], [3, 4], [6, 4]], 100 - 12),  # turns the other way round
        ([[0, 0], [4, 0], [4, 4], [0, 4]], 100 - 16),  # lies in a corner
        ([[-5, 3], [5, 3], [5, 6], [-5, 6]], 100 - 15),  # reaches beyond it
        ([[2, 2], [8, 8], [8, 2], [2, 8]], 100 - 18),  # crosses itself
        ([[0, 0], [10, 0], [10, 10], [0, 9]], 5),
    ],
)
def test_a_hole_is_no_part_wherever_it_lies(tmp_path: Path, hole: Any, left: float) -> None:
    shell = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    found = outlines(tmp_path, {"type": "Polygon", "coordinates": [shell, [*hole, hole[0]]]})
    assert found.area.area == pytest.approx(left)


def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(ConfigError, match=r'pip install "streamwsi\[tissue\]"'):
        outlines(tmp_path, POLYGON)
