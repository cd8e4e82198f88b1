"""One contender on one job, in a process of its own; prints one JSON object."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from .contenders import CONTENDERS
from .jobs import Job


def _cpu() -> float:
    usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def main(name: str, job: Job, slide: Path, out: Path) -> None:
    """Run it, keep its heatmap in `out`, and print what it took."""
    steps = CONTENDERS[name](job, slide)
    next(steps)
    began, cpu = time.perf_counter(), _cpu()
    values = next(steps)
    facts = {"wall": time.perf_counter() - began}
    facts |= next(steps, None) or {}
    facts["cpu"] = _cpu() - cpu
    if values is not None:
        np.save(out, values)
    print(json.dumps(facts))


if __name__ == "__main__":
    fields = json.loads(sys.argv[2])
    main(sys.argv[1], replace(Job("", 1, 1), **fields), Path(sys.argv[3]), Path(sys.argv[4]))
