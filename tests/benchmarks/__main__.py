"""Runs the jobs and prints a table; see the README beside this file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from streamwsi.limits import cores

from .bounds import Setting, best_setting, decode_bound, model_bound
from .contenders import available
from .jobs import JOBS, Job, model_of, quick, slide_of

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE = 2000
_ROUNDING = 1e-4


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="smaller slides, one round")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    rounds = args.rounds or (1 if args.quick else 3)
    jobs = [job for job in JOBS if not args.job or job.name in args.job]
    results = []
    print(f"{platform.processor() or platform.machine()}, {cores()} cores")
    for job in map(quick, jobs) if args.quick else jobs:
        results.append(_job(job, rounds, peers=job.peers and not args.no_peers))
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))


def _job(job: Job, rounds: int, peers: bool) -> dict[str, Any]:
    if job.model == "null":
        contenders, slide, reference = ["null"], Path("null"), {}
    else:
        slide = slide_of(job)
        contenders = ["streamwsi", *(available() if peers else [])]
        reference = _reference(job, slide)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    setting = None if job.model == "null" else best_setting(job)
    bounds: list[list[dict[str, Any]]] = []
    for _ in range(rounds):
        # Before and after the pipeline: the machine's speed drifts.
        around = [] if setting is None else [_bounds(job, slide, setting)]
        for name in contenders:
            found[name].append(_run(name, job, slide, reference))
            if setting is not None and name == contenders[0]:
                around.append(_bounds(job, slide, setting))
        bounds.append(around)
    table = {name: _median(runs) for name, runs in found.items()}
    for name in contenders:
        table[name]["pss"] = _run(name, job, slide, reference, memory=True)["pss"]
        if setting is not None:
            walls = [run["wall"] for run in found[name]]
            ratios = [w / _bound(around) for w, around in zip(walls, bounds, strict=True)]
            table[name]["versus_bound"] = statistics.median(ratios)
    result = {
        "job": job.name,
        "windows": job.windows,
        "contenders": table,
        "bounds": bounds,
        "setting": setting and setting._asdict(),
    }
    _print(job, result)
    return result


def _bounds(job: Job, slide: Path, setting: Setting) -> dict[str, Any]:
    return {"decode": decode_bound(job, slide), "model": model_bound(job, setting)}


def _bound(around: list[dict[str, Any]]) -> float:
    """Seconds that nothing can do the work in, from CPU seconds of decoding and of the model."""
    cpu: list[float] = [part["decode"]["cpu"] + part["model"]["cpu"] for part in around]
    return statistics.mean(cpu) / cores()


def _reference(job: Job, slide: Path) -> dict[int, Any]:
    """The model called on single windows of the whole level: some windows by number."""
    import tifffile
    import torch

    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(job.windows)[:_SAMPLE])
    model = model_of(job.model)
    values = {}
    with tifffile.TiffFile(slide) as tiff, torch.inference_mode():
        store: Any = tiff.series[0].levels[0].asarray(out="memmap") if job.windows else None
        for i in chosen:
            y, x = divmod(int(i), job.columns)
            window = store[
                y * job.stride : y * job.stride + job.kernel,
                x * job.stride : x * job.stride + job.kernel,
            ]
            part = torch.from_numpy(np.array(window)).permute(2, 0, 1)[None].float() / 255
            values[int(i)] = model(part)[0].numpy()
    return values


def _run(
    name: str, job: Job, slide: Path, reference: dict[int, Any], memory: bool = False
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "values.npy"
        command = [sys.executable, "-m", f"{__package__}.contender", name]
        process = subprocess.Popen(
            [*command, json.dumps(asdict(job)), str(slide), str(out)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            # What is installed has its bytecode beside it; a checkout gets it in its first run.
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        )
        peak = _watch(process) if memory else 0
        text, _ = process.communicate()
        if process.returncode != 0:
            return {"wall": float("nan"), "cpu": float("nan"), "error": "failed", "pss": peak}
        facts: dict[str, Any] = json.loads(text.splitlines()[-1]) | {"pss": peak}
        if out.exists():
            facts["error"] = _worst(np.load(out), reference)
        return facts


def _worst(values: Any, reference: dict[int, Any]) -> float:
    """The largest difference from the reference; NaN and missing values count as infinite."""
    flat = values.reshape(-1, values.shape[-1])
    worst = max(float(np.abs(flat[i] - v).max()) for i, v in reference.items())
    return worst if worst == worst else float("inf")


def _right(facts: dict[str, Any]) -> bool:
    """Whether a contender ended, and its values are those of the reference but for rounding."""
    error = facts.get("error", 0.0)
    return not isinstance(error, str) and float(error) <= _ROUNDING


def _watch(process: subprocess.Popen[str]) -> int:
    """Peak PSS of the process tree in bytes: shared memory counts once."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_pss, _tree(process.pid))))
        time.sleep(0.1)
    return peak


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = Path(f"/proc/{pid}/task").iterdir()
        for thread in threads:
            children += (thread / "children").read_text().split()
    except OSError:
        children = []
    return [pid, *(p for child in dict.fromkeys(map(int, children)) for p in _tree(child))]


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("wall", "cpu")
    return runs[-1] | {key: statistics.median(run[key] for run in runs) for key in keys}


def _print(job: Job, result: dict[str, Any]) -> None:
    table = result["contenders"]
    windows = f"{job.windows:,} windows"
    print(f"\n{job.name}: kernel {job.kernel}, stride {job.stride}, {windows}, {job.model}")
    if setting := result["setting"]:
        parts = [part for around in result["bounds"] for part in around]
        decode = statistics.median(part["decode"]["cpu"] for part in parts)
        model = statistics.median(part["model"]["cpu"] for part in parts)
        order = "channels last" if setting["channels_last"] else "channels first"
        print(
            f"  bound: decode {decode:.2f} + model {model:.2f} CPU s = "
            f"{(decode + model) / cores():.2f} s ({setting['callers']}×{setting['threads']} "
            f"threads, batch {setting['batch']}, {order})"
        )
    # A heatmap that is not right is no result, however fast it came.
    peers = [t["wall"] for n, t in table.items() if n not in ("streamwsi", "null") and _right(t)]
    fastest = min(peers, default=None)
    heads = f"{'wall s':>8}{'CPU s':>8}{'PSS MB':>8}{'win/s':>10}{'÷bound':>8}{'÷peer':>7}"
    print(f"  {'':22}{heads}  error")
    for name, facts in table.items():
        versus = fastest and facts["wall"] / fastest
        print(
            f"  {name:22}{facts['wall']:8.2f}{facts['cpu']:8.2f}{facts['pss'] / 1e6:8.0f}"
            f"{job.windows / facts['wall']:10,.0f}{facts.get('versus_bound', 0):8.2f}"
            f"{versus or 0:7.2f}  {facts.get('error', '')}"
            + ("" if _right(facts) else "  wrong: does not count")
            + (f"  amplification {facts['amplification']:.3f}" if "amplification" in facts else "")
        )


if __name__ == "__main__":
    main()
