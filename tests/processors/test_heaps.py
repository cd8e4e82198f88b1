"""Freed memory is kept while a model is open, and then given back."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamwsi.processors.heaps import KeptHeap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")

_BYTES = 40 << 20


def faults() -> int:
    """Pages that were given afresh, taking and giving back 40 MiB 8 times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(_BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    usual, began = faults(), resident()
    with KeptHeap():
        unbegun = faults()
    with KeptHeap() as first:
        first.begin()
        with KeptHeap() as second:
            second.begin()
            second.begin()
            faults()
            kept = faults()
        inside = resident() - began
        still = faults()
    print(usual, unbegun, kept, still, inside, resident() - began)


@pytest.mark.parametrize("variable", [None, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_freed_memory_is_kept_unless_somebody_has_set_malloc(variable: str | None) -> None:
    variables = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if name not in variables}
    if variable:
        env[variable] = "33554432" if variable != "GLIBC_TUNABLES" else "glibc.malloc.check=0"
    command = [sys.executable, "-m", f"{__name__}"]
    root = Path(__file__).resolve().parents[2]
    text = subprocess.run(command, env=env, cwd=root, check=True, capture_output=True).stdout
    usual, unbegun, kept, still, inside, behind = map(int, text.split())
    assert min(usual, unbegun) >= 8 * 20  # pages may be of 2 MiB
    if variable:
        assert min(kept, still) > usual / 2
    else:
        assert max(kept, still) < usual / 4
        assert inside > _BYTES / 2 > behind


if __name__ == "__main__":
    main()
