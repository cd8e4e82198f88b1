"""JPEG and JPEG 2000 data are judged by their markers before they are decoded."""

from __future__ import annotations

from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest

from streamwsi.sources.tiff_codestreams import (
    Frame,
    JpegFrames,
    TileError,
    holds_only_tables,
    jpeg2000_frame,
)

PICTURE = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)
JPEG = bytes(imagecodecs.jpeg8_encode(PICTURE, 80, subsampling="420"))
J2K = bytes(imagecodecs.jpeg2k_encode(PICTURE, level=0, codecformat="j2k", mct=True))
JP2 = bytes(imagecodecs.jpeg2k_encode(PICTURE, level=0, codecformat="jp2", mct=False))


def jpeg_frame(data: bytes) -> Frame:
    return JpegFrames().of(data)


def test_jpeg_frame() -> None:
    assert jpeg_frame(JPEG) == Frame(24, 40, 3)
    assert jpeg_frame(JPEG + b"\0" * 5) == Frame(24, 40, 3)
    grey = bytes(imagecodecs.jpeg8_encode(PICTURE[..., 0].copy(), 80))
    assert jpeg_frame(grey) == Frame(24, 40, 1)


def test_a_stream_that_begins_like_the_last_one_is_judged_alike() -> None:
    """Whatever is wrong with it, in the beginning or behind."""
    other = np.random.default_rng(4).integers(0, 256, (48, 40, 3), np.uint8)
    frames, rng = JpegFrames(), np.random.default_rng(0)
    good = [bytes(imagecodecs.jpeg8_encode(p, 80)) for p in (PICTURE, PICTURE[::-1].copy(), other)]
    assert [frames.of(data) for data in (*good, *good)] == [jpeg_frame(data) for data in good] * 2

    def judged(frame: Callable[[bytes], Frame], data: bytes) -> Frame | str:
        try:
            return frame(data)
        except TileError as error:
            return str(error)

    for _ in range(2000):
        assert frames.of(good[0]) == Frame(24, 40, 3)
        data = bytearray(good[int(rng.integers(3))])
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = int(rng.choice([0, 0xD9, 0xDA, 0xFF, int(rng.integers(256))]))
        cut = bytes(data[: rng.integers(len(data) // 2, 2 * len(data))])
        assert judged(frames.of, cut) == judged(jpeg_frame, cut)


def test_jpeg2000_frame() -> None:
    assert jpeg2000_frame(J2K) == Frame(24, 40, 3, mixed=True)
    assert jpeg2000_frame(J2K + b"\0" * 3) == Frame(24, 40, 3, mixed=True)
    assert jpeg2000_frame(JP2) == Frame(24, 40, 3, mixed=False)


@pytest.mark.parametrize("data", [JPEG, J2K, JP2], ids=["jpeg", "j2k", "jp2"])
def test_data_cut_anywhere_are_noticed(data: bytes) -> None:
    frame = jpeg_frame if data is JPEG else jpeg2000_frame
    for length in range(len(data) - 1):
        with pytest.raises(TileError):
            frame(data[:length])
        with pytest.raises(TileError):
            frame(data[:length] + bytes(20))


def test_overwritten_scan_is_noticed() -> None:
    middle = len(JPEG) * 3 // 4
    noise = np.random.default_rng(0).integers(0, 256, 1000, np.uint8).tobytes()
    with pytest.raises(TileError, match=r"damaged|early"):
        jpeg_frame(JPEG[:middle] + noise + JPEG[middle:])


def test_jpeg_with_two_frames_or_endless_scans() -> None:
    frame = JPEG.index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(JPEG[frame + 2 : frame + 4], "big")
    with pytest.raises(TileError, match="two images"):
        jpeg_frame(JPEG[:end] + JPEG[frame:end] + JPEG[end:])
    scan = JPEG.index(b"\xff\xda")
    with pytest.raises(TileError, match="early"):
        jpeg_frame(JPEG[:-2] + JPEG[scan : scan + 20] * 1000 + b"\xff\xd9")
    with pytest.raises(TileError, match="no image"):
        jpeg_frame(JPEG[:frame] + b"\xff\xd9")


def test_tables_alone() -> None:
    frame = JPEG.index(b"\xff\xc0")
    assert holds_only_tables(JPEG[:frame] + b"\xff\xd9")
    assert holds_only_tables(JPEG[:frame])
    assert not holds_only_tables(JPEG)
    assert not holds_only_tables(JPEG[: frame + 30])
    assert not holds_only_tables(b"")
    assert not holds_only_tables(b"\xff\xd8 and so on")


def test_jpeg2000_in_a_million_parts() -> None:
    at = J2K.index(b"\xff\x51") + 4 + 18
    parts = J2K[:at] + (1).to_bytes(4, "big") * 2 + J2K[at + 8 :]
    huge = parts[: at - 16] + (5000).to_bytes(4, "big") * 2 + parts[at - 8 :]
    with pytest.raises(TileError, match="too many parts"):
        jpeg2000_frame(huge)
