"""Speed of pdmcsv, reading and writing, beside PyDmed's way: python -m tests.benchmarks.pdmcsv

Everything runs in this process on one thread at a time, in turns; times are CPU seconds, and
each ratio is one of two times of the same round. The median round is printed. The array of each
round is compared with that of PyDmed's way, and so is the text.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt

from streamwsi.geometry import Grid, Size
from streamwsi.pdmcsv import format_rows, read, to_raster
from streamwsi.sinks.pdmcsv import Pdmcsv
from streamwsi.testing.outputs import grid_plan, recipe, stream

from . import pydmed_way

__all__ = ["main"]

_KERNEL = 256
_BATCH = 256
#: What is fast is done so often per round that its time can be measured.
_TIMES = 5


@dataclass(frozen=True)
class _Job:
    """`side × side` windows, each with an array ``(C, h, h)``."""

    name: str
    side: int
    C: int
    h: int

    @property
    def grid(self) -> Grid:
        size, kernel = self.side * _KERNEL, Size(_KERNEL, _KERNEL)
        return Grid(Size(size, size), kernel, kernel)

    def values(self) -> npt.NDArray[np.float32]:
        shape = (self.side**2, self.C, self.h, self.h)
        return np.random.default_rng(0).random(shape, np.float32)


_JOBS = (
    _Job("maps 8×8", 100, 1, 8),
    _Job("1 value", 400, 1, 1),
    _Job("2 values", 400, 2, 1),
    _Job("4 values", 400, 4, 1),
    _Job("256 values", 100, 256, 1),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pdmcsv")
    parser.add_argument(
        "--quick", action="store_true", help="a sixteenth of the windows, one round"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--job", action="append", choices=[job.name for job in _JOBS])
    args = parser.parse_args()
    rounds = args.rounds or (1 if args.quick else 3)
    for job in _JOBS:
        if not args.job or job.name in args.job:
            side = job.side // 4 if args.quick else job.side
            _measure(_Job(job.name, side, job.C, job.h), rounds)


def _measure(job: _Job, rounds: int) -> None:
    values = job.values()
    cells = job.side**2 * job.h**2
    print(f"\n{job.name} a line: {job.side**2:,} lines, {cells:,} cells, {values.size:,} values")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.csv"
        found = [_round(job, values, path) for _ in range(rounds)]
    print(f"  {'':20}{'CPU s':>8}{'cells/s':>13}{'values/s':>13}{'× PyDmed':>10}")
    for name in found[0]:
        peer = "write, PyDmed" if name.startswith("write") else "raster, PyDmed"
        seconds = statistics.median(times[name] for times in found)
        ratio = statistics.median(times[peer] / times[name] for times in found)
        rates = f"{cells / seconds:13,.0f}{values.size / seconds:13,.0f}"
        print(f"  {name:20}{seconds:8.3f}{rates}{ratio:10.1f}", flush=True)


def _round(job: _Job, values: npt.NDArray[np.float32], path: Path) -> dict[str, float]:
    """CPU seconds of each way, once."""
    times: dict[str, float] = {}
    times["write, PyDmed"], lines = _timed(lambda: _pydmed_text(job, values))
    times["write, format_rows"], text = _timed(lambda: _text(job, values), _TIMES)
    times["write, sink"], written = _timed(lambda: _sink(job, values, path.parent))
    if not lines == text == written:
        raise SystemExit("the texts differ")
    path.write_bytes(text)
    times["raster, PyDmed"], wanted = _timed(lambda: pydmed_way.raster(path))
    times["read"], _ = _timed(lambda: sum(map(len, read(path))), _TIMES)
    times["raster, pydmed"], found = _timed(lambda: to_raster(path, "pydmed"), _TIMES)
    times["raster, mean"], mean = _timed(lambda: to_raster(path), _TIMES)
    if not np.array_equal(found, wanted) or not np.array_equal(mean, wanted):
        raise SystemExit("the arrays differ")
    return times


def _timed(do: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    result: Any = None
    began = time.process_time()
    for _ in range(times):
        result = do()
    return (time.process_time() - began) / times, result


def _corners(job: _Job) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    y, x = np.divmod(np.arange(job.side**2), job.side)
    return y * _KERNEL, x * _KERNEL


def _pydmed_text(job: _Job, values: npt.NDArray[np.float32]) -> bytes:
    size = job.side * _KERNEL
    corners = zip(*(corner.tolist() for corner in _corners(job)), values, strict=True)
    rows = (pydmed_way.row(y, x, [size, size, 0, _KERNEL, 1.0], each) for y, x, each in corners)
    return "".join(rows).encode()


def _text(job: _Job, values: npt.NDArray[np.float32]) -> bytes:
    size = job.side * _KERNEL
    return format_rows(*_corners(job), size, size, 0, _KERNEL, 1.0, values)


def _sink(job: _Job, values: npt.NDArray[np.float32], folder: Path) -> bytes:
    """All that the sink does for a slide, to the last fsync; batches come from memory."""
    plan = grid_plan(job.grid)

    async def write() -> None:
        sink = Pdmcsv(folder / "out")
        async with sink.open(plan, recipe(plan, sink), overwrite=True) as writer:
            await writer.write(stream(plan, values, batch=_BATCH))

    anyio.run(write)
    return (folder / "out" / "slide.csv").read_bytes()


if __name__ == "__main__":
    main()
