"""Peak memory on slides of 0.3, 1.2 and 4.8 gigapixels: python -m tests.benchmarks.memory

Each slide is worked off in a process of its own. When that has imported all it will use, in
itself and in its workers, the memory of the process tree is the baseline; the peak less the
baseline is what the run takes, and what `Limits.memory` promises. Memory is the proportional
set size of anonymous and shared memory: pages that processes share count once. Pages of files
(libraries) are left out, for how they are shared depends on what else the machine is doing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .jobs import Job, slide_of

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"0.3": 17408, "1.2": 34816, "4.8": 69632}
_EVERY_S = 0.05


@dataclass(frozen=True)
class Peak:
    """What a run took.

    Attributes:
        nbytes: of memory, beyond the baseline.
        baseline: bytes of memory.
        seconds: that it ran.
        files: that it wrote.
        written: bytes of these.
    """

    nbytes: int
    baseline: int
    seconds: float
    files: int
    written: int


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory")
    parser.add_argument("--quick", action="store_true", help="without the slide of 4.8 gigapixels")
    parser.add_argument("--memory", default="1GiB", help="the limit")
    parser.add_argument("--kernel", type=int, default=256)
    parser.add_argument("--stride", type=int, default=224)
    parser.add_argument(
        "--maps", action="store_true", help="2 × kernel/2 × kernel/2 numbers a window, merged"
    )
    args = parser.parse_args()
    model = "map" if args.maps else "thin"
    sizes = [*SIDES][:2] if args.quick else [*SIDES]
    print(f"limit {args.memory}, kernel {args.kernel}, stride {args.stride}, model {model}")
    peaks = []
    for size in sizes:
        side = SIDES[size]
        slide = slide_of(Job(size, args.kernel, args.stride, width=side, height=side))
        peak = measured(slide, args.memory, args.kernel, args.stride, model)
        peaks.append(peak.nbytes)
        print(
            f"{size} gigapixels: peak {peak.nbytes / 2**20:6.0f} MiB above "
            f"{peak.baseline / 2**20:.0f} MiB of imports ({peak.seconds:.0f} s; "
            f"{peak.files} files, {peak.written / 2**20:.0f} MiB)",
            flush=True,
        )
    print(f"spread: {max(peaks) / min(peaks) - 1:.1%}")


def measured(slide: Path, memory: str, kernel: int, stride: int, model: str) -> Peak:
    """Run a slide in a process of its own and watch it."""
    with tempfile.TemporaryDirectory() as out:
        words = [str(slide), out, memory, str(kernel), str(stride), model]
        child = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.memory_child", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise SystemExit("the run could not begin")
        baseline = tree_bytes(child.pid)
        began = time.perf_counter()
        child.stdin.write("go\n")
        child.stdin.close()
        peak = 0
        while child.poll() is None:
            peak = max(peak, tree_bytes(child.pid))
            time.sleep(_EVERY_S)
        if child.returncode:
            raise SystemExit("the run failed")
        seconds = time.perf_counter() - began
        sizes = [path.stat().st_size for path in Path(out).rglob("*") if path.is_file()]
        return Peak(peak - baseline, baseline, seconds, len(sizes), sum(sizes))


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and all below it, without pages of files."""
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        children = {c for task in tasks for c in (task / "children").read_text().split()}
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    counted = (line.split()[1] for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    own = sum(map(int, counted)) * 1024
    return own + sum(tree_bytes(int(child)) for child in children)


if __name__ == "__main__":
    main()
