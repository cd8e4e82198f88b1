"""The values that travel along a lane."""

from __future__ import annotations

import numpy as np
import pytest

from streamwsi.chunks import (
    Batch,
    BigChunk,
    Pieces,
    Places,
    ProcessedPiece,
    Region,
    SmallChunks,
)
from streamwsi.errors import ContractBroken
from streamwsi.geometry import Box, Size
from streamwsi.samplers.sliding_window import GridPlan, SlidingWindow
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef


def plan() -> GridPlan:
    level = PyramidLevel(0, Size(40, 30), (1.0, 1.0), Size(16, 16))
    slide = Slide(SlideRef("a", "a.svs"), Pyramid((level,)), "uint8", 3)
    return SlidingWindow(4, 4).plan(slide)


def chunk(released: list[str] | None = None) -> BigChunk:
    region = Region(0, 0, Box(0, 0, 5, 4), 0, 1)
    log = [] if released is None else released
    return BigChunk(region, np.zeros((4, 5, 3), np.uint8), (), lambda: log.append("released"))


def test_places_are_a_lazy_sequence() -> None:
    places = Places(plan(), 3, 9)
    assert len(places) == 6
    assert [place.index for place in places] == [3, 4, 5, 6, 7, 8]
    assert (places[0].index, places[-1].index) == (3, 8)
    assert places[1:3] == Places(plan(), 4, 6)
    assert len(places[5:2]) == 0
    assert places[2].box == Box(20, 0, 4, 4)
    assert sum(run.count for run in places.runs()) == 6
    with pytest.raises(IndexError):
        places[6]
    with pytest.raises(ValueError, match="steps of 1"):
        places[::2]


def test_a_chunk_is_given_back_by_its_last_holder() -> None:
    log: list[str] = []
    held = chunk(log)
    held.retain()
    held.release()
    assert log == []
    held.release()
    assert log == ["released"]
    with pytest.raises(ContractBroken, match="released more often"):
        held.release()
    with pytest.raises(ContractBroken, match="retained after its release"):
        held.retain()
    assert log == ["released"]


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 5), (4, 5, 3, 1)])
def test_a_chunk_has_the_shape_of_its_region(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractBroken, match="for a region of 4×5"):
        BigChunk(Region(0, 0, Box(0, 0, 5, 4), 0, 1), np.zeros(shape, np.uint8))


def test_a_batch_gathers_its_parts_in_order() -> None:
    parts = tuple(np.full((n, 2, 2, 3), i, np.uint16) for i, n in enumerate((2, 1, 3)))
    batch = Batch(Places(plan(), 0, 6), parts, np.ones(6, np.bool_))
    assert batch.shape == (6, 2, 2, 3)
    assert batch.dtype == np.uint16
    assert len(batch) == 6
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2, 2]
    out = np.zeros((8, 2, 2, 3), np.uint16)
    assert batch.gather(out[:6]).base is out
    np.testing.assert_array_equal(out[:6], batch.pixels)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (6, 6, [6]),
        (6, 16, [6]),
        (6, 4, [4, 2]),
        (6, 5, [4, 2]),
        (4, 3, [2, 2]),
        (5, 2, [2, 2, 1]),
        (1, 3, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_batch_is_cut_without_single_windows(count: int, size: int, sizes: list[int]) -> None:
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    batch = Batch(Places(plan(), 0, count), (pixels[:2], pixels[2:]), pixels.ravel() % 2 == 0)
    pieces = [*batch.cuts(size)]
    assert [len(piece) for piece in pieces] == sizes
    np.testing.assert_array_equal(np.concatenate([piece.pixels for piece in pieces]), pixels)
    np.testing.assert_array_equal(np.concatenate([piece.valid for piece in pieces]), batch.valid)
    assert [piece.places.start for piece in pieces] == np.cumsum([0, *sizes[:-1]]).tolist()


def test_a_kept_batch_outlives_its_first_release() -> None:
    log: list[str] = []
    held = chunk(log)
    batch = Batch(Places(plan(), 0, 1), (np.zeros((1, 2, 2, 3)),), np.ones(1, np.bool_), (held,))
    batch.keep()
    batch.release()
    assert log == []
    batch.release()
    assert log == ["released"]


def test_small_chunks_count_their_windows() -> None:
    assert len(SmallChunks(0, np.zeros((7, 2, 2, 3)), np.ones(7, np.bool_))) == 7


def test_pieces_come_one_a_window() -> None:
    places = Places(plan(), 4, 7)
    pieces = Pieces(places, [10, 11, 12], np.array([True, False, True]))
    assert [*pieces] == [
        ProcessedPiece(places[0], 10, True),
        ProcessedPiece(places[1], 11, False),
        ProcessedPiece(places[2], 12, True),
    ]
    assert all(type(piece.valid) is bool for piece in pieces)


def test_pieces_are_cut_at_what_is_needed() -> None:
    pieces = Pieces(Places(plan(), 4, 7), [10, 11, 12], np.array([True, False, True]))
    assert pieces.since(0) is pieces
    assert pieces.since(4) is pieces
    later = pieces.since(5)
    assert (later.places.start, [*later.values], later.valid.tolist()) == (
        5,
        [11, 12],
        [False, True],
    )
    assert len(pieces.since(7)) == len(pieces.since(99)) == 0


def test_pieces_have_one_value_a_window() -> None:
    with pytest.raises(ContractBroken, match="returned 2 values for 3 windows"):
        Pieces(Places(plan(), 4, 7), [10, 11], np.ones(3, np.bool_))
