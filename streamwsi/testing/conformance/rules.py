"""What the kits share: rules for all stages, and means to see one broken."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import sys
import threading
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from ... import plugins
from ...chunks import BigChunk, Damage, Pixels, Plan
from ...errors import ConfigError, UnknownStage
from ...limits import Limits
from ...stage_tables import read_stage, stage_lines
from ...workers import Workers, open_workers

__all__ = [
    "POISON",
    "StageRules",
    "Upstream",
    "cancelled_after",
    "check_json",
    "each_in_its_own_task",
    "first_of",
    "lent",
    "no_files_in_the_loop",
    "same",
    "whole_arena",
]

POISON = 0xA5
"""What the kits write over pixels whose loan is over."""

LIMITS = Limits(workers=2, worker_kind="threads", memory="256 MiB")


class Upstream(Exception):
    """What the stage before fails with."""


class StageRules:
    """Rules that stages of every role keep."""

    pytestmark = pytest.mark.anyio
    role: ClassVar[str]

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def case(self) -> Any:
        """What is tested; every kit's subclass gives its own."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `case`")

    def test_the_stage_is_a_frozen_dataclass(self, case: Any) -> None:
        stage = case.stage
        assert dataclasses.is_dataclass(stage), f"{stage!r} is no dataclass"
        assert not isinstance(stage, type), f"{stage!r} is a class: give an instance"
        for field in dataclasses.fields(stage):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(stage, field.name, None)
            named = f"{field.name}=" in repr(stage) or field.name in _one_by_one(type(stage))
            assert named == field.repr, f"the repr {stage!r} does not tell {field.name}"

    def test_the_stage_travels_and_compares(self, case: Any) -> None:
        stage = case.stage
        again = pickle.loads(pickle.dumps(stage))
        assert type(again) is type(stage)
        by_identity = "__eq__" not in vars(type(stage))  # carriers of arrays
        assert by_identity or again == stage, f"{again!r} came back for {stage!r}"

    def test_the_stage_comes_back_from_toml(self, case: Any) -> None:
        """Where it is installed, and its fields are what TOML can hold."""
        try:
            plugins.name_of(self.role, type(case.stage))
        except UnknownStage:
            return
        try:
            text = _toml(self.role, case.stage)
        except ConfigError as error:
            pytest.skip(str(error))
        again = read_stage(self.role, tomllib.loads(text)[self.role], self.role)
        assert type(again) is type(case.stage)
        assert _toml(self.role, again) == text, f"{again!r} came back for {case.stage!r}"


def _toml(role: str, stage: Any) -> str:
    return "\n".join(stage_lines(role, stage, role))


def _one_by_one(stage: type[Any]) -> set[str]:
    """Fields that are not told by name: ``Tee(one, other)``."""
    parameters = inspect.signature(stage).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL}


def check_json(config: Any) -> None:
    """A configuration comes back from JSON as it was.

    Raises:
        AssertionError: it does not.
    """
    again = json.loads(json.dumps(config))
    assert again == config, f"{config!r} comes back from JSON as {again!r}"


async def whole_arena(workers: Workers) -> None:
    """Nothing is reserved of the shared memory any more.

    Raises:
        ConfigError: something is.
    """
    with workers.arena.reserved(workers.arena.nbytes):
        await anyio.lowlevel.checkpoint()


async def cancelled_after(turns: int, work: Callable[[Workers], Coroutine[Any, Any, None]]) -> None:
    """Cancel a stage's work after so many turns of the event loop, and check what is left.

    Raises:
        AssertionError: the work went on, or failed in place of being cancelled.
    """
    async with open_workers(LIMITS) as workers:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                ended = False

                async def run() -> None:
                    nonlocal ended
                    await work(workers)
                    await anyio.sleep_forever()
                    ended = True

                tasks.start_soon(run)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert not ended, "the stage swallowed the cancellation"
        await whole_arena(workers)


class _Audit:
    """Files that one thread opens in one folder; audit hooks cannot be taken off again."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.thread = 0
        self.opened: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or self.folder is None or threading.get_ident() != self.thread:
            return
        if isinstance(args[0], str | bytes):
            path = args[0] if isinstance(args[0], str) else args[0].decode(errors="replace")
            if Path(path).is_relative_to(self.folder):
                self.opened.append(path)


_audit: _Audit | None = None


@contextmanager
def no_files_in_the_loop(folder: Path) -> Iterator[None]:
    """Fails where this thread opens a file of the folder.

    Raises:
        AssertionError: on leaving, with the files.
    """
    global _audit
    _audit = _audit or _Audit()
    _audit.opened.clear()
    _audit.thread, _audit.folder = threading.get_ident(), folder
    try:
        yield
    finally:
        _audit.folder = None
    assert not _audit.opened, f"opened in the event loop's thread: {_audit.opened}"


async def lent(
    plan: Plan, array: Pixels, damage: tuple[Damage, ...] = (), start: int = 0
) -> AsyncIterator[BigChunk]:
    """A plan's regions cut from an array, each overwritten when its loan is over.

    Raises:
        AssertionError: on the next one, where the last is still held; a scroll would wait.
    """
    held: set[int] = set()
    for region in plan.regions(start):
        assert not held, "a big chunk was not released before the next one was asked for"
        box = region.box
        pixels = array[box.y : box.bottom, box.x : box.right].copy()

        def give_back(pixels: Pixels = pixels, index: int = region.index) -> None:
            pixels[...] = POISON
            held.discard(index)

        view = pixels[:]
        view.flags.writeable = False
        mine = tuple(d for d in damage if not d.box.intersection(box).empty)
        chunk = BigChunk(region, view, mine, give_back)
        held.add(region.index)
        yield chunk
        chunk.release()


async def each_in_its_own_task(items: AsyncGenerator[Any, None]) -> list[Any]:
    """All items of an async generator, each awaited in another task.

    A generator that yields inside a task group, a cancel scope or a lock cannot leave it in
    another task than it entered it.

    Raises:
        ExceptionGroup: of the RuntimeError that says so.
    """
    taken: list[Any] = []
    more = True

    async def take() -> None:
        nonlocal more
        item = await anext(items, StopAsyncIteration)
        more = item is not StopAsyncIteration
        if isinstance(item, BigChunk):
            item.release()
        if more:
            taken.append(item)

    async with aclosing(items):
        while more:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
    return taken


def same(one: Any, other: Any) -> bool:
    """Whether two sequences of values, arrays or not, are alike to the last bit."""
    if len(one) != len(other):
        return False
    if isinstance(one, np.ndarray) and one.dtype.names:
        # Records: their fields may hold NaN, which is not equal to itself.
        return one.dtype == other.dtype and all(same(one[n], other[n]) for n in one.dtype.names)
    return all(
        np.array_equal(np.asarray(a), np.asarray(b), equal_nan=np.asarray(a).dtype.kind == "f")
        for a, b in zip(one, other, strict=True)
    )


async def first_of(items: Any, count: int) -> list[Any]:
    """So many items of an async generator, which is then closed."""
    taken = []
    async with aclosing(items) as iteration:
        async for item in iteration:
            taken.append(item)
            if len(taken) == count:
                break
    return taken
