"""Ctrl-C while a worker hangs: the first ends within the time of grace, a second one at once.
And nothing of all that needs /dev/shm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamwsi.geometry import Size
from streamwsi.testing.synthetic import write_slide

Process = subprocess.Popen[str]

IMPORTABLE = Path(__file__).parent / "importable"

SCRIPT = """
import sys
from breaking_source import BreakingSource
from streamwsi import Limits, Pipeline, run
from streamwsi.cli.terminal import Interrupted, run_interruptible
from streamwsi.samplers import SlidingWindow
from streamwsi.testing.faults import Checksums, RecordingSink

pipeline = Pipeline(
    source=BreakingSource(), sampler=SlidingWindow(64), processor=Checksums(), sink=RecordingSink()
)
limits = Limits(workers=1, memory="64 MiB", grace_s=float(sys.argv[2]))
try:
    run_interruptible(lambda: run(pipeline, [sys.argv[1]], limits=limits))
except Interrupted:
    sys.exit(130)
"""

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(IMPORTABLE)}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.svs"
    write_slide(path, Size(512, 512), levels=1)
    return path


@pytest.fixture
def hanging(slide: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """A run whose worker hangs by now."""
    path = tmp_path / "slide.svs"
    path.write_bytes(slide.read_bytes())
    Path(f"{path}.faults.json").write_text('{"hang": [0, 0]}')
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), str(request.param)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        until = time.monotonic() + 60
        while not Path(f"{path}.hang").exists():
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def ended_after(process: Process) -> float:
    began = time.monotonic()
    process.wait(timeout=60)
    return time.monotonic() - began


@pytest.mark.parametrize("hanging", [1.0], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_a_hanging_run_within_its_grace(
    hanging: Process, number: signal.Signals
) -> None:
    hanging.send_signal(number)
    assert 0.5 < ended_after(hanging) < 3
    assert hanging.returncode == 130
    assert hanging.stderr is not None
    assert hanging.stderr.read() == "interrupted: ending cleanly; once more ends at once\n"


@pytest.mark.parametrize("hanging", [600.0], indirect=True)
def test_the_second_signal_ends_a_run_at_once(hanging: Process) -> None:
    hanging.send_signal(signal.SIGINT)
    assert hanging.stderr is not None
    assert "ending cleanly" in hanging.stderr.readline()
    hanging.send_signal(signal.SIGINT)
    assert ended_after(hanging) < 1
    assert hanging.returncode == 130


def test_a_tiny_dev_shm_is_enough(slide: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamwsi", "heatmap", str(slide), "--model", "hematoxylin"]
    command += ["--kernel-size", "64", "--stride", "32", "--workers", "2", "--out"]
    # A mount that nobody else sees.
    script = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", script, "sh"]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    whole = [*alone, *command, str(tmp_path)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slide.zarr" / "zarr.json").is_file()
