"""Processors: they turn batches of windows into values."""

from .base import BatchProcessor
from .function import FunctionProcessor, processor
from .together import Together
from .torch_module import TorchModule
from .transformed import Transformed

__all__ = [
    "BatchProcessor",
    "FunctionProcessor",
    "Together",
    "TorchModule",
    "Transformed",
    "processor",
]
