"""A heatmap as a tiled, pyramidal OME-TIFF, as QuPath, Bio-Formats and tifffile open it.

A page per channel, with the coarser levels as its SubIFDs; Deflate, tiles of 256 pixels, BigTIFF
where 4 GiB might not do. A pixel is a cell of the heatmap.

**Alignment.** The pixels' physical size is the distance between cells in micrometres; the planes'
position is that of the image's upper left corner, from the slide's upper left corner, in
micrometres, or in level-0 pixels where the slide has no mpp. The description says both in level-0
pixels: pixel (i, j) covers ``x + i · width … x + (i + 1) · width`` and likewise in y. Where windows
are larger than their distance, cells are the middles of windows, and the image begins inside
the slide's corner.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from .heatmap import Heatmap, open_heatmap
from .pyramids import TILE, Layer, layers
from .replacing import replacing

__all__ = ["export_ome_tiff"]

#: Beyond this, offsets of 32 bits might not do: the headers need some room as well.
_CLASSIC_BYTES = 2**32 - 2**26
#: Of tiles that are compressed at the same time.
_BUFFER_BYTES = 16 << 20


def export_ome_tiff(
    heatmap: str | Path,
    out: str | Path,
    *,
    label: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write all channels and levels; it blocks: in asynchronous code, call it in a thread.

    Pixels have the heatmap's values and type (float16 becomes float32); levels that the heatmap
    lacks are made from its coarsest one, by halves, and lie beside `out` meanwhile.

    Args:
        heatmap: the folder of a heatmap.
        out: the file, as a rule ``….ome.tiff``.
        label: a label image of the group, instead of the heatmap itself.
        overwrite: replace a file that is there.

    Returns:
        How many levels there are.

    Raises:
        ConfigError: the file is there already.
        CannotOpen: there is no heatmap, or it holds no values yet.
        CannotRead: a chunk of it cannot be read.
        CannotWrite: the file cannot be written.
    """
    import tifffile

    source = open_heatmap(heatmap, label)
    with replacing(Path(out), overwrite, source.record) as made:
        pyramid = layers(source, made.parent)
        big = sum(layer.nbytes for layer in pyramid) > _CLASSIC_BYTES
        with tifffile.TiffWriter(made, bigtiff=big, byteorder="<", ome=True) as file:
            for number, layer in enumerate(pyramid):
                first = {"subifds": len(pyramid) - 1, "metadata": _metadata(source)}
                coarser = {"subfiletype": 1, "metadata": None}
                _write(file, layer, **(coarser if number else first))
    return len(pyramid)


def _write(file: Any, layer: Layer, **options: Any) -> None:
    file.write(
        layer.tiles(),
        shape=layer.shape,
        dtype=layer.dtype,
        tile=(TILE, TILE),
        photometric="minisblack",
        compression="zlib",
        buffersize=_BUFFER_BYTES,
        software="streamwsi",
        **options,
    )


def _metadata(heatmap: Heatmap) -> dict[str, Any]:
    """What the OME-XML says."""
    cells, count, mpp = heatmap.levels[0].cells, len(heatmap.channels), heatmap.record.mpp
    (x, y), (width, height) = cells.origin, cells.pitch
    colours = [channel.colour for channel in heatmap.channels]
    channels: dict[str, Any] = {"Name": [channel.name for channel in heatmap.channels]}
    if all(colour is not None for colour in colours):
        channels["Color"] = [_rgba(*colour) for colour in colours if colour is not None]
    unit = "µm" if mpp else "pixel"
    per_x, per_y = mpp or (1.0, 1.0)
    size: dict[str, Any] = {}
    if mpp:
        size = {"PhysicalSizeX": width * per_x, "PhysicalSizeY": height * per_y}
        size |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    about = (
        f"Heatmap of {heatmap.record.slide}. Pixel (0, 0) covers {width:.10g} × {height:.10g} "
        f"level-0 pixels of the slide from x {x:.10g}, y {y:.10g} on; the others follow without "
        "gaps."
    )
    return {
        "axes": "CYX",
        "Name": heatmap.name,
        "Description": about,
        "Creator": "streamwsi",
        # The same heatmap, the same bytes: not the random one that there would be.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{heatmap.name} {about}")),
        "Channel": channels,
        "Plane": {
            "PositionX": [x * per_x] * count,
            "PositionXUnit": [unit] * count,
            "PositionY": [y * per_y] * count,
            "PositionYUnit": [unit] * count,
        },
        **size,
    }


def _rgba(red: int, green: int, blue: int) -> int:
    """OME's colours: a signed number of 32 bits."""
    return int.from_bytes([red, green, blue, 255], "big", signed=True)
