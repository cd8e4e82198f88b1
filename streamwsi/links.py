"""Links: the bounded queues between the stages of a lane.

A plain memory stream ends alike for a consumer whether its producer finished or failed, so
that a consumer would run its commit code after half a slide. A `Link` carries an explicit
FINISHED mark: a consumer that reaches the end without it gets `UpstreamFailed`. Both sides
count the seconds that they wait.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .reports import StageTimes

__all__ = ["DownstreamFailed", "Inlet", "Link", "Outlet", "UpstreamFailed"]

T = TypeVar("T")


class UpstreamFailed(Exception):
    """The producer ended without finishing: an echo of its error, never the cause."""


class DownstreamFailed(Exception):
    """The consumer is gone: an echo of its error, never the cause."""


class _Finished:
    """The mark that a producer sends last."""


class Outlet(Generic[T]):
    """The producer's end of a link."""

    def __init__(self, stream: MemoryObjectSendStream[T | _Finished], times: StageTimes) -> None:
        self._stream = stream
        self._times = times

    async def send(self, item: T) -> None:
        """Pass an item on; waits while the link is full.

        Raises:
            DownstreamFailed: nobody receives any more.
        """
        await self._send(item)

    async def _send(self, item: T | _Finished) -> None:
        began = time.perf_counter()
        try:
            await self._stream.send(item)
        except anyio.BrokenResourceError as error:
            raise DownstreamFailed from error
        finally:
            self._times.blocked_s += time.perf_counter() - began

    def close(self) -> None:
        """End the link without the mark; nothing happens where it was finished before."""
        self._stream.close()

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[None]:
        """Mark the link as finished where the block ends without an error; close it anyhow."""
        with self._stream:
            yield
            await self._send(_Finished())


class Inlet(Generic[T]):
    """The consumer's end of a link."""

    def __init__(self, stream: MemoryObjectReceiveStream[T | _Finished], times: StageTimes) -> None:
        self._stream = stream
        self._times = times

    async def items(self) -> AsyncGenerator[T, None]:
        """What the producer sent, in order, until it has finished.

        Raises:
            UpstreamFailed: the producer ended without finishing.
        """
        while True:
            began = time.perf_counter()
            try:
                item = await self._stream.receive()
            except anyio.EndOfStream as error:
                raise UpstreamFailed from error
            finally:
                self._times.starved_s += time.perf_counter() - began
            if isinstance(item, _Finished):
                return
            yield item

    def close(self) -> None:
        """Let the producer know that nothing is received any more."""
        self._stream.close()


class Link(Generic[T]):
    """A queue of at most `capacity` items, from one task to another.

    Args:
        capacity: items that wait; 0 hands over directly.
        producer: where the producer's waiting is counted.
        consumer: where the consumer's waiting is counted.
    """

    def __init__(self, capacity: int, producer: StageTimes, consumer: StageTimes) -> None:
        streams = anyio.create_memory_object_stream[T | _Finished](capacity)
        self.outlet: Outlet[T] = Outlet(streams[0], producer)
        self.inlet: Inlet[T] = Inlet(streams[1], consumer)

    def close(self) -> None:
        """Close both ends; what is still in the link is dropped."""
        self.outlet.close()
        self.inlet.close()
