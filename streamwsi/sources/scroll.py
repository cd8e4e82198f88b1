"""Scroll: decodes each tile once, into a sheet of shared memory that slides down the level.

A sheet is a raster as wide as the regions' tiles, of as many rows as its block holds. Regions
come from the top down and overlap (windows do); a region's pixels are a view of the sheet, so
that the tiles it shares with the region above are simply still there. When the sheet is full,
the rows that the next region still needs are moved to its top and the sheet's *turn* begins
anew: that copy is all that overlapping costs, and no tile is decoded twice within a panel.

A region that does not continue the sheet (the next panel, a leap over a gap) begins a new one
behind it, or at the block's start, with a new turn, where no room is left.

A region may say which of its pixels are wanted: tiles without any are left out, and their
place in the sheet holds whatever was there. A later region may want them, in rows that were
passed already; so the sheet remembers for each row of tiles which were started.

Rows are written again only when every chunk of an earlier turn that shows them was released.
Reading ahead goes as far as there are free rows; regions are handed out in order.

``fill(level, box, ref)`` writes the pixels of a box of whole tiles into the array `ref`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from ..blocks import Arena, ArrayRef, Block
from ..chunks import BigChunk, Damage, Region
from ..errors import ConfigError, WorkerDied
from ..geometry import Box, tiled_extent
from ..slides import PyramidLevel, Slide
from ..stages import ReadTally

Mask = npt.NDArray[np.bool_]

__all__ = ["Fill", "Scroll", "sheet_bytes"]

Fill = Callable[[PyramidLevel, Box, ArrayRef], Awaitable[tuple[Damage, ...]]]

_JOB_PIXELS = 64 * 256 * 256
"""Pixels of one decoding job: some 10 ms of JPEG, against 0.2 ms for sending the job."""

_ROOM = 48 * 2**20
_ROOM_IN_REGIONS = 3
"""Bytes of the block that are used if it has them: the larger of the two. Decoding can run
ahead in that, and few rows are moved; using more would only take more pages of memory.
"""

_MOST_DAMAGE = 100
"""Damaged tiles that the tally lists; further ones are only counted."""


def sheet_bytes(slide: Slide, region: Region) -> int:
    """Bytes of the tiles that a region of this size touches, wherever on its level it lies: the
    least that a scroll can work in."""
    level, box = slide.level(region.level), region.box
    width = tiled_extent(box.width, level.tile.width, level.size.width)
    height = tiled_extent(box.height, level.tile.height, level.size.height)
    return width * height * _pixel_bytes(slide)


def _pixel_bytes(slide: Slide) -> int:
    return slide.channels * np.dtype(slide.dtype).itemsize


@dataclass(slots=True, eq=False)
class _Sheet:
    """Where the rows of a panel lie in the block.

    Attributes:
        level: what is read.
        panel: the panel's tiles; x and width only.
        pitch: bytes per row.
        begin: where in the block the sheet's first row lies, in bytes.
        top: the level's row in the sheet's first row.
        filled: first row of the level that no region has reached.
        damage: known so far in the sheet's rows.
        started: for rows of tiles, by their number in the level, which of the panel's tiles
            have jobs.
    """

    level: PyramidLevel
    panel: Box
    pitch: int
    begin: int
    top: int
    filled: int
    damage: list[Damage] = field(default_factory=list)
    started: dict[int, Mask] = field(default_factory=dict)

    def at(self, y: int) -> int:
        """Where in the block a row of the level lies, in bytes."""
        return self.begin + (y - self.top) * self.pitch

    def holds(self, level: PyramidLevel, box: Box) -> bool:
        return (
            self.level == level
            and (self.panel.x, self.panel.width) == (box.x, box.width)
            and self.top <= box.y <= self.filled
        )


@dataclass(slots=True, eq=False)
class _Lease:
    """A region that lies in the sheet: its turn, the bytes of the block that it occupies, and
    whether those of the next region are others, or the same pixels."""

    region: Region
    sheet: _Sheet
    turn: int
    begin: int
    end: int
    ref: ArrayRef
    lasting: bool
    jobs: int = 0
    ready: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None
    damage: list[Damage] = field(default_factory=list)

    def end_job(self) -> None:
        self.jobs -= 1
        if self.jobs == 0:
            self.ready.set()

    def add(self, damage: Iterable[Damage]) -> None:
        box = self.region.box
        self.damage += (d for d in damage if not d.box.intersection(box).empty)


class Scroll:
    """The reader's memory: one block, filled by jobs and lent out region by region.

    Args:
        slide: what is read.
        arena: where the block lies.
        block: memory for the sheet; at least `sheet_bytes` of the largest region.
        fill: decodes a box of whole tiles into an array.
        tasks: where jobs run; the reader's own, closed before the block is given back.
        tally: counts what is decoded.
    """

    def __init__(
        self,
        slide: Slide,
        arena: Arena,
        block: Block,
        fill: Fill,
        tasks: TaskGroup,
        tally: ReadTally,
    ) -> None:
        self._slide = slide
        self._arena = arena
        self._block = block
        self._fill = fill
        self._tasks = tasks
        self._tally = tally
        self._pixel_bytes = _pixel_bytes(slide)
        self._room = min(block.nbytes, _ROOM)
        self._turn = 0
        self._leases: list[_Lease] = []
        self._released = anyio.Event()
        self._sheet: _Sheet | None = None
        self._seen: dict[int, npt.NDArray[np.bool_]] = {}
        self._error: Exception | None = None

    async def chunks(self, regions: Iterator[Region]) -> AsyncGenerator[BigChunk, None]:
        """The regions' pixels, in order."""
        send, receive = anyio.create_memory_object_stream[_Lease](math.inf)
        scope = anyio.CancelScope()
        try:
            self._tasks.start_soon(self._schedule, regions, send, scope)
            async for lease in receive:
                await lease.ready.wait()
                if lease.error is not None:
                    raise lease.error
                yield self._chunk(lease)
            if self._error is not None:
                raise self._error
        finally:
            scope.cancel()
            receive.close()

    def _chunk(self, lease: _Lease) -> BigChunk:
        pixels = self._arena.resolve(lease.ref)
        pixels.flags.writeable = False
        damage = tuple(lease.damage)
        return BigChunk(
            lease.region, pixels, damage, lambda: self._release(lease), lasting=lease.lasting
        )

    def _release(self, lease: _Lease) -> None:
        self._leases.remove(lease)
        self._released.set()
        self._released = anyio.Event()

    async def _schedule(
        self,
        regions: Iterator[Region],
        send: MemoryObjectSendStream[_Lease],
        scope: anyio.CancelScope,
    ) -> None:
        """Give each region its place in the sheet and start the jobs for its new rows."""
        with scope, send:
            try:
                for region, following in _with_next(regions):
                    level, box = self._tiles(region)
                    sheet = await self._place(level, box)
                    # With room for three such regions a new turn begins only where this one lies
                    # behind what the next will take.
                    larger = max(self._nbytes(one) for one in (region, following or region))
                    lasting = _ROOM_IN_REGIONS * larger <= self._block.nbytes
                    lease = self._lease(sheet, region, box, lasting)
                    await send.send(lease)
                    await self._start_jobs(sheet, lease, box)
            except Exception as error:
                # Raised behind the last chunk: an error here would end the reader's tasks.
                self._error = error

    def _tiles(self, region: Region) -> tuple[PyramidLevel, Box]:
        """The whole tiles that a region touches."""
        level = self._slide.level(region.level)
        return level, region.box.snapped(level.tile, level.size)

    def _nbytes(self, region: Region) -> int:
        _, box = self._tiles(region)
        return box.width * box.height * self._pixel_bytes

    async def _place(self, level: PyramidLevel, box: Box) -> _Sheet:
        """The sheet, moved on so that the box's rows have their place in it."""
        pitch = box.width * self._pixel_bytes
        nbytes = box.height * pitch
        if nbytes > self._block.nbytes:
            raise _too_small(self._slide, nbytes, self._block.nbytes)
        self._room = min(self._block.nbytes, max(self._room, _ROOM_IN_REGIONS * nbytes))
        sheet = self._sheet
        if sheet is not None and sheet.holds(level, box):
            if sheet.at(box.bottom) > self._room:
                await self._move(sheet, box.y)
            return sheet
        begin = sheet.at(sheet.filled) if sheet is not None else 0
        if begin + nbytes > self._room:
            self._turn += 1
            begin = 0
        self._sheet = _Sheet(level, box, pitch, begin, box.y, box.y)
        return self._sheet

    async def _move(self, sheet: _Sheet, top: int) -> None:
        """Move the rows from `top` on to the block's start: the turn ends."""
        begin = sheet.at(top)
        count = sheet.at(sheet.filled) - begin
        # The rows must have been decoded before they can be moved.
        for lease in [*self._leases]:
            if lease.turn == self._turn and lease.end > begin:
                await lease.ready.wait()
        self._turn += 1
        await self._free(0, count)
        if count:
            flat = self._arena.resolve(self._block.array((self._block.nbytes,), "uint8"))
            await anyio.to_thread.run_sync(np.copyto, flat[:count], flat[begin : begin + count])
        sheet.begin, sheet.top = 0, top
        sheet.damage = [d for d in sheet.damage if d.box.bottom > top]
        first = top // sheet.level.tile.height
        sheet.started = {row: tiles for row, tiles in sheet.started.items() if row >= first}

    async def _free(self, begin: int, end: int) -> None:
        """Wait until no region of an earlier turn lies in these bytes of the block."""
        while any(
            lease.turn != self._turn and lease.begin < end and begin < lease.end
            for lease in self._leases
        ):
            await self._released.wait()

    def _lease(self, sheet: _Sheet, region: Region, box: Box, lasting: bool) -> _Lease:
        begin, end = sheet.at(box.y), sheet.at(box.bottom)
        ref = self._ref(sheet, region.box)
        lease = _Lease(region, sheet, self._turn, begin, end, ref, lasting)
        lease.add(sheet.damage)
        self._leases.append(lease)
        return lease

    def _ref(self, sheet: _Sheet, box: Box) -> ArrayRef:
        itemsize = np.dtype(self._slide.dtype).itemsize
        at = sheet.at(box.y) + (box.x - sheet.panel.x) * self._pixel_bytes
        return ArrayRef(
            self._block.offset + at,
            (box.height, box.width, self._slide.channels),
            (sheet.pitch, self._pixel_bytes, itemsize),
            self._slide.dtype,
        )

    async def _start_jobs(self, sheet: _Sheet, lease: _Lease, box: Box) -> None:
        # One more than there are jobs, so that the first to end does not make the lease ready.
        lease.jobs = 1
        for todo in _to_start(sheet, lease.region, box):
            for part in jobs(sheet.level, todo):
                await self._free(sheet.at(part.y), sheet.at(part.bottom))
                lease.jobs += 1
                self._tasks.start_soon(self._job, sheet, lease, part, self._ref(sheet, part))
        sheet.filled = max(sheet.filled, box.bottom)
        lease.end_job()

    async def _job(self, sheet: _Sheet, lease: _Lease, box: Box, ref: ArrayRef) -> None:
        self._count(sheet.level, box)
        try:
            damage = await self._fill(sheet.level, box, ref)
        except WorkerDied as error:
            damage = (Damage(sheet.level.index, -1, box, str(error)),)
        except Exception as error:
            # Raised where the chunk is awaited: an error here would end the reader's tasks.
            lease.error = lease.error or error
            damage = ()
        if damage:
            sheet.damage += damage
            for other in self._leases:
                if other.sheet is sheet:
                    other.add(damage)
            self._tally.damaged_tiles += len(damage)
            self._tally.damage += damage[: _MOST_DAMAGE - len(self._tally.damage)]
        lease.end_job()

    def _count(self, level: PyramidLevel, box: Box) -> None:
        columns = -(-level.size.width // level.tile.width)
        rows = -(-level.size.height // level.tile.height)
        seen = self._seen.setdefault(level.index, np.zeros((rows, columns), np.bool_))
        part = seen[
            box.y // level.tile.height : -(-box.bottom // level.tile.height),
            box.x // level.tile.width : -(-box.right // level.tile.width),
        ]
        self._tally.tiles_decoded += part.size
        self._tally.distinct_tiles += part.size - int(np.count_nonzero(part))
        part[...] = True


def _with_next(regions: Iterator[Region]) -> Iterator[tuple[Region, Region | None]]:
    """Each region, and the one behind it; an error of the plan comes in its place."""
    region = next(regions, None)
    while region is not None:
        try:
            following = next(regions, None)
        except Exception:
            yield region, None
            raise
        yield region, following
        region = following


def _to_start(sheet: _Sheet, region: Region, box: Box) -> Iterator[Box]:
    """The tiles that a region wants and no job was started for, as boxes, from the top down.

    They count as started once this is called, for the caller starts them all.
    """
    tile, panel = sheet.level.tile, sheet.panel
    columns = -(-panel.width // tile.width)
    rows = range(box.y // tile.height, -(-box.bottom // tile.height))
    todo: Mask = np.full((len(rows), columns), region.wanted is None)
    for wanted in region.wanted or ():
        part = wanted.intersection(box)
        if not part.empty:
            todo[
                part.y // tile.height - rows.start : -(-part.bottom // tile.height) - rows.start,
                (part.x - panel.x) // tile.width : -(-(part.right - panel.x) // tile.width),
            ] = True
    for row, tiles in zip(rows, todo, strict=True):
        started = sheet.started.setdefault(row, np.zeros(columns, np.bool_))
        tiles &= ~started
        started |= tiles
    for top, height, first, count in _rectangles(todo):
        yield Box(
            panel.x + first * tile.width,
            (rows.start + top) * tile.height,
            count * tile.width,
            height * tile.height,
        ).intersection(box)


def _rectangles(cells: Mask) -> Iterator[tuple[int, int, int, int]]:
    """True cells as rectangles ``(row, rows, column, columns)``, sorted by row.

    Rows that are alike are cut into the same rectangles together.
    """
    top = 0
    while top < len(cells):
        height = 1
        while top + height < len(cells) and np.array_equal(cells[top], cells[top + height]):
            height += 1
        edges = np.flatnonzero(np.diff(cells[top].astype(np.int8), prepend=0, append=0))
        for first, behind in edges.reshape(-1, 2).tolist():
            yield top, height, first, behind - first
        top += height


def jobs(level: PyramidLevel, box: Box) -> Iterator[Box]:
    """A box of whole tiles cut into jobs of whole tiles, about `_JOB_PIXELS` each."""
    if box.empty:
        return
    tile = level.tile
    height = max(1, _JOB_PIXELS // (box.width * tile.height)) * tile.height
    columns = max(1, round(box.width * tile.height / _JOB_PIXELS))
    width = -(-box.width // (columns * tile.width)) * tile.width
    for y in range(box.y, box.bottom, height):
        for x in range(box.x, box.right, width):
            yield Box.between(x, y, min(x + width, box.right), min(y + height, box.bottom))


def checked(slide: Slide, regions: Iterator[Region], memory: int) -> Iterator[Region]:
    """The regions again, once it is clear that `memory` holds the first of them.

    The regions of one plan are alike, so that this is known before anything is read.

    Raises:
        ConfigError: `memory` does not hold the first region.
    """
    first = next(regions, None)
    if first is None:
        return iter(())
    least = sheet_bytes(slide, first)
    if least > memory:
        raise _too_small(slide, least, memory)
    return chain((first,), regions)


def _too_small(slide: Slide, needed: int, memory: int) -> ConfigError:
    return ConfigError(
        f"{slide.ref.uri}: windows of this size need {needed / 2**20:.1f} MiB for pixels, but the "
        f"memory limit leaves {memory / 2**20:.1f} MiB; raise it or work on fewer slides at once"
    )
