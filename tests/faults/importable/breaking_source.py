"""A source whose decoding kills its worker, or hangs in it, at scripted places.

It has a module of its own, because worker processes must be able to import it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from streamwsi.chunks import Damage
from streamwsi.geometry import Box
from streamwsi.slides import SlideRef
from streamwsi.sources.base import Inspect, PooledSource, ReadBox
from streamwsi.sources.tiff import inspect_tiff, read_tiff

__all__ = ["BreakingSource", "script"]


def script(slide: Path, **faults: tuple[int, int]) -> None:
    """Say what happens to jobs that read the pixel ``(x, y)`` of a slide.

    ``die`` kills the worker, ``die_once`` does so the first time, ``hang`` never ends.
    """
    _script(str(slide)).write_text(json.dumps(faults))


def _script(uri: str) -> Path:
    return Path(f"{uri}.faults.json")


def _read(ref: SlideRef, level: int, box: Box, out: npt.NDArray[Any]) -> tuple[Damage, ...]:
    path = _script(ref.uri)
    for kind, (x, y) in json.loads(path.read_text()).items() if path.exists() else ():
        if box.contains(Box(x, y, 1, 1)):
            _break(kind, Path(f"{ref.uri}.{kind}"))
    return read_tiff(ref, level, box, out)


def _break(kind: str, marker: Path) -> None:
    first = not marker.exists()
    marker.touch()
    if kind == "hang":
        time.sleep(1000)
    elif kind == "die" or first:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class BreakingSource(PooledSource):
    """TIFF slides, with what `script` says about them."""

    inspect: ClassVar[Inspect] = staticmethod(inspect_tiff)
    read_box: ClassVar[ReadBox] = staticmethod(_read)

    def accepts(self, ref: SlideRef) -> bool:
        """Any slide."""
        return True
