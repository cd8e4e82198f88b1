"""A level of an OME-Zarr image as a zarr array, checked before anything is allocated.

What is decoded at once is a chunk; in a sharded array it is the *inner* chunk, because zarr
fetches and decodes those alone, by the shard's index. Only where something wraps the shards
(a codec around them) must zarr decode them whole, and then the shard is the chunk.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from zarr import AsyncArray
from zarr.storage import StorePath

from ..errors import CannotOpen
from ..geometry import Box, Size
from .zarr_chunks import ChunkStore, most_bytes, with_safe_codecs
from .zarr_header import LevelHeader

__all__ = ["ZarrLevel", "digest", "open_level"]

_MOST_CHUNK_BYTES = 256 * 2**20
_MOST_CHUNKS = 2**26
_MOST_CHUNKS_PER_SHARD = 2**20

_SAMPLES = 5
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class ZarrLevel:
    """A level that can be read.

    Attributes:
        header: what is written about it.
        axes: one letter per axis of the array.
        chunk: the shape of what is decoded at once.
        array: zarr's array.
    """

    header: LevelHeader
    axes: tuple[str, ...]
    chunk: tuple[int, ...]
    array: AsyncArray[Any]

    @property
    def size(self) -> Size:
        """In pixels."""
        return Size(self._of(self.header.shape, "x"), self._of(self.header.shape, "y"))

    @property
    def tile(self) -> Size:
        """The chunk's extent in the plane, in pixels."""
        return Size(self._of(self.chunk, "x"), self._of(self.chunk, "y"))

    @property
    def channels(self) -> int:
        """Samples per pixel."""
        return self._of(self.header.shape, "c")

    def _of(self, numbers: tuple[int, ...], axis: str) -> int:
        return numbers[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def compression(self) -> str:
        """How chunks are stored, in words."""
        names = [getattr(codec, "name", "") for codec in self.array.compressors]
        return " ".join([*filter(None, names)] + ["in shards"] * bool(self.array.shards)) or "none"

    async def pixels(self, box: Box) -> npt.NDArray[Any]:
        """The pixels of a box, a new array ``(height, width, channels)``.

        Raises:
            Exception: whatever zarr or a codec raises at a chunk that cannot be decoded.
        """
        spans = {"x": slice(box.x, box.right), "y": slice(box.y, box.bottom)}
        selection = tuple(spans.get(axis, slice(None)) for axis in self.axes)
        pixels = np.asarray(await self.array.getitem(selection))
        order = sorted(range(len(self.axes)), key=lambda i: "yxctz".index(self.axes[i]))
        # What is left behind y and x is c, and axes of length 1.
        return pixels.transpose(order).reshape(box.height, box.width, self.channels)

    def samples(self) -> Iterable[bytes]:
        """Sizes and first bytes of a few chunks on the diagonal; blocks."""
        grid = self.array.metadata.chunk_grid.chunk_shape
        for i in range(_SAMPLES):
            cell = [
                (n - 1) * i // (_SAMPLES - 1) // step
                for n, step in zip(self.header.shape, grid, strict=True)
            ]
            path = self.header.file.parent / self.array.metadata.encode_chunk_key(tuple(cell))
            try:
                with path.open("rb") as file:
                    yield file.read(_SAMPLE_BYTES) + str(file.seek(0, 2)).encode()
            except OSError:
                yield b"missing"


def open_level(uri: str, header: LevelHeader, axes: tuple[str, ...]) -> ZarrLevel:
    """The level, as zarr understands its metadata. Opens nothing and does not block.

    Raises:
        CannotOpen: zarr cannot, or a chunk is too large or too small to be true.
    """
    try:
        return _level(header, axes)
    except Exception as error:
        # Metadata from strangers: zarr answers them with all kinds of exceptions.
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"its metadata has no {reason}"
        raise CannotOpen(f"{uri}: level {header.name!r} cannot be read: {reason}") from error


def _level(header: LevelHeader, axes: tuple[str, ...]) -> ZarrLevel:
    itemsize = np.dtype(header.dtype).itemsize
    stored, chunk = _chunk_shapes(header.document)
    for shape in (stored, chunk):
        if len(shape) != len(axes):
            raise ValueError(f"chunks of the shape {shape} do not fit the axes {', '.join(axes)}")
    nbytes = math.prod(chunk) * itemsize
    if nbytes > _MOST_CHUNK_BYTES:
        raise ValueError(
            f"its chunks take {nbytes / 2**20:.0f} MiB each, more than "
            f"{_MOST_CHUNK_BYTES / 2**20:.0f} MiB; write the image with smaller ones"
        )
    count = math.prod(-(-n // step) for n, step in zip(header.shape, chunk, strict=True))
    if count > _MOST_CHUNKS or math.prod(stored) // math.prod(chunk) > _MOST_CHUNKS_PER_SHARD:
        raise ValueError(f"its chunks of the shape {chunk} are too many; write larger ones")
    index = 16 * (math.prod(stored) // math.prod(chunk))
    store = ChunkStore(
        header.file.parent, header.file.name, most_bytes(math.prod(stored) * itemsize) + index
    )
    array = AsyncArray.from_dict(StorePath(store), with_safe_codecs(header.document, nbytes))
    return ZarrLevel(header, axes, chunk, array)


def _chunk_shapes(document: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of what is stored as a file, and of what is decoded at once."""
    if document["zarr_format"] == 2:
        shape = _positive(document["chunks"])
        return shape, shape
    grid, codecs = document["chunk_grid"], document["codecs"]
    if grid["name"] != "regular":
        raise ValueError(f"its chunks form a {str(grid['name'])[:40]!r} grid, not a regular one")
    shape = _positive(grid["configuration"]["chunk_shape"])
    if len(codecs) == 1 and isinstance(codecs[0], dict) and codecs[0]["name"] == "sharding_indexed":
        return shape, _positive(codecs[0]["configuration"]["chunk_shape"])
    return shape, shape


def _positive(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise ValueError(f"its chunks have no usable shape, but {str(shape)[:60]}")
    return tuple(shape)


def digest(documents: Iterable[bytes], levels: Iterable[ZarrLevel]) -> str:
    """32 hex digits that tell images apart: SHA-256 over metadata and samples; blocks."""
    sha = hashlib.sha256()
    for data in (*documents, *(sample for level in levels for sample in level.samples())):
        sha.update(len(data).to_bytes(8) + data)
    return sha.hexdigest()[:32]
