"""What a model returned, checked and as arrays of this machine's memory.

It is checked before it goes on: a sink is sized by its first batch, and a model that returns
something else later would be found out only after hours. Results are copied out of the model's
memory, which it may use again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CannotProcess, ConfigError
from .model_outputs import Choice, chosen, records, undecided

__all__ = ["OutputValues"]

_EXPECTED = "expected is one tensor, N×C (a vector per window) or N×C×h×w (a map per window)"


class OutputValues:
    """The values that a model gives, batch after batch.

    Args:
        output: which of the model's outputs is taken, or are; None where it returns one tensor.
        names: what the channels are called.
        strict: whether an output must have so many channels.
    """

    def __init__(
        self,
        output: Choice | tuple[Choice, ...] | None,
        names: tuple[str, ...] | None,
        strict: bool,
    ) -> None:
        self._output = output
        self._names = names
        self._strict = strict
        self._shapes: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}

    def of(self, output: object, n: int, taken: tuple[int, ...]) -> npt.NDArray[Any]:
        """The values of `n` windows, ``(n, channels)`` or ``(n, channels, h, w)``; records of
        several outputs.

        Args:
            output: what the model returned.
            n: how many of its windows count.
            taken: the shape of its input.

        Raises:
            CannotProcess: it is not usable.
            ConfigError: there are several outputs, and which to take was not said, or wrongly.
        """
        several = self._output if isinstance(self._output, tuple) else (self._output,)
        if self._output is None and (error := undecided(output)) is not None:
            raise error
        arrays = {
            str(choice): self._array(
                str(choice), output if choice is None else chosen(output, choice), n, taken
            )
            for choice in several
        }
        self._check_names(arrays)
        return records(arrays) if isinstance(self._output, tuple) else arrays[str(self._output)]

    def _check_names(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        found = [array.shape[1] for array in arrays.values()]
        if self._names is not None and self._strict and len(self._names) not in found:
            raise ConfigError(
                f"the model returned {' and '.join(map(str, found))} channel(s), but there are "
                f"{len(self._names)} channel names: {', '.join(self._names)}"
            )

    def _array(
        self, name: str, output: object, n: int, taken: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        if not isinstance(output, Tensor):
            raise CannotProcess(f"the model returned a {type(output).__qualname__}; {_EXPECTED}")
        shape = tuple(output.shape)
        if len(shape) not in (1, 2, 4) or shape[0] != taken[0] or 0 in shape:
            raise CannotProcess(
                f"the model returned a tensor of shape {shape} for input of shape "
                f"{tuple(taken)}; {_EXPECTED}"
            )
        if output.is_complex():
            raise CannotProcess(f"the model returned complex numbers ({output.dtype}); {_EXPECTED}")
        each = shape[1:] or (1,)
        key = name, tuple(taken[1:])
        if each != self._shapes.setdefault(key, each):
            before = self._shapes[key]
            raise CannotProcess(
                f"the model returned {each} per window and {before} for earlier windows of the "
                "same size; every batch must give the same"
            )
        values = np.empty((n, *each), np.float32)
        # For a model on the GPU this waits until it has computed.
        torch.from_numpy(values).copy_(output[:n].reshape(values.shape))
        return values
