"""The compressor of dense maps: blosc with zstd, whose result depends on nothing but the cells.

blosc cuts a chunk into blocks, compresses them in threads where it is allowed to, and stores them
in the order in which they were ready: the same cells, other bytes. zarr allows it no threads, but
that is one switch for the whole process, which any other code may turn. A chunk that is one block
gives the same bytes whatever the switch says; and it is compressed at least as well and as fast.

Importing this module imports zarr.
"""

from __future__ import annotations

from math import prod

from zarr.codecs import BloscCodec

__all__ = ["blosc_zstd"]


def blosc_zstd(chunks: tuple[int, ...], itemsize: int, level: int = 1) -> BloscCodec:
    """The compressor for chunks of that shape.

    Args:
        chunks: cells of a chunk (of a shard's inner chunk, where there are shards).
        itemsize: bytes per cell.
        level: zstd's, as blosc counts: 1 to 9. Those above 1 take several times as long for some
            per cent.
    """
    return BloscCodec(
        cname="zstd",
        clevel=level,
        # The bytes of numbers differ in kind by their place; labels are single bytes.
        shuffle="shuffle" if itemsize > 1 else "noshuffle",
        typesize=itemsize,
        blocksize=prod(chunks) * itemsize,
    )
