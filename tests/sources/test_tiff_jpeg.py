"""JPEG decoded strictly: the pixels of imagecodecs, and libjpeg's warnings as damage."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from streamwsi.geometry import Size
from streamwsi.sources.tiff_codestreams import JpegFrames, TileError, table_segments
from streamwsi.sources.tiff_jpeg import StrictJpeg
from streamwsi.testing.synthetic import slide_array

Array = npt.NDArray[Any]
PICTURE: Array = slide_array(Size(240, 256))
EMPTY_TABLES = b"\xff\xd8\xff\xd9"


def encoded(picture: Array = PICTURE, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(picture, 85, **options))


def split(data: bytes) -> tuple[bytes, bytes]:
    """Tables and abbreviated image of a whole stream, as slides store them."""
    tables = b"".join(table_segments(data[: data.index(b"\xff\xda")] + b"\xff\xd9"))
    image = data
    for segment in table_segments(data[: data.index(b"\xff\xda")] + b"\xff\xd9"):
        image = image.replace(segment, b"", 1)
    return b"\xff\xd8" + tables + b"\xff\xd9", image


def decoded(data: bytes, tables: bytes | None = None, *, rgb: bool = False) -> Array:
    frame = JpegFrames().of(data)
    out = np.zeros((frame.height, frame.width, 3), np.uint8)
    assert StrictJpeg(tables, rgb=rgb).decode(data, out)
    return out


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440"])
@pytest.mark.parametrize("size", [(256, 240), (37, 51), (1, 1), (16, 8)])
def test_the_pixels_are_those_of_imagecodecs(subsampling: str, size: tuple[int, int]) -> None:
    data = encoded(np.ascontiguousarray(PICTURE[: size[0], : size[1]]), subsampling=subsampling)
    np.testing.assert_array_equal(decoded(data), imagecodecs.jpeg8_decode(data))


@pytest.mark.parametrize("space", [2, None])
def test_shared_tables(space: int | None) -> None:
    data = encoded(outcolorspace=space) if space else encoded(subsampling="420")
    tables, image = split(data)
    assert len(image) < len(data) - 200
    expected = imagecodecs.jpeg8_decode(image, tables=tables, colorspace=space, outcolorspace=2)
    if space and (b"JFIF" in image or b"Adobe" in image):
        out = np.zeros(PICTURE.shape, np.uint8)
        assert not StrictJpeg(tables, rgb=True).decode(image, out)
        at = image.index(b"\xff\xee") if b"Adobe" in image else image.index(b"\xff\xe0")
        image = image[:at] + image[at + 2 + int.from_bytes(image[at + 2 : at + 4], "big") :]
    np.testing.assert_array_equal(decoded(image, tables, rgb=space is not None), expected)
    if space:
        assert np.abs(expected.astype(int) - PICTURE).mean() < 8


def test_what_turbojpeg_does_not_support_is_left_to_others() -> None:
    out = np.zeros((240, 256, 3), np.uint8)
    assert not StrictJpeg(None, rgb=False).decode(b"\xff\xd8\xff\xd9", out)


def test_damage_in_a_scan_is_seen_where_libjpeg_warns() -> None:
    """Random bytes in the scan, markers whole: imagecodecs returns an image for each of them."""
    data, rng = encoded(subsampling="420"), np.random.default_rng(4)
    clean, first = imagecodecs.jpeg8_decode(data), data.index(b"\xff\xda") + 14
    visible = seen = 0
    for _ in range(200):
        broken, at = bytearray(data), int(rng.integers(first, len(data) - 20))
        broken[at : at + 8] = bytes(rng.integers(0, 255, 8, np.uint8))
        try:
            JpegFrames().of(bytes(broken))
        except TileError:
            continue
        pixels = imagecodecs.jpeg8_decode(bytes(broken))
        if np.abs(pixels.astype(int) - clean).max() <= 8:
            continue
        visible += 1
        try:
            decoded(bytes(broken))
        except TileError as error:
            assert "damaged (" in str(error)  # noqa: PT017
            seen += 1
    assert visible > 150
    assert seen / visible > 0.4, (seen, visible)


def test_empty_tables() -> None:
    assert [*table_segments(b"")] == [*table_segments(EMPTY_TABLES)] == []
