"""FirstOf: which source opens a slide, and what is said where none does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from streamwsi.errors import CannotOpen, CannotRead, ConfigError, NoSlide
from streamwsi.limits import Limits
from streamwsi.slides import SlideRef
from streamwsi.sources.first_of import FirstOf
from streamwsi.sources.memory import MemorySource
from streamwsi.sources.tiff import TiffSource
from streamwsi.sources.zarr import ZarrSource
from streamwsi.stages import SlideReader
from streamwsi.workers import Workers, open_workers

REF = SlideRef("a", "a.tif")
HERE = MemorySource({"a": (np.zeros((8, 9, 3), np.uint8),)})
ELSEWHERE = MemorySource({"b": (np.ones((8, 9, 3), np.uint8),)})


@dataclass(frozen=True)
class Refusing:
    """Accepts every slide and opens none."""

    words: str
    log: list[str] = field(default_factory=list, compare=False)

    def accepts(self, ref: SlideRef) -> bool:
        return True

    @asynccontextmanager
    async def open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[SlideReader]:
        self.log.append(ref.id)
        raise CannotOpen(self.words)
        yield


class Breaking(Refusing):
    """Breaks the promise never to raise."""

    def accepts(self, ref: SlideRef) -> bool:
        raise RuntimeError("a plugin's bug")


async def opened(source: FirstOf, ref: SlideRef) -> Any:
    """The slide that the source opens."""
    async with (
        open_workers(Limits(worker_kind="inline", memory="1 MiB")) as workers,
        source.open(ref, workers) as reader,
    ):
        return reader.slide


@pytest.mark.parametrize(
    "sources",
    [
        (HERE, Refusing("not asked")),
        (ELSEWHERE, HERE),
        (Refusing("is broken"), HERE),
        (Breaking("is not asked"), HERE),
    ],
)
async def test_the_first_that_can(sources: tuple[Any, ...]) -> None:
    source = FirstOf(sources)
    assert source.accepts(REF)
    assert (await opened(source, REF)).level(0).size == (9, 8)


async def test_the_order_is_kept() -> None:
    first, second = Refusing("first"), Refusing("second")
    with pytest.raises(CannotOpen, match=r"^first\b") as info:
        await opened(FirstOf((ELSEWHERE, first, second)), REF)
    assert (first.log, second.log) == (["a"], ["a"])
    assert info.value.__notes__ == ["tried next: second"]


async def test_an_error_while_reading_is_not_for_the_next() -> None:
    later = Refusing("not asked")
    async with open_workers(Limits(worker_kind="inline", memory="1 MiB")) as workers:
        for error in (CannotRead("while reading"), CannotOpen("of another slide")):
            with pytest.raises(type(error), match=str(error)):
                async with FirstOf((HERE, later)).open(REF, workers):
                    raise error
    assert later.log == []


def test_it_is_a_value() -> None:
    assert FirstOf((TiffSource(), ZarrSource())) == FirstOf((TiffSource(), ZarrSource()))
    assert repr(FirstOf((TiffSource(),))) == "FirstOf(sources=(TiffSource(),))"
    assert not FirstOf((HERE,)).accepts(SlideRef("b", "b.tif"))
    with pytest.raises(ConfigError, match="at least one"):
        FirstOf(())


async def test_what_is_said_where_nobody_can(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("a letter")
    (tmp_path / "empty.svs").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.svs")
    said = {
        "absent.svs": "there is no such file; check the path",
        "empty.svs": "is empty; copy the slide again",
        "pipe.svs": "is not a regular file; copy the slide to a disk first",
        "text.svs/below": f"cannot be read ([Errno 20] Not a directory: "
        f"'{tmp_path}/text.svs/below'); check the path",
        "text.svs": "is no slide of a format that can be read here (tried Tiff, Zarr); "
        "for more formats: pip install streamwsi-openslide",
        "folder": "is a folder, and no slide of a format that is one; name the slides in it "
        "(tried Tiff, Zarr); for more formats: pip install streamwsi-openslide",
    }
    for name, words in said.items():
        with pytest.raises(CannotOpen) as info:
            await opened(FirstOf((TiffSource(), ZarrSource())), SlideRef("a", str(tmp_path / name)))
        assert str(info.value) == f"{tmp_path / name}: {words}"


async def test_paths_that_are_none() -> None:
    for uri, words in {
        "s3://bucket/a.svs": "no such file; slides are read from local paths only",
        "a\0b": "cannot be read",
    }.items():
        with pytest.raises(CannotOpen, match=words):
            await opened(FirstOf((TiffSource(), ZarrSource())), SlideRef("a", uri))


async def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.svs").write_text("secret")
    monkeypatch.setattr(Path, "open", denied)  # as root, permissions do not hold
    with pytest.raises(CannotOpen, match="may not be read; check its permissions"):
        await opened(FirstOf((TiffSource(), ZarrSource())), SlideRef("a", str(tmp_path / "a.svs")))


async def test_no_hint_at_what_is_installed(tmp_path: Path) -> None:
    class OpenSlideSource(MemorySource):
        pass

    (tmp_path / "a.svs").write_text("a letter")
    with pytest.raises(CannotOpen, match=r"\(tried OpenSlide\)$"):
        await opened(FirstOf((OpenSlideSource({}),)), SlideRef("a", str(tmp_path / "a.svs")))


async def test_what_holds_no_slide_is_not_handed_on(tmp_path: Path) -> None:
    """Another reader may give one plane of a stack, or bytes of floats, as if they were all."""
    stack = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 40, 50), np.uint8)
    for name, array, says in (
        ("stack.tif", stack, "is a stack of images"),
        ("float.tif", stack[0].astype(np.float32), "has float32 samples"),
        ("int.tif", stack[0].astype(np.int16), "has int16 samples"),
    ):
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", tile=(16, 16))
        next_ = Refusing("another one")
        with pytest.raises(NoSlide, match=says):
            await opened(FirstOf((TiffSource(), next_)), SlideRef("a", str(tmp_path / name)))
        assert next_.log == []
