"""Processors: they turn batches of windows into values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_imports import loaded_on_use
from .base import BatchProcessor
from .function import FunctionProcessor, processor
from .together import Together
from .torch_module import TorchModule
from .transformed import Transformed

if TYPE_CHECKING:
    from .receptive_fields import ReceptiveField, receptive_field

__all__ = [
    "BatchProcessor",
    "FunctionProcessor",
    "ReceptiveField",
    "Together",
    "TorchModule",
    "Transformed",
    "processor",
    "receptive_field",
]

# What imports torch.
__getattr__ = loaded_on_use(
    __name__, dict.fromkeys(("ReceptiveField", "receptive_field"), "receptive_fields")
)
