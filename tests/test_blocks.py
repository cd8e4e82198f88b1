"""Shared memory: blocks that do not overlap, arrays that stay inside, mappings that do not
crash."""

from __future__ import annotations

import mmap
import os
import pickle
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.blocks import Arena, ArrayRef, Block
from streamwsi.errors import ConfigError

PAGE = 4096


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(1, 6 * PAGE)), max_size=40))
def test_blocks_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    arena = Arena(16 * PAGE)
    held: list[tuple[Block, ExitStack]] = []
    for take, nbytes in steps:
        if take:
            stack = ExitStack()
            try:
                block = stack.enter_context(arena.reserved(nbytes))
            except ConfigError:
                assert not fits(held, nbytes)
                continue
            assert block.nbytes == nbytes
            assert block.offset + block.nbytes <= arena.nbytes
            for other, _ in held:
                apart = other.offset + other.nbytes <= block.offset
                assert apart or block.offset + block.nbytes <= other.offset
            held.append((block, stack))
        elif held:
            held.pop(nbytes % len(held))[1].close()
    for _, stack in held:
        stack.close()
    with arena.reserved(arena.nbytes) as whole:
        assert whole == Block(0, arena.nbytes)
    arena.close()


def fits(held: list[tuple[Block, ExitStack]], nbytes: int) -> bool:
    """Whether the pages in between the held blocks have room: by counting pages."""
    taken = {
        page
        for block, _ in held
        for page in range(block.offset // PAGE, -(-(block.offset + block.nbytes) // PAGE))
    }
    need = -(-nbytes // PAGE)
    return any(not taken & {*range(at, at + need)} for at in range(16 - need + 1))


def test_too_large_a_block_is_refused() -> None:
    arena = Arena(PAGE)
    with pytest.raises(ConfigError, match="raise the memory limit"), arena.reserved(PAGE + 1):
        pass
    arena.close()


def test_a_block_comes_back_after_an_error() -> None:
    arena = Arena(PAGE)
    with pytest.raises(LookupError), arena.reserved(PAGE):
        raise LookupError
    with arena.reserved(PAGE):
        pass
    arena.close()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_are_c_contiguous_in_their_block(dtype: str) -> None:
    arena = Arena(PAGE)
    with arena.reserved(PAGE) as block:
        ref = block.array((3, 4, 2), dtype, at=16)
        array = arena.resolve(pickle.loads(pickle.dumps(ref)))
        assert array.flags.c_contiguous
        assert (array.shape, array.dtype) == ((3, 4, 2), np.dtype(dtype))
        array[...] = np.arange(24).reshape(3, 4, 2)
        raw = np.frombuffer(arena.buffer, dtype, 24, block.offset + 16)
        np.testing.assert_array_equal(raw, np.arange(24))
        del raw, array
    arena.close()


def test_strided_arrays_share_the_memory() -> None:
    arena = Arena(PAGE)
    whole = arena.resolve(ArrayRef(0, (8, 8), (8, 1), "uint8"))
    arena.resolve(ArrayRef(9, (2, 3), (8, 1), "uint8"))[...] = 7
    expected = np.zeros((8, 8), np.uint8)
    expected[1:3, 1:4] = 7
    np.testing.assert_array_equal(whole, expected)
    del whole
    arena.close()


@pytest.mark.parametrize(
    "ref",
    [
        ArrayRef(-1, (4,), (1,), "uint8"),
        ArrayRef(PAGE - 3, (4,), (1,), "uint8"),
        ArrayRef(0, (2, 2), (PAGE, 1), "uint8"),
        ArrayRef(8, (4,), (-1,), "uint8"),
        ArrayRef(PAGE - 4, (3,), (2,), "uint16"),
    ],
)
def test_an_array_beyond_the_arena_is_refused(ref: ArrayRef) -> None:
    arena = Arena(PAGE)
    with pytest.raises(ValueError, match="beyond the arena"):
        arena.resolve(ref)
    arena.close()


def test_an_empty_array_needs_no_memory() -> None:
    arena = Arena(PAGE)
    assert arena.resolve(ArrayRef(10**9, (0, 3), (3, 1), "uint8")).shape == (0, 3)
    arena.close()


def test_an_array_outlives_the_arena_without_a_crash() -> None:
    """Closing the mapping under it would crash on the next access."""
    arena = Arena(PAGE)
    array = arena.resolve(ArrayRef(0, (PAGE,), (1,), "uint8"))
    array[:] = 3
    arena.close()
    assert int(array.sum()) == 3 * PAGE


def test_a_closed_arena_leaves_no_descriptor() -> None:
    def descriptors() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    before = descriptors()
    arenas = [Arena(PAGE) for _ in range(5)]
    assert descriptors() > before
    for arena in arenas:
        arena.close()
    assert descriptors() == before


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="this system keeps the pages")
def test_a_block_that_comes_back_takes_no_memory() -> None:
    arena = Arena(64 * PAGE)
    with arena.reserved(8 * PAGE), arena.reserved(16 * PAGE) as block:
        arena.resolve(ArrayRef(0, (24 * PAGE,), (1,), "uint8"))[:] = 1
        assert block.offset == 8 * PAGE
    assert os.fstat(arena.fd).st_blocks == 0
    with arena.reserved(8 * PAGE):
        arena.resolve(ArrayRef(0, (24 * PAGE,), (1,), "uint8"))[:] = 1
    left = arena.resolve(ArrayRef(0, (24 * PAGE,), (1,), "uint8"))
    assert np.flatnonzero(left).tolist() == [*range(8 * PAGE, 24 * PAGE)]
    del left
    arena.close()


def test_a_large_arena_takes_no_memory_until_it_is_written() -> None:
    arena = Arena(64 * 2**30)
    assert os.fstat(arena.fd).st_blocks == 0
    arena.resolve(ArrayRef(2**35, (10,), (1,), "uint8"))[:] = 1
    assert os.fstat(arena.fd).st_blocks * 512 <= 2**21
    arena.close()
