"""For tests of sinks: plans without a slide, pieces without a model, a disk that loses power.

A sink must leave the same bytes however often it was killed. `Disk` watches every ``fsync`` of
this process and knows two trees at any moment: what a killed process leaves (`living`: all
that was written) and what a power cut may leave at worst (`durable`: only what was fsynced,
file by file and folder by folder). `restore` puts such a tree back, to go on from there.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..chunks import Pieces, Places
from ..geometry import Grid, Size
from ..samplers.sliding_window import GridPlan
from ..slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef
from ..stages import Recipe

__all__ = ["Disk", "Tree", "grid_plan", "recipe", "restore", "stream", "tree"]

#: Paths relative to a folder, with the files' bytes; None for folders.
Tree = dict[str, bytes | None]

_MPP = Mpp(0.25, 0.25)


def grid_plan(
    grid: Grid, *, id: str = "slide", mpp: Mpp | None = _MPP, downsample: float = 1.0
) -> GridPlan:
    """The plan of a grid on the coarser of two levels (the only one where `downsample` is 1)."""
    base = Size(round(grid.size.width * downsample), round(grid.size.height * downsample))
    levels = [PyramidLevel(0, base, (1.0, 1.0), Size(16, 16))]
    if downsample != 1.0:
        levels.append(PyramidLevel(1, grid.size, (downsample, downsample), Size(16, 16)))
    ref = SlideRef(id, f"/slides/{id}.svs")
    slide = Slide(ref, Pyramid(tuple(levels), mpp), "uint8", 3, nbytes=1234, identity="abc")
    config = {"kernel_size": list(grid.kernel), "stride": list(grid.stride), "panel": grid.panel}
    return GridPlan(slide, levels[-1], grid, 1, config)


def recipe(plan: GridPlan, sink: Any, **processor: Any) -> Recipe:
    """The recipe of a lane with that plan and sink."""
    return Recipe(plan.config, processor, sink.config)


async def stream(
    plan: Any,
    values: npt.NDArray[Any],
    *,
    start: int = 0,
    stop: int | None = None,
    batch: int = 4,
    valid: npt.NDArray[np.bool_] | None = None,
    between: Callable[[int], None] | None = None,
) -> AsyncGenerator[Pieces[Any], None]:
    """The pieces ``start … stop - 1`` of a plan, cut at multiples of `batch`.

    Args:
        plan: where the windows lie.
        values: ``(plan.count, …)``.
        start: the first piece: a sink's `resume_at`.
        stop: where the stream ends; at the plan's end where None.
        batch: pieces in a batch.
        valid: ``(plan.count,)``; all valid where None.
        between: called with a piece's number before the batch that begins there.
    """
    if valid is None:
        valid = np.ones(plan.count, np.bool_)
    end = plan.count if stop is None else stop
    some: Any = values
    while start < end:
        if between is not None:
            between(start)
        after = min(end, start // batch * batch + batch)
        lent = copy.copy(some[start:after])
        yield Pieces(Places(plan, start, after), lent, valid[start:after])
        if isinstance(lent, np.ndarray):
            lent.fill(-1)  # it was on loan
        start = after


def tree(folder: Path) -> Tree:
    """All that is in a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def restore(folder: Path, content: Tree) -> None:
    """Make a folder hold exactly that."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for name, data in content.items():
        path = folder / name
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


class Disk:
    """Watches what becomes durable in a folder, as a context manager; Linux only.

    Args:
        folder: what is watched; what it holds at the beginning is durable, and so is its name.
        on_sync: called before and after each fsync, in whatever thread that is in.
    """

    def __init__(self, folder: Path, on_sync: Callable[[Disk], None] | None = None) -> None:
        self.folder = folder
        self._on_sync = on_sync
        self._files: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {}
        self._lock = threading.RLock()
        self._open = ExitStack()

    def __enter__(self) -> Disk:
        # Inodes are told apart by their numbers: none may be used again, so all are kept.
        kept = tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".kept")
        self._kept = Path(self._open.enter_context(kept))
        self._fsync = os.fsync
        self._open.callback(setattr, os, "fsync", self._fsync)
        for path in [self.folder, *self.folder.rglob("*")]:
            self._note(path)
        os.fsync = self._watch
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def _watch(self, fd: Any) -> None:
        with self._lock:
            if self._on_sync is not None:
                self._on_sync(self)
            self._note(Path(f"/proc/self/fd/{fd}"))
            if self._on_sync is not None:
                self._on_sync(self)

    def _note(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            if inode not in self._entries:
                self._open.callback(os.close, os.open(path, os.O_RDONLY))
            self._entries[inode] = {
                entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)
            }
        else:
            if inode not in self._files:
                os.link(path.resolve(), self._kept / str(inode))
            self._files[inode] = path.read_bytes()

    def living(self) -> Tree:
        """What a killed process leaves."""
        while True:
            try:
                return tree(self.folder)
            except FileNotFoundError:
                pass  # other threads go on writing

    def durable(self) -> Tree:
        """The least that a power cut leaves: what was never fsynced itself is empty."""
        found: Tree = {}
        pending = [("", self.folder.stat().st_ino)]
        while pending:
            above, inode = pending.pop()
            for name, (inner, is_folder) in self._entries.get(inode, {}).items():
                if is_folder:
                    found[above + name] = None
                    pending.append((f"{above}{name}/", inner))
                else:
                    found[above + name] = self._files.get(inner, b"")
        return dict(sorted(found.items()))
