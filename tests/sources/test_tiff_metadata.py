"""What a TIFF slide says about itself, and which of its images are levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from streamwsi.errors import CannotOpen
from streamwsi.geometry import Box, Size
from streamwsi.slides import Mpp, Slide, SlideRef
from streamwsi.sources.tiff import inspect_tiff, read_tiff

Array = npt.NDArray[Any]
APERIO = "Aperio Image Library v12.0.15 \r\n300x200 [0,0 300x200] (32x32) JPEG/RGB Q=30"


def noise(height: int, width: int, channels: int = 3) -> Array:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


def inspect(path: Path) -> Slide:
    slide = inspect_tiff(SlideRef.of(path))
    json.dumps(dict(slide.properties))
    return slide


def write_svs(path: Path, pairs: str, thumbnail: int = 3) -> None:
    """A slide in the order of Aperio's pages: level, thumbnail, level, label, macro."""
    base = noise(200, 300)
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(base, tile=(32, 32), description=APERIO + pairs, **options)
        small = base[::thumbnail, ::thumbnail]
        writer.write(small, rowsperstrip=16, description="Aperio -> 100x67 -", **options)
        writer.write(base[::2, ::2], tile=(32, 32), description=APERIO + " -> 150x100", **options)
        label, macro = noise(70, 60), noise(70, 180)
        writer.write(label, rowsperstrip=7, subfiletype=1, description="label 60x70", **options)
        writer.write(macro, rowsperstrip=7, subfiletype=9, description="macro 180x70", **options)


def test_aperio(tmp_path: Path) -> None:
    path = tmp_path / "CMU 1.svs"
    write_svs(path, "|AppMag = 20|MPP = 0.4990|Filename = Jane Doe|ScanScope ID = SS1302")
    slide = inspect(path)
    assert (slide.vendor, slide.power, slide.pyramid.mpp) == ("aperio", 20, Mpp(0.499, 0.499))
    assert [level.size for level in slide.pyramid.levels] == [Size(300, 200), Size(150, 100)]
    assert slide.properties["associated"] == ["Thumbnail", "Label", "Macro"]
    assert slide.properties["aperio"] == {
        "AppMag": "20",
        "MPP": "0.4990",
        "ScanScope ID": "SS1302",
    }
    assert slide.nbytes == path.stat().st_size
    assert slide.ref.id == "CMU 1"


@pytest.mark.parametrize("pairs", ["", "|MPP = |AppMag = x", "|MPP = 0|AppMag = -3", "|MPP = nan"])
def test_aperio_without_usable_numbers(tmp_path: Path, pairs: str) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, pairs)
    slide = inspect(path)
    assert (slide.vendor, slide.power, slide.pyramid.mpp) == ("aperio", None, None)


def test_a_large_thumbnail_is_no_level(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    write_svs(path, "|MPP = 0.5", thumbnail=1)
    assert len(inspect(path).pyramid.levels) == 2


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((40000, 20000), "CENTIMETER", Mpp(0.25, 0.5)),
        ((25400, 25400), "INCH", Mpp(1, 1)),
        ((4000, 4000), "MILLIMETER", Mpp(0.25, 0.25)),
        ((40000, 40000), "NONE", None),
        ((1, 1), "CENTIMETER", None),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((600, 600), "INCH", None),
        ((28.34, 28.34), "CENTIMETER", None),
        ((10**8, 10**8), "CENTIMETER", None),
        ((40000, 72), "CENTIMETER", None),
        ((0, 0), "CENTIMETER", None),
    ],
)
def test_resolution_tags_count_where_plausible(
    tmp_path: Path, resolution: tuple[float, float], unit: str, mpp: Mpp | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, noise(40, 40), photometric="rgb", resolution=resolution, resolutionunit=unit
    )
    slide = inspect(path)
    assert slide.pyramid.mpp == mpp
    assert slide.vendor == "generic"


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        (0.25, None, 0.25),
        (0.25, "µm", 0.25),
        (250, "nm", 0.25),
        (0.00025, "mm", 0.25),
        (1.0, "pixel", None),
        (1.0, "reference frame", None),
        (0.0, "µm", None),
    ],
)
def test_ome_physical_size(
    tmp_path: Path, size: float, unit: str | None, mpp: float | None
) -> None:
    path = tmp_path / "a.ome.tif"
    metadata: dict[str, Any] = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": 2 * size}
    if unit is not None:
        metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(path, noise(40, 48), photometric="rgb", tile=(16, 16), metadata=metadata)
    slide = inspect(path)
    assert slide.vendor == "ome"
    if mpp is None:
        assert slide.pyramid.mpp is None
    else:
        assert slide.pyramid.mpp is not None
        assert (slide.pyramid.mpp.x, slide.pyramid.mpp.y) == pytest.approx((mpp, 2 * mpp))


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {uuid}>
  <Instrument ID="Instrument:0">
    <Objective ID="Objective:0" NominalMagnification="5"/>
    <Objective ID="Objective:1" NominalMagnification="40.0"/>
  </Instrument>
  <Image ID="Image:0" Name="macro image">
    <Pixels DimensionOrder="XYCZT" ID="Pixels:0" Type="uint8"
            SizeX="90" SizeY="70" SizeC="1" SizeZ="1" SizeT="1"
            PhysicalSizeX="30" PhysicalSizeY="30">
      <Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="1"/>
    </Pixels>
  </Image>
  <Image ID="Image:1" Name="scan">
    <ObjectiveSettings ID="Objective:1"/>
    <Pixels DimensionOrder="XYCZT" ID="Pixels:1" Type="uint8"
            SizeX="64" SizeY="48" SizeC="2" SizeZ="{z}" SizeT="1"
            PhysicalSizeX="0.5" PhysicalSizeY="0.5">
      <Channel ID="Channel:1:0" Name="DAPI" SamplesPerPixel="1"/>
      <Channel ID="Channel:1:1" Name="CD3" SamplesPerPixel="1"/>
      <TiffData IFD="1" PlaneCount="2">{file}</TiffData>
    </Pixels>
  </Image>
</OME>"""


def write_ome(path: Path, uuid: str = "", file: str = "", z: int = 1) -> Array:
    """A macro image that is larger than the scan behind it, of two channels; returns these."""
    planes = np.moveaxis(noise(48, 64, 2), -1, 0)
    options: dict[str, Any] = {"photometric": "minisblack", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        xml = OME.format(uuid=uuid, file=file, z=z).encode()
        writer.write(noise(70, 90, 1)[..., 0], description=xml, **options)
        for plane in planes:
            writer.write(plane, **options)
    return planes


def test_ome_images_objectives_and_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    planes = write_ome(path)
    slide = inspect(path)
    assert (slide.power, slide.pyramid.mpp) == (40, Mpp(0.5, 0.5))
    assert slide.properties["channels"] == ["DAPI", "CD3"]
    assert slide.properties["associated"] == ["macro image"]
    out = np.zeros((48, 64, 2), np.uint8)
    assert read_tiff(slide.ref, 0, Box(0, 0, 64, 48), out) == ()
    assert np.array_equal(out, np.moveaxis(planes, 0, -1))


OTHER = '<UUID FileName="b.ome.tif">urn:uuid:2</UUID>'


@pytest.mark.parametrize(
    ("uuid", "file"), [("", OTHER), ('UUID="urn:uuid:1"', OTHER)], ids=["anonymous", "named"]
)
def test_ome_in_several_files_is_refused(tmp_path: Path, uuid: str, file: str) -> None:
    path = tmp_path / "a.ome.tif"
    write_ome(path, uuid, file)
    with pytest.raises(CannotOpen, match=r"a\.ome\.tif: is a part of .* 'b\.ome\.tif'"):
        inspect(path)


def test_ome_that_was_renamed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "renamed.tif"
    write_ome(path, 'UUID="urn:uuid:2"', OTHER)
    assert inspect(path).channels == 2


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "ZCYX", "QYX"])
def test_stacks_are_refused(tmp_path: Path, axes: str) -> None:
    path = tmp_path / ("a.tif" if "Q" in axes else "a.ome.tif")
    stack = np.zeros((*(2, 3)[: len(axes) - 2], 32, 48), np.uint8)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(CannotOpen, match=r"is a stack of images \(.*2 along [ZTQ]"):
        inspect(path)


def test_pages_of_one_size_without_a_word_are_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(3):
            writer.write(noise(32, 48), photometric="rgb", metadata=None)
    with pytest.raises(CannotOpen, match=r"stack of images \(3 along I, 3 along S\)"):
        inspect(path)


@pytest.mark.parametrize(
    ("dtype", "options", "words"),
    [
        ("float32", {}, "float32 samples"),
        ("int16", {}, "int16 samples"),
        ("uint32", {}, "uint32 samples"),
        ("bool", {}, "bool samples"),
        ("uint16", {"bitspersample": 12}, "samples of 12 bits"),
        ("uint8", {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")}, "PALETTE"),
        ("uint8", {"compression": "png"}, "compressed with PNG"),
    ],
)
def test_pixels_that_would_be_misread_are_refused(
    tmp_path: Path, dtype: str, options: dict[str, Any], words: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 48), dtype), **({"photometric": "minisblack"} | options))
    with pytest.raises(CannotOpen, match=words):
        inspect(path)


def test_uncompressed_ycbcr_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(40, 48), photometric="ycbcr")
    with pytest.raises(CannotOpen, match="none-compressed YCBCR pixels"):
        inspect(path)


def test_an_image_of_another_shape_is_no_level(tmp_path: Path) -> None:
    """An Aperio file whose label is tiled and not marked as such."""
    path = tmp_path / "a.svs"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "tile": (16, 16)}
    with tifffile.TiffWriter(path) as writer:
        writer.write(noise(96, 160), description=APERIO, **options)
        writer.write(noise(32, 48), description="Aperio thumbnail", **options)
        writer.write(noise(48, 80), description=APERIO, **options)
        writer.write(noise(48, 30), description="Aperio label", **options)
    sizes = [level.size for level in inspect(path).pyramid.levels]
    assert sizes == [Size(160, 96), Size(80, 48)]


@pytest.mark.parametrize(
    ("photometric", "channels", "dtype", "background"),
    [
        ("rgb", 3, "uint8", 255),
        ("rgb", 3, "uint16", 65535),
        ("rgb", 4, "uint8", 255),
        ("minisblack", 1, "uint16", 0),
        ("separated", 4, "uint8", 0),
    ],
)
def test_background(
    tmp_path: Path, photometric: str, channels: int, dtype: str, background: int
) -> None:
    path = tmp_path / "a.tif"
    image = np.ones((32, 32, channels) if channels > 1 else (32, 32), dtype)
    tifffile.imwrite(path, image, photometric=photometric, planarconfig="contig")
    assert inspect(path).properties["background"] == background


def test_hamamatsu(shared: Path) -> None:
    slide = inspect(shared / "slides" / "hamamatsu_fluorescence.ndpi")
    assert (slide.vendor, slide.power) == ("hamamatsu", 40)
    assert slide.pyramid.mpp is not None
    assert slide.pyramid.mpp.x == pytest.approx(10000 / 43826)
    assert slide.properties["associated"] == ["Macro", "Map"]
    assert [level.downsample[0] for level in slide.pyramid.levels] == [1, 2, 4, 8]


def test_placeholders_in_real_files(shared: Path) -> None:
    for name in ("generic_boxes.tiff", "edge/yb10kx5k.zstd.tiff", "aperio_jpeg2000_tcga.svs"):
        assert inspect(shared / "slides" / name).pyramid.mpp is None
