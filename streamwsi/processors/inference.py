"""A loaded model at work: batches in, arrays out.

`Inference.compute` runs in several threads at the same time (see `torch_module`); each call has
an input buffer to itself, and on a GPU each thread a stream. `output_values` makes arrays of what
the model returns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..chunks import Batch
from ..errors import CannotProcess, ConfigError, StreamwsiError, first_line
from ..heaps import KeptHeap
from ..limits import cores
from ..values import ValueType
from .activations import PeakOfTensors
from .device_chunks import DeviceChunks
from .model_inputs import InputBuffer
from .model_outputs import Choice
from .models import LoadedModel, compiled_model, load_model
from .output_values import OutputValues

__all__ = ["Inference", "Precision", "device_for"]

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


_MOST_ON_CPU = 16
"""Windows per call of the model on a CPU, where several threads call it side by side: their
inputs share a cache, and with 32 windows of 256×256 each, two threads took a fifth longer. Fewer
are worse for a model of few, small 1×1 convolutions: below 16 torch leaves those to a road that
is several times slower than oneDNN's.
"""

_ACTIVATIONS = 32 << 20
_FEWEST_ON_CPU = 2
"""A model whose activations are not kept by malloc for as many windows (`KeptHeap`) is called with
as many as take this (bytes), near the caches; and with two at least, for with a single one some
drop an axis. Windows a second on two cores, with 16 and with that many: a small U-Net 84 and 165
at 256×256, 15 and 30 at 512×512; a stack of bottlenecks at 224×224 67 and 82; ResNet-18 alike.
"""


_COPIES_OF_VALUES = 2
"""Each call's, and those of the batch, which they are joined to."""


def device_for(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` stands for here.

    Raises:
        ConfigError: this machine has no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name}: no CUDA GPU can be used here; choose cpu or auto")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name}: there is no such GPU; they are numbered 0 to "
            f"{torch.cuda.device_count() - 1}"
        )
    return torch.device("cuda", index)


class Inference:
    """A model on its device, with its input buffer.

    Args:
        model: what `load_model` takes.
        batch_size: windows a batch holds; on a CPU the model is called for parts of it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        mean: see `InputBuffer`.
        std: see `InputBuffer`.
        channel_names: what the output's channels are called; None takes the model's own word.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for torch's autocast.
        compiled: whether ``torch.compile`` translates the model first.
        output: which of the model's outputs is taken, or are, where it returns several.

    Attributes:
        config: what identifies the results, JSON-able.

    Raises:
        ConfigError: the model cannot be loaded, or takes only batches of another size.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        device: str,
        mean: tuple[float, ...] | None,
        std: tuple[float, ...] | None,
        channel_names: tuple[str, ...] | None,
        precision: Precision = "fp32",
        compiled: bool = False,
        output: Choice | tuple[Choice, ...] | None = None,
    ) -> None:
        self._device = device_for(device)
        self._model: LoadedModel = load_model(model, self._device)
        self._chunks = None if self._device.type == "cpu" else DeviceChunks(self._device)
        self._autocast = _AUTOCAST[precision]
        if self._model.batch not in (None, batch_size):
            raise ConfigError(
                f"the model was exported for batches of exactly {self._model.batch}: set "
                "batch_size to that, or export it with a dynamic batch dimension"
            )
        self._batch_size = batch_size
        on_cpu = self._device.type == "cpu" and self._model.batch is None
        self._most = min(batch_size, _MOST_ON_CPU) if on_cpu else batch_size
        # A model that is compiled or exported for one size keeps that.
        self._adapts = on_cpu and not compiled
        # What is measured is the plain model: torch's counting and its compiler exclude each other.
        self._plain = self._model
        if compiled:
            self._model = compiled_model(self._model, self._most)
        self._mean, self._std = mean, std
        names = self._model.channel_names if channel_names is None else channel_names
        # A module's own names are those of one of its outputs, and nobody knows which.
        strict = channel_names is not None or output is None
        self._values = OutputValues(output, names, strict)
        self._buffers: list[InputBuffer] = []
        self._intra_op = torch.get_num_threads()
        #: Bytes of activations and of the value, per window, for windows seen by `value_type`.
        self._measured: dict[tuple[tuple[int, ...], np.dtype[Any]], tuple[int, int]] = {}
        #: Bytes of this machine's memory that the model takes.
        self.held = self._model.nbytes if self._device.type == "cpu" else 0
        config: dict[str, Any] = {
            "model": self._model.description,
            "batch_size": batch_size,
            "mean": None if mean is None else [*mean],
            "std": None if std is None else [*std],
            # The same network gives other last digits on another kind of device.
            "device": self._device.type,
            "precision": precision,
            "compiled": compiled,
            "channels": None if names is None else [*names],
        }
        self.config: Mapping[str, Any] = config
        if isinstance(output, tuple):
            self.config = {"outputs": {str(one): {**config, "output": one} for one in output}}
        elif output is not None:
            self.config = {**config, "output": output}
        if self._device.type == "cuda":
            # Threads have streams of their own, and take weights as they are.
            torch.cuda.synchronize(self._device)

    @property
    def threads(self) -> int:
        """How many batches are best computed at the same time on this device."""
        return cores() if self._device.type == "cpu" else 2

    def enter_thread(self, at_once: int) -> None:
        """To be called first in each thread that computes, with the number of these threads."""
        if self._device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
        if at_once > 1:
            # On a GPU too: gathering pixels with all cores would take them from decoding.
            # Asked first, for a thread's first operation takes over what another one has set.
            torch.get_num_threads()
            torch.set_num_threads(1)

    def compute(self, batch: Batch) -> npt.NDArray[Any]:
        """The model's output for a batch, ``(n, channels)`` or ``(n, channels, h, w)``; records
        of several.

        Raises:
            CannotProcess: the model failed, or returned something unusable.
            ConfigError: it returned several outputs, and which to take was not said, or wrongly.
        """
        with torch.inference_mode(), self._precision():
            size = self._at_once(batch.shape[1:], batch.dtype)
            values = [self._call(part, self._model) for part in batch.cuts(size)]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def value_type(self, blank: Batch) -> ValueType:
        """What the model gives per window; what it takes for that is remembered.

        Raises:
            CannotProcess: as `compute`.
        """
        tensors = PeakOfTensors()
        with torch.inference_mode(), self._precision():
            values = self._call(blank, self._plain, tensors)
        value = ValueType(values.shape[1:], values.dtype)
        # On a GPU the tensors lie over there.
        rows = max(len(blank), self._plain.batch or 1)
        activations = tensors.peak // rows if self._device.type == "cpu" else 0
        key = blank.shape[1:], blank.dtype
        if len(blank) > 1 or key not in self._measured:
            # Slides of a single window do not tell as well what a window takes.
            self._measured[key] = activations, value.nbytes
        self._buffers.clear()  # they are for as many windows as were called before
        return value

    def learn(self, other: Inference) -> None:
        """Call the model as a replica on the same kind of device does: results must not depend on
        which of them is given a batch."""
        if self._device.type == other._device.type:
            self._measured.update(other._measured)

    def _at_once(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Windows of that shape and dtype per call of the model."""
        activations, _ = self._measured.get((shape, np.dtype(dtype)), (0, 0))
        if not self._adapts or activations * self._most <= KeptHeap.thread_bytes:
            return self._most
        return min(self._most, max(_FEWEST_ON_CPU, _ACTIVATIONS // activations))

    def _precision(self) -> AbstractContextManager[None]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._autocast)

    def _call(
        self,
        batch: Batch,
        model: LoadedModel,
        watch: AbstractContextManager[Any] = nullcontext(),  # noqa: B008  it has no state
    ) -> npt.NDArray[Any]:
        buffer = self._input(batch)
        images = buffer.fill(batch, model.batch or 1)
        try:
            with watch:
                output = model.call(images)
            return self._values.of(output, len(batch), tuple(images.shape))
        except StreamwsiError:
            raise
        except (Exception, SystemExit) as error:
            raise CannotProcess(_failure(error, images.shape)) from error
        finally:
            if self._device.type == "cuda":
                # After an error the buffer may still be in use; else this waits for nothing.
                with contextlib.suppress(RuntimeError):
                    torch.cuda.current_stream(self._device).synchronize()
            self._buffers.append(buffer)

    def window_bytes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Bytes of this machine's memory that a batch takes per window: the input and what the
        model makes of it, for the windows of one call, and the values of all."""
        # On a GPU the floats lie over there, and the raw pixels here.
        each = math.prod(shape) * (4 if self._device.type == "cpu" else dtype.itemsize)
        activations, value = self._measured.get((shape, np.dtype(dtype)), (0, 0))
        each += activations
        at_once = self._at_once(shape, dtype)
        return -(-each * at_once // self._batch_size) + _COPIES_OF_VALUES * value

    def heap_bytes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Bytes that each thread should keep between its calls (`KeptHeap`)."""
        activations, _ = self._measured.get((shape, np.dtype(dtype)), (0, 0))
        return min(KeptHeap.thread_bytes, activations * self._at_once(shape, dtype))

    def close(self) -> None:
        """Put a module of the caller's back as it was, and torch's number of threads."""
        torch.set_num_threads(self._intra_op)
        self._model.close()

    def _input(self, batch: Batch) -> InputBuffer:
        """A buffer for windows like these: one that is free, for all slides tend to agree."""
        with contextlib.suppress(IndexError):
            buffer = self._buffers.pop()
            if buffer.takes(batch):
                return buffer
            # Windows have changed: give the others' memory back before allocating again.
            del buffer
            self._buffers.clear()
        on_gpu = self._device.type != "cpu"
        capacity = max(len(batch), self._at_once(batch.shape[1:], batch.dtype))
        return InputBuffer(
            batch, capacity, self._device, self._mean, self._std, on_gpu, self._chunks
        )


def _failure(error: BaseException, shape: tuple[int, ...]) -> str:
    text = f"the model failed on input of shape {tuple(shape)}: {first_line(error)}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return f"{text}; a smaller --batch-size takes less memory"
    return text
