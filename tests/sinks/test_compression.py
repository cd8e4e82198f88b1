"""The compressor's bytes depend on the cells only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from numcodecs import blosc  # type: ignore[import-untyped]
from zarr.storage import MemoryStore

from streamwsi.sinks.compression import blosc_zstd


@pytest.fixture(autouse=True)
def blosc_settings() -> Iterator[None]:
    threads, used = blosc.get_nthreads(), blosc.use_threads
    yield
    blosc.set_nthreads(threads)
    blosc.use_threads = used


def cells(side: int, dtype: str) -> npt.NDArray[np.generic]:
    noise = np.random.default_rng(side).random((side, side))
    return (noise * 7).round(2).astype(dtype)


def stored(values: npt.NDArray[np.generic], threads: int, used: bool | None) -> dict[str, bytes]:
    """The files of an array of one chunk."""
    blosc.set_nthreads(threads)
    blosc.use_threads = used
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        compressors=blosc_zstd(values.shape, values.dtype.itemsize),
    )
    array[:] = values
    np.testing.assert_array_equal(array[:], values)
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


@pytest.mark.parametrize("side", [16, 256, 512, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_threads_do_not_change_the_bytes(side: int, dtype: str) -> None:
    values = cells(side, dtype)
    once = stored(values, 1, False)
    for threads in (1, 2, 4):
        for used in (None, True, False):
            assert stored(values, threads, used) == once
