"""Links: a producer that failed is never taken for one that finished."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from streamwsi.links import DownstreamFailed, Link, UpstreamFailed
from streamwsi.reports import StageTimes


@asynccontextmanager
async def linked(capacity: int = 1) -> AsyncIterator[tuple[Link[int], TaskGroup]]:
    with closing(Link[int](capacity, StageTimes(), StageTimes())) as link, anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            yield link, tasks


@pytest.mark.parametrize("capacity", [0, 1, 10])
async def test_items_come_in_order_and_end_with_the_producer(capacity: int) -> None:
    async with linked(capacity) as (link, tasks):

        async def produce() -> None:
            async with link.outlet.finishing():
                for i in range(5):
                    await link.outlet.send(i)

        tasks.start_soon(produce)
        assert [item async for item in link.inlet.items()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("capacity", [0, 1, 10])
@pytest.mark.parametrize("sent", [0, 3])
async def test_a_producer_that_fails_is_no_clean_end(capacity: int, sent: int) -> None:
    """A plain memory stream ends the consumer's loop, and its commit code runs."""
    got, committed = [], False

    async def consume(items: AsyncIterator[int]) -> None:
        nonlocal committed
        async for item in items:
            got.append(item)
        committed = True

    async with linked(capacity) as (link, tasks):

        async def produce() -> None:
            try:
                async with link.outlet.finishing():
                    for i in range(sent):
                        await link.outlet.send(i)
                    raise LookupError
            except LookupError:
                pass

        tasks.start_soon(produce)
        with pytest.raises(UpstreamFailed):
            await consume(link.inlet.items())
    assert got == [*range(sent)]
    assert not committed


async def test_a_cancelled_producer_is_no_clean_end() -> None:
    async with linked() as (link, tasks):
        scope = anyio.CancelScope()

        async def produce() -> None:
            with scope:
                async with link.outlet.finishing():
                    await anyio.sleep_forever()

        tasks.start_soon(produce)
        await anyio.lowlevel.checkpoint()
        scope.cancel()
        with pytest.raises(UpstreamFailed):
            [item async for item in link.inlet.items()]


async def test_the_consumer_sees_the_failure_after_the_producer_did() -> None:
    """So that the first failure that is recorded is the cause, not its echo."""
    order: list[str] = []
    async with linked() as (link, tasks):

        async def produce() -> None:
            try:
                async with link.outlet.finishing():
                    await anyio.lowlevel.checkpoint()
                    raise LookupError
            except LookupError:
                order.append("cause")

        tasks.start_soon(produce)
        try:
            [item async for item in link.inlet.items()]
        except UpstreamFailed:
            order.append("echo")
    assert order == ["cause", "echo"]


@pytest.mark.parametrize("capacity", [0, 1])
async def test_a_producer_learns_that_nobody_receives(capacity: int) -> None:
    async with linked(capacity) as (link, tasks):

        async def consume() -> None:
            async with aclosing(link.inlet.items()) as items:
                await anext(items)
            link.inlet.close()

        tasks.start_soon(consume)
        with pytest.raises(DownstreamFailed):  # noqa: PT012
            async with link.outlet.finishing():
                for i in range(10):
                    await link.outlet.send(i)


async def test_both_ends_count_their_waiting() -> None:
    producer, consumer = StageTimes(), StageTimes()
    with closing(Link[int](0, producer, consumer)) as link:
        async with anyio.create_task_group() as tasks:

            async def produce() -> None:
                async with link.outlet.finishing():
                    await anyio.sleep(0.05)
                    await link.outlet.send(1)
                    await link.outlet.send(2)

            tasks.start_soon(produce)
            async for item in link.inlet.items():
                if item == 1:
                    await anyio.sleep(0.2)
    assert 0.04 <= consumer.starved_s < 0.2
    assert producer.blocked_s >= 0.18
    assert consumer.blocked_s == producer.starved_s == 0


async def test_a_link_holds_no_more_than_its_capacity() -> None:
    async with linked(2) as (link, tasks):
        sent = []

        async def produce() -> None:
            async with link.outlet.finishing():
                for i in range(5):
                    await link.outlet.send(i)
                    sent.append(i)

        tasks.start_soon(produce)
        await anyio.wait_all_tasks_blocked()
        assert sent == [0, 1]
        async with aclosing(link.inlet.items()) as items:
            async for _ in items:
                pass
        assert sent == [0, 1, 2, 3, 4]
