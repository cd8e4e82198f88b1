"""PooledSource: a source made of two functions that run in the decode workers.

(The reader that schedules them is being written here.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy.typing as npt

from ..chunks import Damage
from ..geometry import Box
from ..slides import Slide, SlideRef

__all__ = ["PooledSource"]

Inspect = Callable[[SlideRef], Slide]
ReadBox = Callable[[SlideRef, int, Box, npt.NDArray[Any]], tuple[Damage, ...]]


@dataclass(frozen=True, slots=True)
class PooledSource:
    """Base of sources whose decoding blocks.

    A subclass is a frozen dataclass that sets two class variables to module-level functions,
    which run in worker processes, and defines `accepts`:

    ``inspect(ref)`` returns the `Slide`; raises `CannotOpen`.
    ``read_box(ref, level, box, out)`` fills ``out[:height, :width, :channels]`` with the
    pixels of a box of whole tiles (cut at the level's edges), and returns what of it is not
    valid; it keeps files open between calls, and raises `CannotRead` only where nothing of the
    slide can be read any more.
    """

    inspect: ClassVar[Inspect]
    read_box: ClassVar[ReadBox]
