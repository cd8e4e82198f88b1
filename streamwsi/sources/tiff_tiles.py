"""The pixels of a box of a level: every tile is read, decoded once and put into its place.

A tile that cannot be had is tried once more through a fresh handle (network file systems lose
handles and data on the way); then its pixels are 0 and it is
reported, with the reason. A tile that was never stored (offset and byte count 0) is background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from ..chunks import Damage
from ..errors import ContractBroken
from ..geometry import Box, Size
from .tiff_codestreams import TileError
from .tiff_files import SlideFile
from .tiff_levels import StoredLevel

__all__ = ["read_tiles"]

_OVERHEAD_BYTES = 2**20
"""What compressed data may take beyond twice the decoded size, before they are not believed."""


def read_tiles(
    file: SlideFile,
    stored: StoredLevel,
    box: Box,
    out: npt.NDArray[Any],
    reopen: Callable[[], SlideFile],
) -> tuple[Damage, ...]:
    """Fill ``out[:box.height, :box.width, :channels]`` with the pixels of `box`.

    Args:
        file: the slide's file.
        stored: the level.
        box: whole tiles of the level, cut at its edges.
        out: at least of the box's size; rows may be strided.
        reopen: gives a fresh handle of the same file.

    Returns:
        What could not be had, in the order of tiles.

    Raises:
        CannotRead: from `reopen`.
        ContractBroken: the box is not made of whole tiles, or does not fit `out`.
    """
    _check(stored, box, out)
    failed: list[tuple[int, Box, npt.NDArray[Any]]] = []
    for number, area in _tiles(stored, box):
        place = area.shifted(-box.x, -box.y)
        pixels = out[place.y : place.bottom, place.x : place.right, : stored.channels]
        try:
            _read_tile(file, stored, number, area, pixels)
        except (TileError, OSError):
            failed.append((number, area, pixels))
    if not failed:
        return ()
    fresh = reopen()
    return tuple(
        damage
        for number, area, pixels in failed
        if (damage := _read_again(fresh, stored, number, area, pixels)) is not None
    )


def _check(stored: StoredLevel, box: Box, out: npt.NDArray[Any]) -> None:
    level = stored.level
    if box.empty or box != box.snapped(level.tile, level.size) or box.x < 0 or box.y < 0:
        raise ContractBroken(f"{box} is not made of whole tiles of level {level.index}")
    need = (box.height, box.width, stored.channels)
    if out.ndim != 3 or any(have < n for have, n in zip(out.shape, need, strict=True)):
        raise ContractBroken(f"pixels of the shape {need} do not fit into {out.shape}")


def _tiles(stored: StoredLevel, box: Box) -> Iterator[tuple[int, Box]]:
    """Number and place of each tile in the box, row by row."""
    tile, size = stored.level.tile, stored.level.size
    for y in range(box.y, box.bottom, tile.height):
        for x in range(box.x, box.right, tile.width):
            number = y // tile.height * stored.columns + x // tile.width
            yield (
                number,
                Box.between(
                    x, y, min(x + tile.width, size.width), min(y + tile.height, size.height)
                ),
            )


def _read_tile(
    file: SlideFile, stored: StoredLevel, number: int, area: Box, pixels: npt.NDArray[Any]
) -> None:
    """Decode all planes of a tile into `pixels`, a view of the tile's place.

    Raises:
        TileError: a plane cannot be had.
        OSError: the file cannot be read.
    """
    visible = Size(area.width, area.height)
    for plane, (decode, first) in enumerate(stored.decoders):
        channels = pixels[..., plane * stored.samples : (plane + 1) * stored.samples]
        offset, count = int(stored.offsets[plane, number]), int(stored.nbytes[plane, number])
        if offset == 0 and count == 0:
            channels[...] = stored.background
            continue
        data = _compressed(file, stored, offset, count)
        tile = decode(data, first + number, visible)
        if (
            tile.dtype != stored.dtype
            or tile.ndim != 3
            or tile.shape[0] < area.height
            or tile.shape[1] < area.width
            or tile.shape[2] != stored.samples
        ):
            raise TileError(f"it decodes to {tile.shape} {tile.dtype} instead of {visible} pixels")
        channels[...] = tile[: area.height, : area.width]


def _compressed(file: SlideFile, stored: StoredLevel, offset: int, count: int) -> bytes:
    """The stored bytes of a tile, once its position and length make sense."""
    if count <= 0:
        raise TileError("it has no bytes")
    if stored.compression == "none":
        count = min(count, stored.tile_nbytes)
    elif count > 2 * stored.tile_nbytes + _OVERHEAD_BYTES:
        raise TileError(f"it claims {count} bytes, too many for its size")
    if offset <= 0 or offset + count > file.size:
        raise TileError(
            f"its {count} bytes at byte {offset} lie outside the file of {file.size} bytes"
        )
    data = file.read(offset, count)
    if len(data) < count:
        raise TileError("the file ends before its data do")
    return data


def _read_again(
    file: SlideFile, stored: StoredLevel, number: int, area: Box, pixels: npt.NDArray[Any]
) -> Damage | None:
    try:
        _read_tile(file, stored, number, area, pixels)
    except (TileError, OSError) as error:
        pixels[...] = 0
        reason = str(error) if isinstance(error, TileError) else f"it cannot be read ({error})"
        return Damage(stored.level.index, number, area, reason)
    return None
