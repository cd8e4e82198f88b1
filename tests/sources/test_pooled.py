"""PooledSource: what plugins' functions raise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from streamwsi.errors import CannotOpen
from streamwsi.limits import Limits
from streamwsi.slides import Slide, SlideRef
from streamwsi.sources.base import Inspect, PooledSource, ReadBox
from streamwsi.workers import open_workers


def _inspect(ref: SlideRef) -> Slide:
    with open(ref.uri, "rb"):
        raise AssertionError("there is no such file")


def _read(ref: SlideRef, level: int, box: Any, out: Any) -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Careless(PooledSource):
    """Leaves it to open() to say what is wrong."""

    inspect: ClassVar[Inspect] = staticmethod(_inspect)
    read_box: ClassVar[ReadBox] = staticmethod(_read)

    def accepts(self, ref: SlideRef) -> bool:
        """Any slide."""
        return True


async def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    ref = SlideRef.of(tmp_path / "gone.svs")
    async with open_workers(Limits(worker_kind="inline")) as workers:
        with pytest.raises(CannotOpen, match=r"gone\.svs: cannot be opened \(No such file"):
            async with Careless().open(ref, workers):
                pass
