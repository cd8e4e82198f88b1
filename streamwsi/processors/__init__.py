"""Processors: they turn batches of windows into values."""

from .base import BatchProcessor
from .torch_module import TorchModule

__all__ = ["BatchProcessor", "TorchModule"]
