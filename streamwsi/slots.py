"""Slots: each reads one slide after another and gives single windows, for training.

What is wrong with a slide (it cannot be opened, has no such level, is too small for the windows,
breaks off) ends the slot or, if so wished, only the slide. What is wrong with the settings (the
memory limit) or with a stage's code ends the slot in any case. A slot's error is its last item.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
import anyio.to_thread
import numpy as np
from anyio.streams.memory import MemoryObjectSendStream

from .chunks import BigChunk, Plan
from .errors import ConfigError, SlideError, WorkerDied
from .mixing import Window
from .resampled_readers import resampled
from .slides import SlideRef
from .stages import NeedsPixels, Sampler, SlideReader, Source
from .workers import Workers

__all__ = ["OnError", "SlideSkipped", "Slots", "Tally"]

OnError = Literal["raise", "skip"]

_AHEAD = 4
"""Windows of a slot under way: being copied, waiting (two), being mixed."""


class SlideSkipped(UserWarning):
    """A slide that could not be read, or not to its end; the error is its ``__cause__``.

    Attributes:
        slide: which one.
        epoch: in which epoch.
        windows: how many of its windows were given before.
    """

    def __init__(self, slide: SlideRef, epoch: int, windows: int, error: Exception) -> None:
        super().__init__(f"{slide.id}: skipped after {windows} windows in epoch {epoch}: {error}")
        self.slide = slide
        self.epoch = epoch
        self.windows = windows
        self.__cause__ = error


@dataclass(slots=True, eq=False)
class Tally:
    """What was left out.

    Attributes:
        skipped: slides, or the rest of them.
        invalid: windows that touch damaged pixels.
    """

    skipped: list[SlideSkipped] = field(default_factory=list)
    invalid: int = 0


@dataclass(slots=True)
class _Progress:
    planned: bool = False
    windows: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """How slots of a stream read.

    Attributes:
        source: opens the slides.
        workers: where decoding runs.
        memory: bytes for all windows and readers together.
        count: slots that read at the same time.
        held: windows that the stream holds outside of the slots.
        on_error: ``"raise"``, or ``"skip"`` to leave a slide's rest out.
        tally: gets what was left out.
    """

    source: Source
    workers: Workers
    memory: int
    count: int
    held: int
    on_error: OnError
    tally: Tally

    async def run(
        self,
        refs: list[SlideRef],
        sampler: Sampler,
        epoch: int,
        send: MemoryObjectSendStream[Window | Exception],
    ) -> None:
        """Send the slides' windows, one slide after another; it ends quietly without a receiver."""
        with send, suppress(anyio.BrokenResourceError):
            try:
                for ref in refs:
                    await self._try(ref, sampler, epoch, send)
            except anyio.BrokenResourceError:
                raise
            except Exception as error:
                await send.send(error)

    async def _try(
        self,
        ref: SlideRef,
        sampler: Sampler,
        epoch: int,
        send: MemoryObjectSendStream[Window | Exception],
    ) -> None:
        progress = _Progress()
        try:
            await self._slide(ref, sampler, send, progress)
        except Exception as error:
            cause = _unwrapped(error)
            of_the_slide = isinstance(cause, SlideError | WorkerDied) or (
                isinstance(cause, ConfigError) and not progress.planned
            )
            if self.on_error == "raise" or not of_the_slide:
                raise cause from cause.__cause__
            skipped = SlideSkipped(ref, epoch, progress.windows, cause)
            self.tally.skipped.append(skipped)
            warnings.warn(skipped, stacklevel=1)

    async def _slide(
        self,
        ref: SlideRef,
        sampler: Sampler,
        send: MemoryObjectSendStream[Window | Exception],
        progress: _Progress,
    ) -> None:
        sampler = await self._prepared(ref, sampler)
        async with self.source.open(ref, self.workers) as opened, AsyncExitStack() as held:
            plan = await anyio.to_thread.run_sync(sampler.plan, opened.slide)
            progress.planned = True
            if plan.count == 0:
                return
            reader = held.enter_context(resampled(opened, plan.level, self.workers))
            memory = self._reading_share(reader, plan)
            async with (
                aclosing(reader.bigchunks(plan.regions(), memory)) as read,
                aclosing(_released(read)) as chunks,
                aclosing(sampler.smallchunks(plan, chunks)) as windows,
            ):
                async for some in windows:
                    for i, valid in enumerate(some.valid):
                        if not valid:
                            self.tally.invalid += 1
                            continue
                        # A copy: the reader's memory must not wait for a shuffled window.
                        pixels = np.array(some.pixels[i])
                        await send.send(Window(pixels, plan.place(some.first + i), plan.slide))
                        progress.windows += 1

    async def _prepared(self, ref: SlideRef, sampler: Sampler) -> Sampler:
        """The sampler for a slide, where it must see some of its pixels first."""
        if not (isinstance(sampler, NeedsPixels) and sampler.needs_pixels(ref)):
            return sampler
        async with self.source.open(ref, self.workers) as preview:
            return await sampler.prepare(preview, self.memory // self.count)

    def _reading_share(self, reader: SlideReader, plan: Plan) -> int:
        """Bytes that a slot's reader may use.

        Raises:
            ConfigError: the limit is too small; the message names the smallest that would do.
        """
        box, slide = plan.place(0).box, plan.slide
        window = box.width * box.height * slide.channels * np.dtype(slide.dtype).itemsize
        beside = (self.held + _AHEAD * self.count) * window
        least = max(reader.needs(region) for region in plan.regions())
        needed = beside + self.count * least
        if needed > self.memory:
            raise ConfigError(
                f"{slide.ref.uri}: the memory limit of {self.memory / 2**20:.4g} MiB does not hold "
                f"{self.held} windows in the shuffle buffer and batches and {self.count} slides "
                f"being read; the smallest that does is {math.ceil(needed / 2**20)} MiB (a smaller "
                "shuffle_buffer or fewer slides at once need less)"
            )
        return (self.memory - beside) // self.count


async def _released(chunks: AsyncGenerator[BigChunk, None]) -> AsyncGenerator[BigChunk, None]:
    """Big chunks, each given back when the next is asked for."""
    async for chunk in chunks:
        yield chunk
        chunk.release()


def _unwrapped(error: Exception) -> Exception:
    """The first exception of those that the readers' task groups have wrapped."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
