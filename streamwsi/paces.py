"""Pace: tiles decoded per second, on machines and file systems that are shared with others.

One pace serves a whole run: readers ask it before each decoding job, whatever slide, process or
thread the job is for. Turns are given out in the order in which they were asked for, each as
far behind the one before as that one's tiles take at the rate. So no interval ever holds more
than the rate allows, but for one job (some 64 tiles of 256×256) at its beginning; time in which
nobody asked is not made up for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

__all__ = ["Pace"]


class Pace:
    """Turns at a limited rate.

    Args:
        per_second: what one second has room for; None means without limit.
        clock: seconds that only grow.
        sleep: waits for some of them.
    """

    def __init__(
        self,
        per_second: float | None,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._free = float("-inf")

    async def take(self, count: int) -> None:
        """Wait for a turn that is worth `count`."""
        if self._per_second is None:
            return
        now = self._clock()
        turn = max(now, self._free)
        self._free = turn + count / self._per_second
        if turn > now:
            await self._sleep(turn - now)
