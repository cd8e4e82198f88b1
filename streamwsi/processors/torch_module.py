"""TorchModule: a PyTorch model as a processor.

This module holds the configuration only and imports no torch: listing stages, checking a
pipeline and starting workers stay quick. The model is loaded in a thread when the processor
is opened, by `models`; `inference` runs it, `model_inputs` prepares what it is given.

Results do not depend on timing: batches come with fixed boundaries, and every batch goes
through the same code in one thread. On a CPU as many batches are computed at the same time as
there are cores, each by one thread of torch's own. That beats several threads for one batch:
nothing waits for the slowest of them between two operations, and no OpenMP thread spins on a
core that decoding could use (a small slide took up to twice as long that way). On a GPU two
batches are in flight: while one is computed, the other's pixels cross the bus.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..heaps import KeptHeap
from ..workers import Workers
from .base import RunningBatchProcessor
from .model_outputs import Choice, checked_choice

if TYPE_CHECKING:
    from torch import nn

    from .inference import Precision
    from .replicas import Replicas

__all__ = ["TorchModule"]

_DEVICE = re.compile(r"auto|cpu(,cpu)*|cuda(:\d+)?(,cuda(:\d+)?)*")


@dataclass(frozen=True, slots=True)
class TorchModule:
    """A PyTorch model, called on batches of windows.

    The model is given float32 ``(n, channels, height, width)`` in channels_last memory order:
    uint8 divided by 255, uint16 by 65535, float as it is, then ``(x - mean) / std``. It
    returns one tensor, or several of which `output` chooses: ``(n, channels)``, a vector per
    window; ``(n, channels, h, w)``, a small map per window; or ``(n,)``, taken as one channel.
    Numbers become float32; windows with damaged pixels become NaN.

    Attributes:
        model: an ``nn.Module``; ``"hematoxylin"``; ``"package.module:name"``, an ``nn.Module``
            or a function that returns one; or the path of a TorchScript file or a
            ``torch.export`` archive. A module of the caller's is moved to the device and put
            into evaluation mode while the processor is open, and back afterwards. A program that
            was exported with a fixed batch dimension needs that `batch_size`; its last batch is
            filled up with zeros that are dropped again.
        batch_size: windows a batch; on a CPU the model gets at most 16 of them at a time, and
            fewer (2 at least) where its activations would take more than 63 MiB.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or
            several, each with a replica of the model: ``"cuda:0,cuda:1"``.
        mean: subtracted per channel.
        std: what the difference is divided by, per channel.
        channel_names: what the output's channels are called; a module's own attribute of that
            name is taken where this is None.
        threads: batches that are computed at the same time; None means one per core on a CPU
            and two on a GPU, for each device. A module that changes its own state in ``forward``
            needs 1.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for torch's autocast. What fp32 is on a
            GPU is torch's to say: convolutions round their factors to TF32 unless
            ``torch.backends.cudnn.allow_tf32`` is False.
        compile: whether ``torch.compile`` translates the model first: a minute or more that pays
            on long runs.
        output: of a model that returns a dict or a tuple, the name or the number of the output
            to take; or several of them, for sinks in `streamwsi.sinks.Select`. Channel names are
            then those of the outputs that have as many channels.

    Raises:
        ConfigError: a setting makes no sense.
    """

    model: nn.Module | str | Path
    _: KW_ONLY
    batch_size: int = 32
    device: str = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_names: tuple[str, ...] | None = None
    threads: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    output: Choice | tuple[Choice, ...] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(
                "device must be auto, cpu, cuda, cuda:i or several GPUs joined by commas, not "
                f"{self.device!r}"
            )
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"precision must be fp32, bf16 or fp16, not {self.precision!r}")
        for name in ("mean", "std"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, _numbers(name, values))
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        if self.std is not None and 0 in self.std:
            raise ConfigError("std must not be zero")
        if self.model == "hematoxylin" and (self.mean or self.std):
            raise ConfigError("hematoxylin measures plain intensities; leave out mean and std")
        object.__setattr__(self, "output", checked_choice(self.output))
        if self.channel_names is not None:
            object.__setattr__(self, "channel_names", tuple(self.channel_names))

    @asynccontextmanager
    async def open(
        self, workers: Workers
    ) -> AsyncIterator[RunningBatchProcessor[npt.NDArray[Any]]]:
        """The model, loaded and on its device.

        Raises:
            ConfigError: on entering, where the model or the device cannot be had.
        """
        replicas = await anyio.to_thread.run_sync(self._load)
        threads = ThreadPoolExecutor(replicas.threads, "streamwsi-model", replicas.enter_thread)
        try:
            with KeptHeap() as heap, threads:

                def rest(shape: tuple[int, ...], dtype: np.dtype[Any], room: int) -> int:
                    wanted = replicas.heap_bytes(shape, dtype)
                    if not 0 < wanted <= room:
                        return 0
                    heap.begin()
                    return wanted

                yield RunningBatchProcessor(
                    replicas.compute,
                    self.batch_size,
                    replicas.config,
                    threads,
                    replicas.threads,
                    replicas.window_bytes,
                    replicas.held,
                    replicas.value_type,
                    rest,
                )
        finally:
            replicas.close()

    def _load(self) -> Replicas:
        from .replicas import Replicas

        return Replicas(
            self.model,
            self.device.split(","),
            self.threads,
            batch_size=self.batch_size,
            mean=self.mean,
            std=self.std,
            channel_names=self.channel_names,
            precision=self.precision,
            compiled=self.compile,
            output=self.output,
        )


def _numbers(name: str, values: object) -> tuple[float, ...]:
    """A tuple of finite numbers; TOML and the command line give lists."""
    try:
        numbers = tuple(float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{name} must be numbers, one per channel, not {values!r}")
    return numbers
