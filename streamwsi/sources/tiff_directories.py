"""A look at the directories of a TIFF before a full parser may see them.

A directory (IFD) is a list of tags; a tag's values lie in it or elsewhere in the file. A parser
that believes the counts can be made to build lists of a billion numbers, or to walk in circles.
`check_directories` reads the skeleton only, tens of bytes a tag, and refuses what no slide has.
Layouts: TIFF 6.0; BigTIFF; NDPI, which is classic TIFF with 64-bit links between directories
and the high words of the values behind each of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import CannotOpen
from .tiff_files import SlideFile

__all__ = ["check_directories", "is_ndpi_name"]

_MAX_DIRECTORIES = 4096
_MAX_TAGS = 4096
_MAX_VALUES = 2**24
_MAX_TEXT_BYTES = 64 * 2**20

_SUB_DIRECTORIES = 330
# Sizes, layout, and where the tiles lie: a slide without one of these cannot be read.
_STRUCTURE = frozenset({256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 323, 324, 325})
# What the parser reads into memory as soon as it meets it.
_LOADED = _STRUCTURE | {270, 282, 283, 305, 330, 338, 339, 347, 513, 514, 530, 33628, 42113}
_LOADED = _LOADED | {50838, 50839, 65426, 65432}
_BYTES = frozenset({1, 2, 6, 7})
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_TYPE_BYTES |= {13: 4, 16: 8, 17: 8, 18: 8}


class _Layout(NamedTuple):
    """How directories are written: struct formats, and bytes of a value that fit into a tag."""

    first: int
    number: str
    tag: str
    link: str
    inline: int
    ndpi: bool


class _Tag(NamedTuple):
    code: int
    kind: int
    number: int
    value: bytes


def is_ndpi_name(uri: str) -> bool:
    """Whether the parser takes a little-endian classic TIFF of that name for an NDPI."""
    return uri.lower().endswith(".ndpi")


def check_directories(file: SlideFile) -> None:
    """Refuse a file whose directories run in circles, leave the file, or promise too much.

    Raises:
        CannotOpen: with the reason.
        OSError: the file cannot be read.
    """
    order, layout = _layout(file)
    link = order + layout.link
    (offset,) = _unpack(file, link, layout.first, "header")
    seen: set[int] = set()
    subs: list[int] = []
    values = 0
    while offset:
        if offset in seen:
            raise CannotOpen(f"{file.uri}: its directories run in a circle; export it again")
        seen.add(offset)
        after, tags = _directory(file, order, layout, offset)
        for tag in tags:
            values += _check_tag(file, order, layout, tag)
            if tag.code == _SUB_DIRECTORIES:
                subs += _links(file, order, layout, tag)
        if len(seen) + len(subs) > _MAX_DIRECTORIES:
            raise CannotOpen(f"{file.uri}: holds over {_MAX_DIRECTORIES} images: not a slide")
        (offset,) = _unpack(file, link, after, "directory")
    for sub in subs:
        values += sum(
            _check_tag(file, order, layout, tag) for tag in _directory(file, order, layout, sub)[1]
        )
    if values > _MAX_VALUES:
        raise CannotOpen(f"{file.uri}: its header lists {values} numbers, too many for a slide")


def _layout(file: SlideFile) -> tuple[str, _Layout]:
    head = file.read(0, 8)
    order = "<" if head[:2] == b"II" else ">"
    if b"+" in head[2:4]:
        return order, _Layout(8, "Q", "HHQ8s", "Q", 8, False)
    ndpi = order == "<" and is_ndpi_name(file.uri)
    return order, _Layout(4, "H", "HHI4s", "Q" if ndpi else "I", 4, ndpi)


def _directory(
    file: SlideFile, order: str, layout: _Layout, offset: int
) -> tuple[int, Iterator[_Tag]]:
    """Where the link to the next directory lies, and the tags."""
    (count,) = _unpack(file, order + layout.number, offset, "directory")
    if not 0 < count <= _MAX_TAGS:
        raise CannotOpen(
            f"{file.uri}: a directory at byte {offset} claims {count} tags; the file is damaged"
        )
    first = offset + struct.calcsize(order + layout.number)
    tag = struct.Struct(order + layout.tag)
    after = first + count * tag.size
    data = file.read(first, count * tag.size)
    if len(data) < count * tag.size:
        raise _cut_short(file, "directory", offset)
    high = file.read(after + 8, 4 * count) if layout.ndpi else b""
    return after, (
        _Tag(code, kind, n, value + high[4 * i : 4 * i + 4])
        for i, (code, kind, n, value) in enumerate(tag.iter_unpack(data))
    )


def _check_tag(file: SlideFile, order: str, layout: _Layout, tag: _Tag) -> int:
    """How many numbers the parser would make of the tag."""
    nbytes = tag.number * _TYPE_BYTES.get(tag.kind, 0)
    if tag.code not in _LOADED or nbytes <= layout.inline:
        return 0
    at = _offset(order, tag.value)
    if tag.code in _STRUCTURE and at + nbytes > file.size:
        raise _cut_short(file, f"values of tag {tag.code}", at)
    if tag.kind in _BYTES and tag.code not in _STRUCTURE:
        if nbytes > _MAX_TEXT_BYTES:
            raise CannotOpen(f"{file.uri}: tag {tag.code} has {nbytes} bytes, too many for a slide")
        return 0
    return tag.number


def _links(file: SlideFile, order: str, layout: _Layout, tag: _Tag) -> list[int]:
    """Offsets of sub-directories (the parser passes over those below 8)."""
    size = _TYPE_BYTES.get(tag.kind, 0)
    if size not in (4, 8) or tag.number > _MAX_DIRECTORIES:
        raise CannotOpen(f"{file.uri}: its list of sub-images is damaged; export it again")
    data = tag.value
    if tag.number * size > layout.inline:
        data = file.read(_offset(order, tag.value), tag.number * size)
    data = data[: tag.number * size]
    if len(data) < tag.number * size:
        raise _cut_short(file, "list of sub-images", _offset(order, tag.value))
    kind = "I" if size == 4 else "Q"
    return [at for at in struct.unpack(f"{order}{tag.number}{kind}", data) if at >= 8]


def _offset(order: str, value: bytes) -> int:
    return int.from_bytes(value, "little" if order == "<" else "big")


def _unpack(file: SlideFile, form: str, offset: int, what: str) -> tuple[int]:
    size = struct.calcsize(form)
    data = file.read(offset, size) if offset < file.size else b""
    if len(data) < size:
        raise _cut_short(file, what, offset)
    (value,) = struct.unpack(form, data)
    return (value,)


def _cut_short(file: SlideFile, what: str, offset: int) -> CannotOpen:
    return CannotOpen(
        f"{file.uri}: is cut short or damaged: its {what} at byte {offset} "
        f"reaches beyond its end at byte {file.size}; copy the slide again"
    )
