"""Chunks of a zarr array as the bytes of a stranger: what stands between zarr and the disk.

zarr reads and decodes in this process, so that a chunk must not be able to end it, to take
more memory than it decodes to, or to pass for background when it is damaged:

- `ChunkStore` refuses reads that the file does not hold whole. zarr takes an empty answer
  inside a shard for a chunk that was never written, that is, for background.
- Codecs are chosen from a list, by name, before zarr sees them: zarr v2 would unpickle
  chunks where the metadata asks for it.
- Decompression goes to imagecodecs with an upper bound for the output. Blosc trusts the
  lengths in its header, and reads beyond the buffer, up to a crash, where they are wrong;
  so they are compared with what there is first.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import imagecodecs
from numcodecs.abc import Codec  # type: ignore[import-untyped]
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, WrapperStore

from ..errors import CannotRead

__all__ = ["ChunkStore", "most_bytes", "with_safe_codecs"]


def _blosc(data: bytes, out: int) -> bytes:
    if len(data) < 16:
        raise ValueError("Blosc data end early")
    nbytes, _, cbytes = struct.unpack_from("<III", data, 4)
    if cbytes != len(data) or nbytes > out:
        raise ValueError(f"Blosc data of {len(data)} bytes claim {cbytes} that hold {nbytes}")
    return bytes(imagecodecs.blosc_decode(data, out=out))


_DECODERS: dict[str, Callable[..., bytes | bytearray]] = {
    "blosc": _blosc,
    "bz2": imagecodecs.bz2_decode,
    "gzip": imagecodecs.gzip_decode,
    "lz4": partial(imagecodecs.lz4_decode, header=True),
    "zlib": imagecodecs.zlib_decode,
    "zstd": imagecodecs.zstd_decode,
}

_HARMLESS = ("bytes", "crc32c", "endian", "transpose")
"""Codecs of zarr v3 that only look at the bytes they were given."""


def most_bytes(decoded: int) -> int:
    """Bytes that a chunk can take, compressed or with checksums, that decodes to `decoded`."""
    return decoded + decoded // 4 + 65536


class ChunkStore(WrapperStore[LocalStore]):
    """One level's folder.

    Args:
        folder: the array's.
        document: name of its metadata file: a chunk is missing only while this is there.
        most: bytes of a read at most.
    """

    def __init__(self, folder: Path, document: str, most: int) -> None:
        super().__init__(LocalStore(folder, read_only=True))
        self._document = folder / document
        self._most = most

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes of a chunk, or a range of them; None for a chunk that was never written.

        Raises:
            CannotRead: the whole level is gone.
            ValueError: the file does not hold what is asked for.
            OSError: it cannot be read.
        """
        data = await anyio.to_thread.run_sync(self._read, self._store.root / key, byte_range)
        if data is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def _read(self, path: Path, wanted: ByteRequest | None) -> bytes | None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if not self._document.exists():
                raise CannotRead(f"{self._store.root} is gone; bring it back and resume") from None
            return None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("the chunk is not a file")
        begin, end = _range(wanted, status.st_size)
        if not 0 <= begin < end <= status.st_size:
            raise ValueError("the chunk ends early")
        if end - begin > self._most:
            raise ValueError(f"the chunk takes {end - begin} bytes, more than it can decode to")
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        if len(data) < end - begin:
            raise ValueError("the chunk ends early")
        return data


def _range(wanted: ByteRequest | None, size: int) -> tuple[int, int]:
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, wanted.end
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, size
    if isinstance(wanted, SuffixByteRequest):
        return size - wanted.suffix, size
    return 0, size


def with_safe_codecs(document: dict[str, Any], decoded: int) -> dict[str, Any]:
    """An array's metadata with the decompressors replaced by those of this module.

    Args:
        document: the metadata.
        decoded: bytes that a chunk decodes to.

    Raises:
        ValueError: it asks for a codec that is not on the list.
    """
    if document.get("zarr_format") == 2:
        if document.get("filters"):
            raise ValueError(f"it has filters, {_names(document['filters'])}, which are not read")
        compressor = document.get("compressor")
        if compressor is not None:
            compressor = _Compressor(_known(compressor, "id"), most_bytes(decoded))
        return {**document, "compressor": compressor, "filters": None, "attributes": {}}
    return {**document, "codecs": _safe(document.get("codecs")), "attributes": {}}


def _safe(codecs: Any) -> list[Any]:
    if not isinstance(codecs, list):
        raise ValueError("it has no list of codecs")
    return [_safe_codec(codec) for codec in codecs]


def _safe_codec(codec: Any) -> Any:
    name = codec.get("name") if isinstance(codec, dict) else codec
    if name == "sharding_indexed":
        inner = codec["configuration"]
        safe = {key: _safe(inner[key]) for key in ("codecs", "index_codecs") if key in inner}
        return {**codec, "configuration": {**inner, **safe}}
    if name in _HARMLESS:
        return codec
    return _Decompressor(_known(codec, "name"))


def _known(codec: Any, key: str) -> str:
    name = codec.get(key) if isinstance(codec, dict) else codec
    if not isinstance(name, str) or name not in _DECODERS:
        raise ValueError(f"its codec {name!r} is not one of {', '.join(sorted(_DECODERS))}")
    return name


def _names(filters: Any) -> str:
    return ", ".join(str(f.get("id") if isinstance(f, dict) else f)[:40] for f in list(filters)[:5])


class _Compressor(Codec):  # type: ignore[misc]
    """A decompressor of zarr v2."""

    codec_id = "streamwsi"

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self._most = most

    def decode(self, buf: Any, out: Any | None = None) -> bytes | bytearray:
        return _DECODERS[self.name](bytes(buf), out=self._most)

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError("slides are not written")


@dataclass(frozen=True)
class _Decompressor(BytesBytesCodec):
    """A decompressor of zarr v3."""

    name: str
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        nbytes = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        decode = partial(_DECODERS[self.name], out=most_bytes(nbytes))
        data = await anyio.to_thread.run_sync(decode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError("depends on the pixels")
