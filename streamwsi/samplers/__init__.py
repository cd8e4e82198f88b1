"""Samplers: they decide which windows a slide gives, and cut them."""

from .sliding_window import SlidingWindow

__all__ = ["SlidingWindow"]
