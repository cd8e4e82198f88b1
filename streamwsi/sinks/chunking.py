"""How a dense map is cut into chunks (what a viewer fetches) and shards (files).

A map is finished block by block: some rows of cells, over its whole width or over one panel's
columns. zarr writes a shard as one file, and where only a part of a shard is written it reads the
shard and writes all of it again; so that each file is written once, a block holds whole shards:

- A chunk has one channel. Viewers show channels one by one, and need not fetch the others; files
  do not multiply, for a shard holds all channels, as far as it may be that big.
- Chunks are about `side` × `side` cells. Their rows divide a block's, and their columns a panel's.
- A shard takes as many chunks as `shard_bytes` holds: first the channels, then columns, then rows.
  Its rows and columns, too, divide those of a block.

512 × 512 float32 cells make 1 MiB, a good piece for a request, and are a quarter of the work per
chunk that 256 × 256 are. With 64 MiB per shard, 2 × 100 000 × 100 000 float32 cells and their
pyramid make fewer than 2000 files; 30 000 where the level is walked in panels, whose edges cut
shards down to 8 MiB. Encoding a shard takes memory of about three times its size.

Only integers here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import isqrt, prod
from typing import NamedTuple

from ..errors import ConfigError

__all__ = ["SHARD_BYTES", "SIDE", "Chunking", "Selection", "choose_chunks", "tiles", "within"]

Selection = tuple[slice, ...]

#: Cells per side of a chunk.
SIDE = 512
#: Uncompressed bytes of a shard.
SHARD_BYTES = 64 << 20
#: A chunk's rows and columns fit their block where they can; this much larger it may get for it.
_LARGER = 4
#: blosc compresses at most 2 GiB at once.
_MAX_CHUNK_BYTES = 1 << 30


class Chunking(NamedTuple):
    """The shapes of chunks and shards, with as many axes as the array.

    Attributes:
        chunks: cells of a chunk.
        shards: cells of a shard, a multiple of the chunks'; None where each chunk is a file.
    """

    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None

    @property
    def files(self) -> tuple[int, ...]:
        """Cells of what is one file."""
        return self.shards or self.chunks


def choose_chunks(
    shape: tuple[int, ...],
    itemsize: int,
    block_rows: int,
    block_columns: int | None = None,
    *,
    side: int = SIDE,
    shard_bytes: int = SHARD_BYTES,
) -> Chunking:
    """Chunks and shards of a map that is finished in blocks.

    Blocks begin at multiples of `block_rows` and `block_columns`; the last ones may be smaller.
    Numbers with many divisors (multiples of `side`) make the best chunks.

    Args:
        shape: ``(rows, columns)``, or ``(channels, rows, columns)``; at least 1 each.
        itemsize: bytes per cell and channel.
        block_rows: rows of cells of a block.
        block_columns: columns of cells of a block; None for the map's width.
        side: cells per side of a chunk, about.
        shard_bytes: uncompressed bytes of a shard at most; 0 for one file per chunk.

    Raises:
        ConfigError: `side` or `shard_bytes` are out of range.
    """
    _check(side, itemsize, shard_bytes)
    *channels, rows, columns = shape
    tall, wide = min(block_rows, rows), min(block_columns or columns, columns)
    # Nothing has to be divided where one block holds the axis.
    free_rows, free_columns = tall == rows, wide == columns
    width = min(side, columns) if free_columns else _divisor(wide, side, wide)
    height = min(side, max(1, side * side // width))
    if free_rows:
        height = min(height, rows)
    else:
        height = _divisor(tall, height, _LARGER * side * side // width)
    chunks = (*(1 for _ in channels), height, width)
    fits = shard_bytes // (height * width * itemsize)
    deep = min(prod(channels), fits)
    if deep == 0:
        return Chunking(chunks, None)
    across = _multiple(-(-wide // width), fits // deep, free=free_columns)
    down = _multiple(-(-tall // height), fits // (deep * across), free=free_rows)
    shards = (*(deep for _ in channels), down * height, across * width)
    return Chunking(chunks, shards if shards != chunks else None)


def _check(side: int, itemsize: int, shard_bytes: int) -> None:
    longest = isqrt(_MAX_CHUNK_BYTES // (_LARGER * itemsize))
    if not 1 <= side <= longest:
        raise ConfigError(f"a chunk's side must be 1 to {longest} cells, not {side}")
    if shard_bytes < 0:
        raise ConfigError(f"a shard's bytes must be at least 0, not {shard_bytes}")


def _divisor(number: int, near: int, largest: int) -> int:
    """The divisor of `number`, at most `largest`, that is nearest to `near` by its ratio."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = max((d for d in divisors if d <= near), default=1)
    above = min((d for d in divisors if near < d <= largest), default=below)
    return above if above * below <= near * near else below


def _multiple(count: int, fits: int, *, free: bool) -> int:
    """How many of `count` chunks go into a shard along an axis, where at most `fits` may."""
    most = max(1, min(count, fits))
    return most if free else next(n for n in range(most, 0, -1) if count % n == 0)


def tiles(area: Selection, step: tuple[int, ...]) -> Iterator[Selection]:
    """The area in tiles, from its corner on; those at its end may be smaller."""
    starts = [range(s.start, s.stop, n) for s, n in zip(area, step, strict=True)]
    for corner in product(*starts):
        yield tuple(
            slice(start, min(start + n, s.stop))
            for start, n, s in zip(corner, step, area, strict=True)
        )


def within(part: Selection, area: Selection) -> Selection:
    """A part of an area, counted from the area's corner."""
    return tuple(
        slice(p.start - s.start, p.stop - s.start) for p, s in zip(part, area, strict=True)
    )
