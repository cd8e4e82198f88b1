"""OME-Zarr images from arrays, small enough for tests; written by zarr's synchronous interface.

That interface runs an event loop of its own: call this outside of one, or in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..chunks import Pixels

__all__ = ["write_ome_zarr"]


def write_ome_zarr(
    folder: Path,
    arrays: Sequence[Pixels],
    *,
    zarr_format: int = 3,
    axes: str = "yxc",
    chunk: tuple[int, int] = (64, 64),
    planes: bool = False,
    shard: tuple[int, int] | None = None,
    unit: str | None = "micrometer",
    mpp: tuple[float, float] = (0.5, 0.25),
    **options: Any,
) -> Path:
    """Write a pyramid, and return its folder.

    Args:
        folder: what is made.
        arrays: the levels, finest first, each ``(height, width, channels)``.
        zarr_format: 2 makes OME-Zarr 0.4, 3 makes 0.5.
        axes: the order of the axes; t and z get the length 1, and without c there must be
            one channel.
        chunk: ``(width, height)`` of a chunk.
        planes: whether a chunk holds one channel instead of all.
        shard: ``(width, height)`` of a shard.
        unit: of the spatial axes.
        mpp: size of a level-0 pixel in that unit, ``(x, y)``.
        options: for ``zarr.Group.create_array``: compressors, fill_value, dtype, …
    """
    import zarr

    group = zarr.open_group(folder, mode="w", zarr_format=3 if zarr_format == 3 else 2)
    if zarr_format == 2:
        options.setdefault("chunk_key_encoding", {"name": "v2", "separator": "/"})
    datasets = []
    for index, array in enumerate(arrays):
        written = _in_order(array, axes)
        shape = dict(zip("xyc", (*chunk, 1 if planes else array.shape[2]), strict=True))
        shards = shape | dict(zip("xy", shard, strict=True)) if shard else {}
        level = group.create_array(
            str(index),
            shape=written.shape,
            chunks=tuple(shape.get(axis, 1) for axis in axes),
            shards=tuple(shards.get(axis, 1) for axis in axes) if shard else None,
            **({"dtype": array.dtype} | options),
        )
        level[...] = written
        ratio = {axis: arrays[0].shape[i] / array.shape[i] for i, axis in enumerate("yx")}
        scale = [dict(zip("xy", mpp, strict=True)).get(a, 1.0) * ratio.get(a, 1.0) for a in axes]
        transformation = {"type": "scale", "scale": scale}
        datasets.append({"path": str(index), "coordinateTransformations": [transformation]})
    image: dict[str, Any] = {
        "axes": [_axis(name, unit) for name in axes],
        "datasets": datasets,
        "name": "test",
    }
    if zarr_format == 2:
        group.attrs.update({"multiscales": [image | {"version": "0.4"}]})
    else:
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [image]}})
    return folder


def _in_order(array: Pixels, axes: str) -> Pixels:
    present = [axis for axis in axes if axis in "yxc"]
    array = array if "c" in axes else array[..., 0]
    array = array.transpose([("yxc" if "c" in axes else "yx").index(axis) for axis in present])
    return np.expand_dims(array, [i for i, axis in enumerate(axes) if axis in "tz"])


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": name, "type": "channel"}
    if name == "t":
        return {"name": name, "type": "time"}
    return {"name": name, "type": "space"} | ({"unit": unit} if unit else {})
