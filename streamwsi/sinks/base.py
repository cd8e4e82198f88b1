"""Outputs that can be stopped at any moment and resumed: claim, record, watermark.

Order is kept everywhere, so the state of an output is one number, its *watermark*: every piece
below it is durable. It stands in the output's record (`streamwsi.sinks.records`), beside what
the output is made from. Opening compares that: the same one resumes at the watermark, another
one is `PlanChanged`, and what bears no record of ours is not touched. A lock file beside the
output keeps two runs from writing the same one; the kernel lets go of it when a process dies.

The record is replaced atomically and only after all that it promises was fsynced, at most
every `CHECKPOINT_S` seconds of writing, at the end, and when the run is interrupted from
outside. After an error of our own writing there is no further attempt: the disk is full, or
worse, and the last record still holds. Pieces past the watermark are computed again, and
written over what may be there, so that the finished output has the same bytes whatever
happened on the way. For that, nothing in it may depend on the time or on the history.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import numpy as np
from anyio.lowlevel import checkpoint_if_cancelled

from ..chunks import Pieces, Plan, Receipt
from ..errors import CannotWrite, ConfigError, ContractBroken, PlanChanged
from ..stages import Recipe
from .durable import Lock, make_folders, sync_folders
from .records import State, differences, identity

__all__ = ["Output", "ResumableWriter", "claimed"]

#: Seconds of writing that a power cut may cost ...
CHECKPOINT_S = 2.0
#: ... or, where making things durable is slow, this many times what that takes.
CHECKPOINT_SHARE = 10


class Output(ABC):
    """One output on disk. All methods block: they run in a thread.

    Attributes:
        path: the file or folder.
        plan: what goes into it.
        state: how far it is; true once it is claimed.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path, name: str, plan: Plan, recipe: Recipe) -> None:
        if Path(name).name != name:
            raise ConfigError(f"{name!r} cannot be the name of an output: choose another slide id")
        self.path = folder / name
        self.plan = plan
        self.identity = identity(plan, recipe)
        self.state = self.fresh_state()
        self._lock: Lock | None = None

    def fresh_state(self) -> State:
        """The state of an output that holds nothing."""
        return State(self.plan.count)

    @property
    def record(self) -> dict[str, Any]:
        """What the output says about itself."""
        return {**self.identity, "state": self.state.to_json()}

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is written beside other outputs."""
        return self.path, self.hidden("lock")

    def hidden(self, ending: str) -> Path:
        """A helper file's path beside the output."""
        return self.path.with_name(f".{self.path.name}.{ending}")

    @abstractmethod
    def read(self) -> dict[str, Any] | None:
        """The record on disk; None where there is no output. Touches nothing.

        Raises:
            ConfigError: something is there that is not ours.
        """

    @abstractmethod
    def check_replaceable(self) -> None:
        """Refuse to overwrite what is neither ours nor of our kind.

        Raises:
            ConfigError: it is not to be removed.
        """

    @abstractmethod
    def begin(self) -> None:
        """Remove what is there and make a durable, empty output."""

    @abstractmethod
    def repair(self) -> None:
        """Make an output that `find` has found ready to go on at its watermark."""

    @abstractmethod
    def save(self) -> None:
        """Replace the record on disk, durably."""

    def foreign(self, path: Path, *, replaceable: bool) -> ConfigError:
        """The error for something that is not ours."""
        hint = ", or --overwrite replaces it" if replaceable else ""
        return ConfigError(
            f"{path} exists and was not made by streamwsi's {self.kind}; choose another folder"
            + hint
        )

    def completed(self) -> None:  # noqa: B027  most have nothing to do
        """Remove what only an unfinished output needs."""

    def find(self) -> bool:
        """Take up the state of the output on disk; False where there is none.

        Raises:
            ConfigError: something is there that is not ours.
            PlanChanged: it was made from something else.
        """
        record = self.read()
        if record is None:
            return False
        state = State.from_json(record.get("state"))
        if state is None:
            raise self.foreign(self.path, replaceable=True)
        old = {name: record.get(name) for name in self.identity} | {"windows": state.total}
        changed = differences(old, self.identity | {"windows": self.plan.count})
        if changed and state.pieces == 0:
            return False  # there is nothing in it: a first attempt, say, that failed at once
        if changed:
            raise PlanChanged(
                f"{self.path} was begun by another plan ({'; '.join(changed)}); choose another "
                "folder, or --overwrite starts afresh"
            )
        self.state = state
        return True

    def claim(self, overwrite: bool) -> None:
        """Lock the output and bring it to its watermark; a finished one is left alone."""
        for path in self.paths:
            if path.is_symlink():
                raise ConfigError(
                    f"{path} is a symbolic link, and outputs are not written through links; "
                    "remove it or choose another folder"
                )
        if overwrite:
            self.check_replaceable()
        elif self.find() and self.state.complete:
            self._sweep()
            return
        parents = make_folders(self.path.parent)
        self._lock = Lock(self.hidden("lock"), self.path)
        # Again: another run may have written in the meantime.
        if not overwrite and self.find():
            self.repair()
        else:
            self.check_replaceable()
            self.state = self.fresh_state()
            self.begin()
        sync_folders([*parents, self.path.parent])

    def _sweep(self) -> None:
        """Remove what a process has left that died when all was written."""
        self.completed()
        if self.hidden("lock").exists():
            with contextlib.suppress(ConfigError, OSError):
                Lock(self.hidden("lock"), self.path).release()

    def release(self) -> None:
        """Unlock the output."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror or error}; once that is solved, "
            "the next run goes on where this one stopped"
        ) from error


@asynccontextmanager
async def claimed(output: Output, *, overwrite: bool) -> AsyncIterator[None]:
    """Hold an output, ready to go on at ``output.state.pieces``.

    Raises:
        ConfigError: it is another run's, or something that is not ours is in its place.
        PlanChanged: it was made from something else.
        CannotWrite: it cannot be created.
    """
    try:
        with _translated(output.path):
            await anyio.to_thread.run_sync(output.claim, overwrite)
        yield
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(OSError):
            await anyio.to_thread.run_sync(output.release)


class ResumableWriter(ABC):
    """The open output of one slide: a `SlideWriter`.

    A sink says how pieces are put (`_put`) and made durable (`_flush`); when, and what is
    recorded, is decided here.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._start = self._pieces = output.state.pieces
        self._invalid = output.state.invalid
        self._writing = False
        self._due = 0.0

    @property
    def resume_at(self) -> int:
        """Number of the first piece that is still needed."""
        return self._start

    @abstractmethod
    async def _put(self, pieces: Pieces[Any]) -> None:
        """Take some pieces; they are on loan until this returns."""

    @abstractmethod
    async def _flush(self) -> int | None:
        """Make all that was put durable; returns the size of the file, where it is one."""

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        """Write the pieces, which come in order from `resume_at` on.

        Returns:
            The receipt; its `invalid` counts all of the output, earlier runs included.

        Raises:
            CannotWrite: the output cannot be written.
            StageMismatch: this sink cannot write such values.
            ContractBroken: pieces are missing, or come out of order.
        """
        self._due = anyio.current_time() + CHECKPOINT_S
        total = self._output.state.total
        try:
            async for batch in pieces:
                self._expect(batch)
                await checkpoint_if_cancelled()
                with self._safely():
                    await self._take(batch)
            if self._pieces != total:
                raise ContractBroken(
                    f"{self._output.path}: the pieces ended at {self._pieces} of {total}"
                )
        except BaseException:
            # Keep what came so far, unless it is our own writing that failed.
            if not self._writing:
                with contextlib.suppress(Exception), self._safely():
                    await self._checkpoint()
            raise
        with self._safely():
            await self._checkpoint()
            await anyio.to_thread.run_sync(self._output.completed)
        outputs = (str(self._output.path),)
        written = self._pieces - self._start
        return Receipt(self._output.plan.slide.ref.id, written, outputs, self._invalid)

    def _durable(self) -> tuple[int, int]:
        """After `_flush`: pieces that need not come again, and how many of these are invalid."""
        return self._pieces, self._invalid

    def _expect(self, batch: Pieces[Any]) -> None:
        if batch.places.start != self._pieces:
            raise ContractBroken(
                f"{self._output.path}: piece {batch.places.start} came where piece "
                f"{self._pieces} was due"
            )

    @contextmanager
    def _safely(self) -> Iterator[None]:
        """Write to the end or fail for good; being cancelled waits until it is done."""
        self._writing = True
        with anyio.CancelScope(shield=True), _translated(self._output.path):
            yield
        self._writing = False

    async def _take(self, batch: Pieces[Any]) -> None:
        await self._put(batch)
        self._pieces += len(batch)
        self._invalid += int(np.count_nonzero(~batch.valid))
        began = anyio.current_time()
        if began >= self._due:
            await self._checkpoint()
            now = anyio.current_time()
            self._due = now + max(CHECKPOINT_S, CHECKPOINT_SHARE * (now - began))

    async def _checkpoint(self) -> None:
        state = self._output.state
        if state.pieces == self._pieces:
            return
        nbytes = await self._flush()
        pieces, invalid = self._durable()
        if pieces == state.pieces:
            return
        self._output.state = replace(state, pieces=pieces, invalid=invalid, nbytes=nbytes)
        await anyio.to_thread.run_sync(self._output.save)
