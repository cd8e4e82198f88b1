"""Images with pyramids and labels: what two validators and the reference reader make of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
import ome_zarr_models.v05
import pytest
import yaozarrs
import zarr
from ome_zarr_models.common.omero import Omero
from zarr.api import asynchronous

from streamwsi.errors import ConfigError
from streamwsi.geometry import Grid, Size
from streamwsi.heatmaps import Raster, Transform
from streamwsi.sinks.channel_display import PALETTE, Channel, hex_colour, omero
from streamwsi.sinks.durable import write_json
from streamwsi.sinks.heatmap_metadata import multiscale, ome_attributes
from streamwsi.sinks.label_images import label_image, labels_group
from streamwsi.sinks.zarr_arrays import DurableStore
from streamwsi.sinks.zarr_pyramid import build_pyramid
from streamwsi.slides import Mpp, PyramidLevel

LEVEL = PyramidLevel(0, Size(83 * 4, 61 * 4), (2.0, 2.0), Size(64, 64))
RASTER = Raster(Grid(Size(83 * 4, 61 * 4), Size(4, 4), Size(4, 4)), channels=2)
CLASSES = [Channel("background", active=False), Channel("tumour", "FF0000"), Channel("stroma")]


async def put(store: DurableStore, path: str, cells: npt.NDArray[Any]) -> None:
    array = await asynchronous.create_array(
        store,
        name=path,
        shape=cells.shape,
        chunks=(1, 16, 16)[-cells.ndim :],
        dtype=cells.dtype,
        fill_value=np.nan if cells.dtype.kind == "f" else 0,
        dimension_names=("c", "y", "x")[-cells.ndim :],
    )
    await array.setitem(..., cells)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 2 × 61 × 83 cells and its label image, with pyramids."""
    anyio.run(make_image, tmp_path / "map.zarr")
    return tmp_path / "map.zarr"


async def make_image(root: Path) -> None:
    folder = root / "labels" / "classes"
    await anyio.Path(folder).mkdir(parents=True)
    store = DurableStore(root)
    cells = np.random.default_rng(0).random(RASTER.shape, np.float32)
    await put(store, "0", cells)
    await put(store, "labels/classes/0", (cells[0] * 3).astype(np.uint8))
    paths = await build_pyramid(store, labels=False, smallest=20)
    await build_pyramid(store, "labels/classes/0", labels=True, smallest=20)
    transform = RASTER.transform(LEVEL, Mpp(0.25, 0.25))
    ome = ome_attributes(
        "slide", RASTER, LEVEL, Mpp(0.25, 0.25), *paths, channels=[Channel("a"), Channel("b")]
    )

    def write() -> None:
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        write_json(root / "zarr.json", document)
        write_json(root / "labels" / "zarr.json", labels_group(["classes"]))
        write_json(folder / "zarr.json", label_image("classes", transform, CLASSES, paths))

    await anyio.to_thread.run_sync(write)


def test_ome_zarr_models_finds_both_images_valid(image: Path) -> None:
    group = zarr.open_group(image, mode="r")
    model = ome_zarr_models.v05.Image.from_zarr(group)
    shown = Omero.model_validate(group.attrs["ome"]["omero"])  # type: ignore[index,call-overload]
    assert [channel.color for channel in shown.channels] == [*PALETTE[:2]]
    assert model.labels is not None
    assert model.labels.attributes.ome.labels == ["classes"]
    folder = zarr.open_group(image / "labels" / "classes", mode="r")
    label = ome_zarr_models.v05.ImageLabel.from_zarr(folder).attributes.ome.image_label
    assert label is not None
    assert label.colors is not None
    colours = {colour.label_value: colour.rgba for colour in label.colors}
    assert colours == {0: (0xE6, 0x9F, 0, 0), 1: (255, 0, 0, 255), 2: (0, 0x9E, 0x73, 255)}


@pytest.mark.parametrize("path", [".", "labels", "labels/classes"])
def test_yaozarrs_finds_the_groups_valid(image: Path, path: str) -> None:
    yaozarrs.validate_zarr_store(str(image / path))


@pytest.mark.parametrize(
    ("path", "field"), [(".", "omero"), ("labels", "labels"), ("labels/classes", "image-label")]
)
def test_yaozarrs_sees_what_is_wrong(image: Path, path: str, field: str) -> None:
    """The documents are validated at all."""
    document = json.loads((image / path / "zarr.json").read_text())
    assert document["attributes"]["ome"][field]
    document["attributes"]["ome"][field] = {"channels": 1, "colors": "red"}
    write_json(image / path / "zarr.json", document)
    with pytest.raises(ValueError, match=r"labels|channels|colors"):
        yaozarrs.validate_zarr_store(str(image / path))


def test_the_reference_reader_opens_image_and_labels(image: Path) -> None:
    from ome_zarr.io import parse_url  # type: ignore[import-untyped]
    from ome_zarr.reader import Reader  # type: ignore[import-untyped]

    location = parse_url(image)
    assert location is not None
    nodes = {node.zarr.path.rstrip("/"): node for node in Reader(location)()}
    shown, labels = nodes[str(image)], nodes[str(image / "labels" / "classes")]
    sizes = [(61, 83), (31, 42), (16, 21), (8, 11)]
    assert [level.shape for level in shown.data] == [(2, *size) for size in sizes]
    assert [level.shape for level in labels.data] == sizes
    assert shown.metadata["channel_names"] == ["a", "b"]
    assert shown.metadata["contrast_limits"] == [[0.0, 1.0], [0.0, 1.0]]
    assert labels.metadata["properties"][1] == {"name": "tumour"}
    level = np.asarray(shown.data[1])
    np.testing.assert_array_equal(level, zarr.open_array(image / "1", mode="r")[:])


@pytest.mark.parametrize("axes", ["cyx", "yx"])
def test_a_cell_lies_in_the_middle_of_those_it_is_made_from(axes: str) -> None:
    transform = Transform("micrometer", (3.0, 5.0), (1.25, -7.5))
    paths = ["0", "1", "2", "3"]
    document = multiscale("map", transform, paths, axes=axes)
    assert [dataset["path"] for dataset in document["datasets"]] == paths
    assert [axis["name"] for axis in document["axes"]] == [*axes]

    def centre(k: int, cell: Sequence[int]) -> list[float]:
        scale, translation = document["datasets"][k]["coordinateTransformations"]
        assert scale["scale"][:-2] == [1.0] * (len(axes) - 2)
        assert translation["translation"][:-2] == [0.0] * (len(axes) - 2)
        pairs = zip(scale["scale"][-2:], translation["translation"][-2:], cell, strict=True)
        return [s * n + t for s, t, n in pairs]

    assert centre(0, (0, 0)) == [1.25, -7.5]
    assert centre(0, (2, 3)) == [1.25 + 2 * 3.0, -7.5 + 3 * 5.0]
    for k, i, j in itertools.product(range(4), range(3), range(3)):
        covered = itertools.product(
            range(i * 2**k, (i + 1) * 2**k), range(j * 2**k, (j + 1) * 2**k)
        )
        mean = np.mean([centre(0, cell) for cell in covered], axis=0)
        assert centre(k, (i, j)) == [*mean]


def test_slides_without_mpp_have_no_unit() -> None:
    ome = ome_attributes("slide", RASTER, LEVEL, None)
    (document,) = ome["multiscales"]
    assert [dataset["path"] for dataset in document["datasets"]] == ["0"]
    assert not any("unit" in axis for axis in document["axes"])
    assert "omero" not in ome


def test_channels_are_shown_as_said() -> None:
    channels = [
        Channel("plain"),
        Channel("signed", "00ff7f", window=(-1, 1), limits=(-5, 5), active=False),
    ]
    plain, signed = omero(channels)["channels"]
    assert (plain["label"], plain["active"]) == ("plain", True)
    assert plain["window"] == {"min": 0, "max": 1, "start": 0, "end": 1}
    assert (signed["color"], signed["active"]) == ("00FF7F", False)
    assert signed["window"] == {"min": -5, "max": 5, "start": -1, "end": 1}


def test_eight_channels_have_eight_colours_which_then_repeat() -> None:
    colours = [shown["color"] for shown in omero([Channel(str(i)) for i in range(19)])["channels"]]
    assert len({*colours[:8]}) == 8
    assert colours == [*PALETTE, *PALETTE, *PALETTE][:19]
    assert all(sum(hex_colour(colour)) > 150 for colour in colours)  # black would not be seen


@pytest.mark.parametrize("colour", ["red", "#FF0000", "FF00", "FF00001", "ＦＦ0000", ""])
def test_what_is_no_colour(colour: str) -> None:
    with pytest.raises(ConfigError, match="six hexadecimal digits"):
        Channel("a", colour)


@pytest.mark.parametrize("window", [(1, 0), (0, 0), (0, float("nan")), (float("-inf"), 0)])
def test_what_is_no_range(window: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="from a smaller to a larger"):
        Channel("a", window=window)
    with pytest.raises(ConfigError, match="from a smaller to a larger"):
        Channel("a", limits=window)


def test_labels_may_start_at_another_number() -> None:
    document = label_image("c", Transform(None, (1, 1), (0, 0)), CLASSES, ["0"], first=5)
    ome = document["attributes"]["ome"]
    assert [colour["label-value"] for colour in ome["image-label"]["colors"]] == [5, 6, 7]
