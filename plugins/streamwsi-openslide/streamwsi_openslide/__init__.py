"""OpenSlideSource: slides of the formats that OpenSlide reads.

OpenSlide runs in streamwsi's worker processes. Pixels are RGB, laid over the slide's
background colour where the scanner recorded none.

OpenSlide addresses all levels in level-0 pixels, by a downsample that is the mean of both
axes' and often not whole; asked for a place between two pixels of a level, it interpolates.
So pixels are those of the file on level 0, and on the levels that
``Slide.properties["exact_levels"]`` names; elsewhere a tile is shifted by up to half a level-0
pixel.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Damage
from streamwsi.errors import CannotOpen, CannotRead
from streamwsi.geometry import Box, Size
from streamwsi.slides import Mpp, Pyramid, PyramidLevel, Slide, SlideRef, snapped_downsample
from streamwsi.sources.base import Inspect, PooledSource, ReadBox

if TYPE_CHECKING:
    from openslide import OpenSlide

__all__ = ["OpenSlideSource", "inspect", "read_box"]

_DEFAULT_TILE = "256"  # where OpenSlide knows none
_PIECE = Size(4096, 1024)  # OpenSlide cuts larger regions itself, at rounded places
_NEXT_TO_NOTHING = 1 / 512  # of a pixel: Cairo takes smaller shifts for none


def _file(uri: str) -> str | None:
    """The file to open: the path, or in a folder the first DICOM file that is of a slide."""
    import openslide

    path = Path(uri)
    files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
    return next((str(f) for f in files if openslide.OpenSlide.detect_format(f)), None)


@lru_cache(maxsize=8)
def _opened(uri: str, modified_ns: int) -> OpenSlide:
    # Never closed by hand: another thread may be reading; OpenSlide closes what is forgotten.
    import openslide

    file = _file(uri)
    if file is None:
        raise CannotOpen(f"{uri}: is of no format that OpenSlide {openslide.__version__} reads")
    try:
        return openslide.OpenSlide(file)
    except (openslide.OpenSlideError, OSError) as error:
        raise CannotOpen(f"{uri}: OpenSlide cannot open it: {error}") from error


def _slide(ref: SlideRef) -> OpenSlide:
    try:
        return _opened(ref.uri, Path(ref.uri).stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise CannotOpen(f"{ref.uri}: cannot be opened ({error}); check the path") from error


def inspect(ref: SlideRef) -> Slide:
    """What OpenSlide says of the slide; runs in a worker. Raises `CannotOpen`."""
    slide = _slide(ref)
    facts, file = dict(slide.properties), Path(_file(ref.uri) or ref.uri)
    sizes = [Size(*size) for size in slide.level_dimensions]
    levels = []
    for index, size in enumerate(sizes):
        x, y = (snapped_downsample(*pair) for pair in zip(sizes[0], size, strict=True))
        levels.append(PyramidLevel(index, size, (x, y), _tile(slide, index)))
    mpp_x, mpp_y = (_number(facts.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return Slide(
        ref,
        Pyramid(tuple(levels), Mpp(mpp_x, mpp_y) if mpp_x and mpp_y else None),
        "uint8",
        3,
        vendor=facts.get("openslide.vendor", "generic"),
        power=_number(facts.get("openslide.objective-power")),
        nbytes=file.stat().st_size,
        compression="unknown",
        identity=_identity(file, facts),
        properties={
            "exact_levels": [index for index in range(len(sizes)) if _exact(slide, index)],
            **{k: v for k, v in facts.items() if "bounds" in k or "background" in k},
        },
    )


def _tile(slide: OpenSlide, level: int) -> Size:
    names = (f"openslide.level[{level}].tile-{side}" for side in ("width", "height"))
    return Size(*(int(slide.properties.get(name, _DEFAULT_TILE)) for name in names))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or 0)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _identity(file: Path, facts: dict[str, str]) -> str:
    """SHA-256 over the file's size and ends, and OpenSlide's own hash, which covers all files."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"{size} {facts.get('openslide.quickhash-1')}".encode())
    with file.open("rb") as opened:
        for start in (0, max(0, size - 65536)):
            opened.seek(start)
            digest.update(opened.read(65536))
    return digest.hexdigest()[:32]


def _exact(slide: OpenSlide, level: int) -> bool:
    """Whether every pixel of the level lies at a whole level-0 pixel, as OpenSlide counts."""
    downsample, size = slide.level_downsamples[level], slide.level_dimensions[level]
    return abs(round(downsample) / downsample - 1) * max(size) < _NEXT_TO_NOTHING


def read_box(ref: SlideRef, level: int, box: Box, out: npt.NDArray[Any]) -> tuple[Damage, ...]:
    """Fill `out` with a box of whole tiles; runs in a worker.

    Where OpenSlide fails, tile by tile is tried once more, and what fails again is damage.
    Raises `CannotRead` where the file is gone.
    """
    from openslide import OpenSlideError

    try:
        slide = _slide(ref)
        tile, columns = _tile(slide, level), slide.level_dimensions[level][0]
        try:
            for piece in _cut(box, _PIECE):
                _copy(slide, level, piece, box, out)
            return ()
        except OpenSlideError:
            # An OpenSlide that has failed once fails for ever.
            _opened.cache_clear()
        damage = []
        for piece in _cut(box, tile):
            try:
                _copy(_slide(ref), level, piece, box, out)
            except OpenSlideError as error:
                _opened.cache_clear()
                out[_within(piece, box)] = 0
                number = piece.y // tile.height * -(-columns // tile.width) + piece.x // tile.width
                damage.append(Damage(level, number, piece, f"OpenSlide: {error}"))
        return tuple(damage)
    except CannotOpen as error:
        raise CannotRead(str(error)) from error


def _cut(box: Box, step: Size) -> Iterator[Box]:
    for y in range(box.y, box.bottom, step.height):
        for x in range(box.x, box.right, step.width):
            yield Box(x, y, *step).intersection(box)


def _within(piece: Box, box: Box) -> tuple[slice, slice]:
    x, y = piece.x - box.x, piece.y - box.y
    return slice(y, y + piece.height), slice(x, x + piece.width)


def _copy(slide: OpenSlide, level: int, piece: Box, box: Box, out: npt.NDArray[Any]) -> None:
    downsample = slide.level_downsamples[level]
    place = round(piece.x * downsample), round(piece.y * downsample)
    rgba = np.asarray(slide.read_region(place, level, (piece.width, piece.height)))
    target = out[_within(piece, box)]
    target[...] = rgba[..., :3]
    if rgba[..., 3].min() < 255:
        color = slide.properties.get("openslide.background-color", "FFFFFF")
        background = np.array(list(bytes.fromhex(color)), np.float32)
        opacity = rgba[..., 3:].astype(np.float32) / 255
        target[...] = np.rint(target * opacity + background * (1 - opacity))


@dataclass(frozen=True, slots=True)
class OpenSlideSource(PooledSource):
    """Slides that OpenSlide reads: a file, or a folder of DICOM files."""

    inspect: ClassVar[Inspect] = staticmethod(inspect)
    read_box: ClassVar[ReadBox] = staticmethod(read_box)

    def accepts(self, ref: SlideRef) -> bool:
        """Whether OpenSlide knows the format."""
        try:
            return _file(ref.uri) is not None
        except Exception:  # a missing library is no reason to fail the other sources
            return False
