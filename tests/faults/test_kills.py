"""kill -9 at random moments, then the same command: byte for byte what one run would write.

The real command line, in processes of its own. A model that sleeps makes a tiny slide last for
seconds, so that moments taken at random lie in the run; each kill is followed by the same
command, until one ends by itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaozarrs

from streamwsi.geometry import Size
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import write_slide
from streamwsi.testing.worker_faults import children

IMPORTABLE = Path(__file__).parent / "importable"


@dataclass(frozen=True)
class Job:
    """A command, and how long after its output appears it may be killed."""

    sink: str
    model: str
    kernel: int
    stride: int
    batch: int
    killed_within_s: float = 0.7

    def command(self, slide: Path, out: Path, workers: int = 1, memory: str = "1GiB") -> list[str]:
        options = {
            "--model": f"slow_models:{self.model}",
            "--out": out,
            "--sink": self.sink,
            "--kernel-size": self.kernel,
            "--stride": self.stride,
            "--batch-size": self.batch,
            "--workers": workers,
            "--memory": memory,
        }
        return [
            *(sys.executable, "-m", "streamwsi", "heatmap", str(slide), "--json"),
            *(str(word) for option in options.items() for word in option),
        ]

    def output(self, out: Path) -> Path:
        return out / OUTPUTS[self.sink][0]

    def record(self, out: Path) -> Path:
        return out / OUTPUTS[self.sink][1]


#: What a killed run leaves, and where its record is.
OUTPUTS = {
    "zarr": ("slide.zarr", "slide.zarr/zarr.json"),
    "pdmcsv": ("slide.csv", "slide.csv.json"),
    "features-zarr": ("slide.features.zarr", "slide.features.zarr/zarr.json"),
    "features-hdf5": (".slide.h5.unfinished", "slide.h5.json"),
}
VECTORS = Job("zarr", "vector", 64, 37, 16)
MAPS = Job("zarr", "cells", 32, 32, 16)
MERGED = Job("zarr", "cells", 96, 48, 16)
LINES = Job("pdmcsv", "vector", 96, 31, 24)
ROWS = Job("features-hdf5", "vector", 96, 31, 24)
JOBS = [
    VECTORS,
    MAPS,
    LINES,
    ROWS,
    Job("features-hdf5", "vector", 64, 37, 16),
    Job("features-zarr", "vector", 96, 31, 24),
    Job("zarr", "vector", 256, 25, 32),
    Job("zarr", "cells", 48, 48, 7),
    MERGED,
    Job("pdmcsv", "cells", 32, 32, 16),
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.svs"
    write_slide(path, Size(1500, 1300), levels=1)
    return path


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(IMPORTABLE), "OMP_NUM_THREADS": "1"},
    )


def finished(command: list[str]) -> dict[str, Any]:
    process = start(command)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (outcome,) = json.loads(text)["slides"]
    assert outcome["status"] == "done"
    return dict(outcome)


def killed(job: Job, command: list[str], out: Path, progress: bool, delay_s: float) -> bool:
    """Whether the process was killed: so long after its output was there (or, where `progress`
    is asked for, after more of it was durable), unless it had ended."""
    process, before = start(command), written(job, out)
    while process.poll() is None:
        if written(job, out) > before if progress else job.output(out).exists():
            break
        time.sleep(0.01)
    time.sleep(delay_s)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def written(job: Job, out: Path) -> int:
    """Pieces that the output's record calls durable; 0 where there is none."""
    path = job.record(out)
    if not path.exists():
        return 0
    document = json.loads(path.read_text())
    record = document.get("attributes", document)["streamwsi"]
    return int(record["state"]["pieces"])


def kill_and_resume(job: Job, slide: Path, folder: Path, kills: int, seed: int) -> int:
    """Kill a command so often, then let it end; how often it had something to resume."""
    chance = random.Random(seed)
    whole, out = folder / f"whole{seed}", folder / f"out{seed}"
    finished(job.command(slide, whole))
    resumed = 0
    while kills:
        # Other limits each time: the bytes must not depend on them.
        limits = chance.choice([(1, "1GiB"), (2, "200MiB"), (2, "64MiB")])
        command = job.command(slide, out, *limits)
        if killed(job, command, out, kills % 2 == 0, chance.uniform(0, job.killed_within_s)):
            kills -= 1
            resumed += written(job, out) > 0
            if job.sink == "zarr":
                yaozarrs.validate_zarr_store(str(job.output(out)))
        else:  # it came to its end: that must be right as well, and all begins anew
            assert tree(out) == tree(whole)
            shutil.rmtree(out)
    at = written(job, out)
    outcome = finished(job.command(slide, out))
    assert outcome["resumed_at"] == at
    assert outcome["pieces"] == outcome["total"] - at
    assert tree(out) == tree(whole)
    return resumed


def test_killed_and_resumed_outputs_are_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    """Two kills each, at the same time: most of it is waiting."""
    jobs = [MERGED, LINES, ROWS]
    with ThreadPoolExecutor(len(jobs)) as threads:
        resumed = threads.map(
            lambda i: kill_and_resume(jobs[i], slide, tmp_path, 2, seed=i), range(len(jobs))
        )
        assert sum(resumed) > 0


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.sink}-{job.model}-{job.stride}")
def test_many_kills(job: Job, slide: Path, tmp_path: Path) -> None:
    """Six kills for each combination."""
    assert kill_and_resume(job, slide, tmp_path, 6, seed=JOBS.index(job) + 10) > 0


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def test_a_killed_run_leaves_no_worker_and_no_shared_memory(slide: Path, tmp_path: Path) -> None:
    before = shared_memory()
    process = start(VECTORS.command(slide, tmp_path))
    while not VECTORS.output(tmp_path).exists():
        assert process.poll() is None
        time.sleep(0.01)
    assert shared_memory() <= before
    (zygote,) = children(process.pid)
    workers = [zygote, *children(zygote)]
    assert len(workers) == 2
    process.kill()
    process.communicate()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "a process outlived its parent by 5 s"
        time.sleep(0.05)
    assert shared_memory() <= before
