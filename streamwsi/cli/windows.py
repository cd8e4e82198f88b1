"""The sliding windows that the command line's options ask for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from streamwsi.samplers import SlidingWindow

__all__ = ["Padding", "corner", "sliding_window"]


class Padding(StrEnum):
    """Whether windows cover the level, or reach over its edge, and what lies there."""

    VALID = "valid"
    SAME = "same"
    SAME_REFLECT = "same-reflect"
    SHIFT = "shift"


_PADDINGS: dict[Padding | None, Literal["valid", "same", "shift"] | None] = {
    None: None,
    Padding.VALID: "valid",
    Padding.SAME: "same",
    Padding.SAME_REFLECT: "same",
    Padding.SHIFT: "shift",
}


def sliding_window(
    kernel_size: int, stride: int | None, padding: Padding | None, **settings: Any
) -> SlidingWindow:
    """The sampler.

    Args:
        kernel_size, stride, padding: the options.
        settings: further fields of the sampler.

    Raises:
        ConfigError: they make no sense, or not together.
    """
    from streamwsi.samplers.sliding_window import SlidingWindow

    return SlidingWindow(
        kernel_size=kernel_size,
        stride=stride,
        padding=_PADDINGS[padding],
        pad="reflect" if padding is Padding.SAME_REFLECT else "white",
        **settings,
    )


def corner(text: str) -> tuple[int, int]:
    """What ``--offset X,Y`` says.

    Raises:
        ConfigError: it is not two integers.
    """
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise ConfigError(f"--offset {text!r} is not X,Y, such as 16,0") from None
    return x, y
