"""Replicas: one model on several devices, each thread bound to one of them.

Batches go to whichever thread is free; the order is kept by who asks for them (see `base`).
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ..chunks import Batch
from ..values import ValueType
from .inference import Inference
from .models import named_module

__all__ = ["Replicas"]

_log = logging.getLogger(__name__)


class Replicas:
    """A model on each of several devices.

    Args:
        model: see `Inference`.
        devices: their names, the first one for the caller's own module.
        threads: batches at the same time for each device; None means what suits the first.
        settings: the other arguments of `Inference`.

    Attributes:
        config: what identifies the results, JSON-able.
        threads: how many threads compute at the same time, for all devices together.
        held: bytes of this machine's memory that the models take.

    Raises:
        ConfigError: the model or a device cannot be had.
    """

    def __init__(
        self, model: Any, devices: list[str], threads: int | None, **settings: Any
    ) -> None:
        self._all: list[Inference] = []
        if len(devices) > 1:
            model = named_module(model)  # each time it might be the same one
        try:
            for device in devices:
                own = copy.deepcopy(model) if self._all and isinstance(model, nn.Module) else model
                self._all.append(Inference(own, device=device, **settings))
        except BaseException:
            self.close()
            raise
        self.config: Mapping[str, Any] = self._all[0].config
        self.held = sum(inference.held for inference in self._all)
        self.threads = (threads or self._all[0].threads) * len(devices)
        self._entered = itertools.count()
        self._local = threading.local()

    def enter_thread(self) -> None:
        """To be called first in each thread that computes: binds it to a device."""
        inference = self._all[next(self._entered) % len(self._all)]
        inference.enter_thread(self.threads)
        self._local.inference = inference

    def compute(self, batch: Batch) -> npt.NDArray[Any]:
        """See `Inference.compute`; on the thread's device."""
        inference: Inference = self._local.inference
        return inference.compute(batch)

    def value_type(self, blank: Batch) -> ValueType:
        """See `Inference.value_type`; on the thread's device."""
        inference: Inference = self._local.inference
        value = inference.value_type(blank)
        for other in self._all:
            other.learn(inference)
        return value

    def window_bytes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """See `Inference.window_bytes`; on whichever device has seen such windows."""
        return max(inference.window_bytes(shape, dtype) for inference in self._all)

    def heap_bytes(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """See `Inference.heap_bytes`; of all threads."""
        return self.threads * max(inference.heap_bytes(shape, dtype) for inference in self._all)

    def close(self) -> None:
        """Put a module of the caller's back as it was, as far as its device still works: what was
        computed counts in any case."""
        for inference in self._all:
            try:
                inference.close()
            except RuntimeError as error:
                _log.warning("a model could not be put back as it was: %s", error)
