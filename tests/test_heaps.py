"""Threads share one heap, and freed memory is kept while a model is open."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamwsi.heaps import KeptHeap, share_one_heap

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


def heaps() -> int:
    """How many there are once four threads have allocated something at the same time."""
    together = threading.Barrier(4)

    def allocate() -> None:
        kept = np.ones(1 << 20, np.uint8)
        together.wait()
        del kept

    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc: Any = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return Path(file.name).read_text().count("<heap ")


def main() -> None:
    share_one_heap()
    shared = heaps()
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
    print(shared, usual, unbegun, kept, still, inside, resident() - began)


@pytest.mark.parametrize("variable", [None, "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_memory_is_shared_and_kept_unless_somebody_has_set_malloc(variable: str | None) -> None:
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    if variable:
        env[variable] = "33554432" if variable != "GLIBC_TUNABLES" else "glibc.malloc.check=0"
    command = [sys.executable, "-m", f"{__name__}"]
    root = Path(__file__).resolve().parents[1]
    text = subprocess.run(command, env=env, cwd=root, check=True, capture_output=True).stdout
    shared, usual, unbegun, kept, still, inside, behind = map(int, text.split())
    assert min(usual, unbegun) >= 8 * 20  # pages may be of 2 MiB
    if variable:
        assert min(kept, still) > usual / 2
        assert shared > 1
    else:
        assert shared == 1
        assert max(kept, still) < usual / 4
        assert inside > _BYTES / 2 > behind


if __name__ == "__main__":
    main()
