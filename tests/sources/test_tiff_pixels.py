"""Every pixel of every kind of TIFF is what tifffile's whole-level array says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from streamwsi.chunks import Damage
from streamwsi.geometry import Box
from streamwsi.slides import PyramidLevel, Slide, SlideRef
from streamwsi.sources.tiff import inspect_tiff, read_tiff

Array = npt.NDArray[Any]
JPEG_TABLES = 347


def picture(height: int, width: int, channels: int = 3, dtype: str = "uint8") -> Array:
    """Blocks of colour with a gradient: compressible, and no two tiles the same."""
    rng = np.random.default_rng(height * 1000 + width + channels)
    blocks = rng.integers(0, 200, (-(-height // 8), -(-width // 8), channels))
    fine = np.kron(blocks, np.ones((8, 8, 1), int))[:height, :width]
    fine += (np.arange(height)[:, None, None] + np.arange(width)[None, :, None]) % 55
    scale = np.iinfo(dtype).max // 255
    return (fine * scale).astype(dtype)


def whole_levels(path: Path) -> list[Array]:
    """tifffile's arrays of the first series, ``(height, width, channels)`` each."""
    arrays = []
    with tifffile.TiffFile(path) as tif:
        for level in tif.series[0].levels:
            array = level.asarray()
            if array.ndim == 2:
                array = array[..., None]
            elif level.axes[-1] == "X":
                array = np.moveaxis(array, 0, -1)
            arrays.append(array)
    return arrays


def tile_boxes(level: PyramidLevel, count: int) -> Iterator[Box]:
    """The whole level, its corner tiles, and random boxes of whole tiles."""
    columns = -(-level.size.width // level.tile.width)
    rows = -(-level.size.height // level.tile.height)
    rng = random.Random(columns * rows)
    cells = [(0, 0, columns, rows), (columns - 1, rows - 1, columns, rows)]
    cells += [(columns - 1, 0, columns, 1), (0, rows - 1, 1, rows)]
    for _ in range(count):
        x, y = rng.randrange(columns), rng.randrange(rows)
        cells.append((x, y, rng.randint(x + 1, columns), rng.randint(y + 1, rows)))
    for x, y, right, bottom in cells:
        yield Box.between(
            x * level.tile.width,
            y * level.tile.height,
            min(right * level.tile.width, level.size.width),
            min(bottom * level.tile.height, level.size.height),
        )


def read(slide: Slide, level: int, box: Box) -> tuple[Array, tuple[Damage, ...]]:
    """The box, read into a view whose rows are strided; what surrounds it must not change."""
    around = np.full((box.height + 2, box.width + 5, slide.channels), 77, slide.dtype)
    out = around[1:-1, 2:-3]
    damage = read_tiff(slide.ref, level, box, out)
    frame = around.copy()
    frame[1:-1, 2:-3] = 77
    assert (frame == 77).all()
    return out, damage


def assert_same_pixels(path: Path, boxes: int = 6) -> Slide:
    """Compare all levels of a file with tifffile; returns the slide."""
    slide = inspect_tiff(SlideRef.of(path))
    levels = whole_levels(path)
    assert [(*level.shape[:2],) for level in levels] == [
        (level.size.height, level.size.width) for level in slide.pyramid.levels
    ]
    for array, level in zip(levels, slide.pyramid.levels, strict=True):
        assert array.shape[2] == slide.channels
        assert array.dtype == slide.dtype
        for box in tile_boxes(level, boxes):
            pixels, damage = read(slide, level.index, box)
            assert damage == ()
            assert np.array_equal(pixels, array[box.y : box.bottom, box.x : box.right]), box
    return slide


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (32, 32)},
    "tall tiles": {"tile": (64, 16)},
    "wide tiles": {"tile": (16, 48)},
    "tile beyond the image": {"tile": (128, 256)},
    "strips": {"rowsperstrip": 7},
    "one strip": {},
}


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_and_byte_orders(
    tmp_path: Path, byteorder: Any, bigtiff: bool, layout: dict[str, Any]
) -> None:
    path = tmp_path / "a.tif"
    image = picture(77, 101, dtype="uint16")
    tifffile.imwrite(path, image, photometric="rgb", byteorder=byteorder, bigtiff=bigtiff, **layout)
    slide = assert_same_pixels(path)
    (level,) = slide.pyramid.levels
    rows, columns = layout.get("tile", (layout.get("rowsperstrip", 77), 101))
    assert (level.tile.height, level.tile.width) == (rows, columns)
    assert (slide.dtype, slide.compression) == ("uint16", "none")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("deflate", "Deflate"),
        (32946, "Deflate"),
        ("lzw", "LZW"),
        ("zstd", "ZSTD"),
        ("packbits", "PackBits"),
        ("lzma", "LZMA"),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", [False, True], ids=["contiguous", "planar"])
def test_lossless_compressions(
    tmp_path: Path, number: Any, words: str, dtype: str, planar: bool
) -> None:
    path = tmp_path / "a.tif"
    image = picture(77, 101, dtype=dtype)
    tifffile.imwrite(
        path,
        np.moveaxis(image, -1, 0) if planar else image,
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
        compression=number,
        predictor=number != "packbits",
        tile=(32, 48),
        byteorder=">",
    )
    slide = assert_same_pixels(path)
    assert slide.compression == words
    np.testing.assert_array_equal(read(slide, 0, Box(0, 0, 101, 77))[0], image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("planar", [False, True], ids=["contiguous", "planar"])
@pytest.mark.parametrize("layout", [{"tile": (32, 32)}, {"rowsperstrip": 9}], ids=["tile", "strip"])
def test_channels(tmp_path: Path, channels: int, planar: bool, layout: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    image = picture(50, 70, channels)
    stored = np.moveaxis(image, -1, 0) if planar else image
    tifffile.imwrite(
        path,
        image[..., 0] if channels == 1 else stored,
        photometric="minisblack",
        planarconfig=None if channels == 1 else "separate" if planar else "contig",
        compression="deflate",
        metadata=None,
        **layout,
    )
    slide = assert_same_pixels(path)
    np.testing.assert_array_equal(read(slide, 0, Box(0, 0, 70, 50))[0], image)


@pytest.mark.parametrize(
    ("photometric", "channels", "subsampling"),
    [
        ("ycbcr", 3, (1, 1)),
        ("ycbcr", 3, (2, 1)),
        ("ycbcr", 3, (2, 2)),
        ("ycbcr", 3, (4, 1)),
        ("rgb", 3, None),
        ("minisblack", 1, None),
        ("separated", 4, None),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "layout", [{"tile": (32, 64)}, {"rowsperstrip": 16}], ids=["tile", "strip"]
)
def test_jpeg(
    tmp_path: Path,
    photometric: str,
    channels: int,
    subsampling: tuple[int, int] | None,
    layout: dict[str, Any],
) -> None:
    path = tmp_path / "a.tif"
    image = picture(75, 150, channels)
    tifffile.imwrite(
        path,
        image[..., 0] if channels == 1 else image,
        photometric=photometric,
        compression="jpeg",
        subsampling=subsampling,
        compressionargs={"outcolorspace": "rgb"} if photometric == "rgb" else None,
        **layout,
    )
    slide = assert_same_pixels(path)
    assert slide.compression == "JPEG"


def write_jpeg_tiles(
    path: Path, image: Array, photometric: str, encode: Callable[[Array], bytes], **options: Any
) -> None:
    """A tiled TIFF from tiles that were encoded here."""
    padded = np.pad(image, [(0, -n % 32) for n in image.shape[:2]] + [(0, 0)], mode="edge")
    tiles = [
        encode(np.ascontiguousarray(padded[y : y + 32, x : x + 32]))
        for y in range(0, padded.shape[0], 32)
        for x in range(0, padded.shape[1], 32)
    ]
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=image.shape,
        dtype=image.dtype,
        tile=(32, 32),
        photometric=photometric,
        metadata=None,
        **options,
    )


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG stream, and the abbreviated stream that needs them."""
    tables: list[bytes] = []
    rest: list[bytes] = []
    at = 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        (tables if data[at + 1] in (0xDB, 0xC4) else rest).append(data[at:end])
        at = end
    return (
        b"\xff\xd8" + b"".join(tables) + b"\xff\xd9",
        b"\xff\xd8" + b"".join(rest) + data[at:],
    )


@pytest.mark.parametrize("colours", ["rgb", "ycbcr"])
def test_jpeg_tables_shared_by_tiles(tmp_path: Path, colours: str) -> None:
    path = tmp_path / "a.tif"

    def encoded(tile: Array) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(tile, 70, outcolorspace=colours))

    image = picture(75, 100)
    tables, _ = split_jpeg(encoded(image[:32, :32].copy()))
    write_jpeg_tiles(
        path,
        image,
        colours,
        lambda tile: split_jpeg(encoded(tile))[1],
        compression="jpeg",
        subsampling=(1, 1) if colours == "ycbcr" else None,
        extratags=[(JPEG_TABLES, 7, len(tables), tables, True)],
    )
    assert_same_pixels(path)


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_jpeg_with_rare_subsampling(tmp_path: Path, subsampling: str) -> None:
    path = tmp_path / "a.tif"

    def encode(tile: Array) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(tile, 90, subsampling=subsampling))

    write_jpeg_tiles(path, picture(64, 64), "ycbcr", encode, compression="jpeg")
    assert_same_pixels(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_rgb_with_and_without_jfif_header(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.tif"
    with_jfif = tmp_path / "b.tif"
    image = picture(64, 64)

    def encode(tile: Array) -> bytes:
        return bytes(imagecodecs.jpeg8_encode(tile, 90, optimize=progressive))

    write_jpeg_tiles(with_jfif, image, "rgb", encode, compression="jpeg")

    def without_header(tile: Array) -> bytes:
        data = encode(tile)
        length = int.from_bytes(data[4:6], "big")
        return data[:2] + data[4 + length :] if data[2:4] == b"\xff\xe0" else data

    write_jpeg_tiles(path, image, "rgb", without_header, compression="jpeg")
    assert_same_pixels(with_jfif)
    assert_same_pixels(path)


def test_lossless_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = picture(64, 64)

    def encode(tile: Array) -> bytes:
        return bytes(
            imagecodecs.jpeg8_encode(tile, lossless=True, colorspace="rgb", outcolorspace="rgb")
        )

    write_jpeg_tiles(path, image, "rgb", encode, compression="jpeg")
    slide = assert_same_pixels(path)
    np.testing.assert_array_equal(read(slide, 0, Box(0, 0, 64, 64))[0], image)


@pytest.mark.parametrize("planar", [False, True], ids=["contiguous", "planar"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("number", [33003, 33005, 34712])
def test_jpeg2000(tmp_path: Path, number: int, dtype: str, planar: bool) -> None:
    path = tmp_path / "a.svs"
    image = picture(75, 100, dtype=dtype)
    tifffile.imwrite(
        path,
        np.moveaxis(image, -1, 0) if planar else image,
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
        compression=number,
        tile=(32, 32),
    )
    slide = assert_same_pixels(path, boxes=2)
    assert slide.compression == "JPEG 2000"


def test_aperio_33003_without_a_declared_transform_is_ycbcr(tmp_path: Path) -> None:
    """Aperio stores YCbCr in it and says RGB in the TIFF; the pixels must be RGB."""
    path = tmp_path / "a.svs"
    ycbcr = picture(40, 40)
    write_jpeg_tiles(
        path,
        ycbcr,
        "rgb",
        lambda tile: bytes(
            imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", reversible=True, mct=False)
        ),
        compression=33003,
    )
    slide = inspect_tiff(SlideRef.of(path))
    pixels, damage = read(slide, 0, Box(0, 0, 40, 40))
    assert damage == ()
    y, cb, cr = (ycbcr[..., i].astype(float) for i in range(3))
    rgb = (
        y + 1.402 * (cr - 128),
        y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
        y + 1.772 * (cb - 128),
    )
    expected = np.stack(rgb, axis=-1).clip(0, 255)
    assert abs(pixels - expected).max() < 0.51


@pytest.mark.parametrize(
    ("ome", "nested"),
    [(False, False), (False, True), (True, True)],
    ids=["pages", "SubIFD", "OME-TIFF"],
)
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_pyramids(tmp_path: Path, ome: bool, nested: bool, compression: str) -> None:
    path = tmp_path / "a.tif"
    image = picture(301, 203)
    options: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32), "compression": compression}
    with tifffile.TiffWriter(path, ome=ome) as writer:
        writer.write(image, subifds=2 if nested else None, **options)
        for step in (2, 4):
            small = image[::step, ::step][: 301 // step, : 203 // step]
            writer.write(small, subfiletype=1, metadata=None, **options)
    slide = assert_same_pixels(path)
    assert [level.downsample for level in slide.pyramid.levels] == [(1, 1), (2, 2), (4, 4)]


@pytest.mark.parametrize("channels", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_channels_on_pages_of_their_own(
    tmp_path: Path, channels: int, dtype: str, compression: str | None
) -> None:
    path = tmp_path / "a.ome.tif"
    planes = np.moveaxis(picture(130, 90, channels, dtype), -1, 0)
    options: dict[str, Any] = {
        "photometric": "minisblack",
        "tile": (32, 32),
        "compression": compression,
    }
    with tifffile.TiffWriter(path, ome=True, byteorder=">") as writer:
        writer.write(planes, subifds=1, metadata={"axes": "CYX"}, **options)
        writer.write(planes[:, ::2, ::2], subfiletype=1, metadata=None, **options)
    slide = assert_same_pixels(path)
    assert slide.channels == channels
    assert len(slide.pyramid.levels) == 2
    np.testing.assert_array_equal(read(slide, 0, Box(0, 0, 90, 130))[0], np.moveaxis(planes, 0, -1))


SLIDES = [
    "aperio_jpeg2000_tcga.svs",
    "aperio_jpeg_cmu1_small_region.svs",
    "generic_boxes.tiff",
    "hamamatsu_fluorescence.ndpi",
    "ometiff_uint16_3ch_subifd.ome.tif",
    "edge/BigTIFFMotorola.tif",
    "edge/no_rows_per_strip.tiff",
    "edge/planar-rgb-u8.tif",
    "edge/rgb-3c-16b.tiff",
    "edge/tiled-rect-rgb-u8.tif",
    "edge/yb10kx5k.zstd.tiff",
]


@pytest.mark.parametrize("name", SLIDES)
def test_real_slides(shared: Path, name: str) -> None:
    assert_same_pixels(shared / "slides" / name, boxes=0)


@pytest.mark.slow
def test_real_slide_of_seven_thousand_tiles(shared: Path) -> None:
    assert_same_pixels(shared / "slides" / "aperio_style_ihc_pyramid.svs", boxes=3)
