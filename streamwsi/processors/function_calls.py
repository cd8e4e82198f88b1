"""A user's function called on a batch: its errors translated, its values checked.

Where it is called in worker processes it goes there by its name, as `ByName`: a decorated
function stands in its module as a processor, so that pickle would not find the function. Its
pixels go as a `CopiedBatch`, for a `Batch` lends memory of this process.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..chunks import Batch, Pixels, Placement
from ..errors import (
    CannotProcess,
    ConfigError,
    ContractBroken,
    StreamwsiError,
    WorkerDied,
    first_line,
)
from ..functions import attribute
from ..workers import Workers
from .callables import as_array, name_of

__all__ = ["ByName", "Call", "CopiedBatch", "Function", "in_workers"]

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, eq=False)
class CopiedBatch:
    """What a function gets in a worker process: a batch that owns its pixels and pickles.

    Attributes:
        pixels: ``(n, height, width, channels)``.
        places: where the windows lie.
        valid: ``(n,)`` bool: whether all pixels of the window are valid.
    """

    pixels: Pixels
    places: tuple[Placement, ...]
    valid: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its errors translated and its values checked."""

    function: Function

    def compute(self, batch: Batch) -> Any:
        """Call it here."""
        try:
            values = self.function(batch)
        except (Exception, SystemExit) as error:
            raise self.failure(batch, error) from error
        return self.checked(batch, values)

    def failure(self, batch: Batch, error: BaseException) -> StreamwsiError:
        """The error that names the windows."""
        if isinstance(error, StreamwsiError) and not isinstance(error, WorkerDied):
            return error
        return CannotProcess(
            f"{name_of(self.function)} failed on {_windows(batch)}: "
            f"{type(error).__name__}: {first_line(error)}"
        )

    def checked(self, batch: Batch, values: Any) -> Any:
        """The values, tensors as arrays.

        Raises:
            ContractBroken: they are not one per window.
        """
        values = _plain(values)
        scalar = isinstance(values, np.ndarray) and not values.ndim
        count = len(values) if hasattr(values, "__len__") and not scalar else None
        if count != len(batch) or isinstance(values, str | bytes | Mapping):
            what = type(values).__qualname__ if count is None else f"{count} value(s)"
            raise ContractBroken(
                f"{name_of(self.function)} returned {what} for {_windows(batch)}; it must return "
                f"one value per window, {len(batch)} here"
            )
        return values


def _plain(values: Any) -> Any:
    array = as_array(values)
    return values if array is None else array


def _windows(batch: Batch) -> str:
    places = batch.places
    return f"windows {places.start} to {places.stop - 1} of {places.plan.slide.ref.uri}"


def in_workers(call: Call, workers: Workers) -> Callable[[Batch], Any]:
    """A blocking function that has the call made in a worker, for threads beside this loop.

    Raises:
        ConfigError: worker processes cannot import the function.
    """
    function: Any = call.function
    if workers.kind == "processes":
        function = ByName.of(call.function)
        if function is None:
            raise ConfigError(
                f"{name_of(call.function)} cannot run in worker processes: define it at the top "
                'level of an importable module, or choose where="thread"'
            )
    loop = asyncio.get_running_loop()

    def compute(batch: Batch) -> Any:
        copied = CopiedBatch(batch.pixels, tuple(batch.places), batch.valid)
        answer = asyncio.run_coroutine_threadsafe(workers.call(_called, function, copied), loop)
        try:
            values = answer.result()
        except Exception as error:
            raise call.failure(batch, error) from error
        return call.checked(batch, values)

    return compute


@dataclass(frozen=True, slots=True)
class ByName:
    """A function as its module and its name in it: decorated ones do not pickle otherwise."""

    module: str
    qualname: str

    @classmethod
    def of(cls, function: Function) -> ByName | None:
        """The name of a function; None where nobody else could import it."""
        name = cls(
            getattr(function, "__module__", None) or "", getattr(function, "__qualname__", "")
        )
        try:
            found = name.function() if name.module not in ("", "__main__") else None
        except (ImportError, AttributeError):
            found = None
        return name if found is function else None

    def function(self) -> Function:
        """The function; where a decorator made it a processor, the one in it."""
        found = attribute(self.module, self.qualname)
        plain = found if inspect.isroutine(found) else getattr(found, "function", found)
        return cast(Function, plain)


def _called(function: ByName | Function, batch: CopiedBatch) -> Any:
    """Call a function: runs in a worker."""
    if isinstance(function, ByName):
        function = function.function()
    return _plain(function(batch))
