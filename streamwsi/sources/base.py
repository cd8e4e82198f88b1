"""PooledSource: a source made of two functions that run in the decode workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import numpy.typing as npt
from anyio.abc import TaskGroup

from ..blocks import ArrayRef
from ..chunks import BigChunk, Damage, Region
from ..errors import CannotOpen, WorkerDied
from ..geometry import Box
from ..slides import PyramidLevel, Slide, SlideRef
from ..stages import ReadTally
from ..workers import Workers
from .scroll import Fill, Scroll, checked, sheet_bytes

__all__ = ["PooledSource", "ScrollReader", "scroll_reader"]

Inspect = Callable[[SlideRef], Slide]
ReadBox = Callable[[SlideRef, int, Box, npt.NDArray[Any]], tuple[Damage, ...]]


class ScrollReader:
    """An opened slide whose pixels come through a `Scroll`."""

    def __init__(self, slide: Slide, fill: Fill, workers: Workers, tasks: TaskGroup) -> None:
        self.slide = slide
        self.tally = ReadTally()
        self._fill = fill
        self._workers = workers
        self._tasks = tasks
        self.blocks = ExitStack()

    def needs(self, region: Region) -> int:
        """See `streamwsi.stages.SlideReader`."""
        return sheet_bytes(self.slide, region)

    async def bigchunks(
        self, regions: Iterator[Region], memory: int
    ) -> AsyncGenerator[BigChunk, None]:
        """See `streamwsi.stages.SlideReader`."""
        regions = checked(self.slide, regions, memory)
        arena = self._workers.arena
        # Pages that a scroll does not use take no memory.
        block = self.blocks.enter_context(arena.reserved(min(memory, arena.nbytes)))
        scroll = Scroll(self.slide, arena, block, self._fill, self._tasks, self.tally)
        async with aclosing(scroll.chunks(regions)) as chunks:
            async for chunk in chunks:
                yield chunk


@asynccontextmanager
async def scroll_reader(slide: Slide, fill: Fill, workers: Workers) -> AsyncIterator[ScrollReader]:
    """A reader whose jobs end with the context, and whose memory is given back after that."""

    async def paced(level: PyramidLevel, box: Box, ref: ArrayRef) -> tuple[Damage, ...]:
        columns = -(-box.width // level.tile.width)
        await workers.pace.take(columns * -(-box.height // level.tile.height))
        return await fill(level, box, ref)

    error: Exception | None = None
    with ExitStack() as blocks:
        async with anyio.create_task_group() as tasks:
            reader = ScrollReader(slide, paced, workers, tasks)
            blocks.enter_context(reader.blocks)
            try:
                yield reader
            except Exception as raised:
                error = raised  # else it would come out wrapped in a group
            finally:
                tasks.cancel_scope.cancel()
    if error is not None:
        raise error


@dataclass(frozen=True, slots=True)
class PooledSource:
    """Base of sources whose decoding blocks.

    A subclass is a frozen dataclass that sets two class variables to module-level functions,
    which run in worker processes, and defines `accepts`:

    ``inspect(ref)`` returns the `Slide`; raises `CannotOpen`.

    ``read_box(ref, level, box, out)`` fills ``out[:height, :width, :channels]`` with the
    pixels of a box of whole tiles (cut at the level's edges), and returns what of it is not
    valid; it keeps files open between calls, and raises `CannotRead` only where nothing of the
    slide can be read any more.

    ``worker_modules``, where it is set, names the modules that these functions need; see
    `streamwsi.workers.DecodesInWorkers`.
    """

    inspect: ClassVar[Inspect]
    read_box: ClassVar[ReadBox]
    worker_modules: ClassVar[tuple[str, ...]] = ()

    def accepts(self, ref: SlideRef) -> bool:
        """See `streamwsi.stages.Source`."""
        raise NotImplementedError(f"{type(self).__name__} must say which slides it accepts")

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[ScrollReader]:
        """See `streamwsi.stages.Source`."""
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[ScrollReader]:
        inspect, read_box = type(self).inspect, type(self).read_box
        try:
            slide = await workers.call(inspect, ref)
        except WorkerDied as error:
            raise CannotOpen(
                f"{ref.uri}: the header could not be read ({error}); the file is damaged"
            ) from error
        except OSError as error:
            raise CannotOpen(
                f"{ref.uri}: cannot be opened ({error.strerror or error}); check the path"
            ) from error

        async def fill(level: PyramidLevel, box: Box, ref_: ArrayRef) -> tuple[Damage, ...]:
            # The worker receives the array itself: Workers.call resolves it.
            return await workers.call(read_box, ref, level.index, box, ref_)  # type: ignore[arg-type]

        async with scroll_reader(slide, fill, workers) as reader:
            yield reader
