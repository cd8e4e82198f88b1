"""Disks that fill up, folders that vanish, permissions that are lost: one slide fails, with a
sentence; the others are finished; and once the trouble is over, the next run goes on.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamwsi import Limits, Pipeline, RunReport, SlideRef, run
from streamwsi.chunks import Batch, Plan
from streamwsi.errors import CannotWrite, SlideFailed
from streamwsi.geometry import Size
from streamwsi.processors.base import BatchProcessor
from streamwsi.reports import Event, PiecesWritten
from streamwsi.samplers import SlidingWindow
from streamwsi.sinks import HeatmapZarr, Pdmcsv, base
from streamwsi.sources import MemorySource
from streamwsi.stages import Recipe, Sink, SlideWriter
from streamwsi.testing.outputs import restore, tree
from streamwsi.testing.synthetic import slide_array

_NOBODY = 65534
SINKS = [pytest.param(HeatmapZarr, id="zarr"), pytest.param(Pdmcsv, id="pdmcsv")]
SLIDES = {name: (slide_array(Size(640, 480), seed=i),) for i, name in enumerate(("bad", "good"))}


@dataclass(frozen=True, slots=True)
class Numbers(BatchProcessor[npt.NDArray[np.float32]]):
    """Two numbers per window that do not compress, after a little while."""

    def compute(self, batch: Batch) -> npt.NDArray[np.float32]:
        time.sleep(0.001)
        sums = np.array([zlib.crc32(window.tobytes()) for window in batch.pixels], np.float32)
        return np.stack([sums, np.sqrt(sums)], axis=1)


@dataclass(frozen=True)
class ByName:
    """Writes each slide to a sink of its own."""

    sinks: Mapping[str, Sink[Any]]
    config: Mapping[str, Any]

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        return self.sinks[slide.id].outputs(slide)

    def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AbstractAsyncContextManager[SlideWriter[Any]]:
        return self.sinks[plan.slide.ref.id].open(plan, recipe, overwrite=overwrite)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(base, "CHECKPOINT_SHARE", 0)


async def write(
    make: Callable[[Path], Sink[Any]],
    bad: Path,
    good: Path,
    observers: tuple[Any, ...] = (),
) -> RunReport:
    """Both slides at the same time, each into a folder of its own."""
    sinks = {"bad": make(bad), "good": make(good)}
    pipeline = Pipeline(
        source=MemorySource(SLIDES),
        sampler=SlidingWindow(16, 8),
        processor=Numbers(batch_size=64),
        sink=ByName(sinks, sinks["bad"].config),
    )
    limits = Limits(worker_kind="inline", slides=2, memory="256 MiB")
    return await run(pipeline, list(SLIDES), limits=limits, observers=observers)


def check_failure(report: RunReport, words: str) -> None:
    bad, good = report.outcomes
    assert (bad.status, bad.stage, good.status) == ("failed", "write", "done")
    assert isinstance(bad.cause, SlideFailed)
    assert isinstance(bad.cause.__cause__, CannotWrite)
    assert words in (bad.error or "")
    assert len((bad.error or "").splitlines()) == 1
    assert good.pieces == good.total


async def check_resumed(
    make: Callable[[Path], Sink[Any]], bad: Path, good: Path, folder: Path
) -> None:
    """The same run again completes the one and leaves the other; the bytes are as they must be."""
    report = await write(make, bad, good)
    assert [outcome.status for outcome in report.outcomes] == ["done", "done"]
    assert report.outcomes[0].resumed_at > 0
    assert report.outcomes[1].pieces == 0
    await write(make, folder / "whole", folder / "whole")
    both = tree(bad) | tree(good)
    assert both == tree(folder / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    out = tmp_path / "small"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield out
    subprocess.run(["umount", str(out)], check=True)


@pytest.mark.parametrize("make", SINKS)
async def test_a_full_disk_fails_one_slide(make: Any, small_disk: Path, tmp_path: Path) -> None:
    report = await write(make, small_disk, tmp_path / "good")
    check_failure(report, "No space left on device")
    # The same, on a larger disk.
    restore(tmp_path / "large", tree(small_disk))
    await check_resumed(make, tmp_path / "large", tmp_path / "good", tmp_path)


@pytest.mark.parametrize("make", SINKS)
async def test_a_folder_that_vanishes_fails_one_slide(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = 0

    def vanish(event: Event) -> None:
        nonlocal written
        if isinstance(event, PiecesWritten) and event.slide == "bad":
            written += event.count
            if written > 1500 and out.exists():
                out.rename(tmp_path / "elsewhere")

    report = await write(make, out, tmp_path / "good", (vanish,))
    check_failure(report, "No such file or directory")
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    await check_resumed(make, out, tmp_path / "good", tmp_path)


@pytest.fixture
def folder_of_a_user() -> Iterator[Path]:
    """A folder of somebody to whom permissions apply; root becomes somebody else for the test."""
    with tempfile.TemporaryDirectory() as name:
        root = os.geteuid() == 0
        if root:
            os.chown(name, _NOBODY, -1)
            os.seteuid(_NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("make", SINKS)
async def test_a_lost_permission_fails_one_slide(make: Any, folder_of_a_user: Path) -> None:
    out, written = folder_of_a_user / "out", 0

    def forbid(event: Event) -> None:
        nonlocal written
        if isinstance(event, PiecesWritten) and event.slide == "bad":
            written += event.count
            if written > 1500:
                allow(out, 0o500, 0o400)

    report = await write(make, out, folder_of_a_user / "good", (forbid,))
    allow(out, 0o700, 0o600)
    check_failure(report, "Permission denied")
    await check_resumed(make, out, folder_of_a_user / "good", folder_of_a_user)


def allow(out: Path, folders: int, files: int) -> None:
    # Bottom up: what is in a closed folder cannot be changed any more.
    for path in sorted([out, *out.rglob("*")], reverse=folders == 0o500):
        path.chmod(folders if path.is_dir() else files)
