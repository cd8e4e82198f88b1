"""Which halos, strides and alignments go together, so that windows can be merged exactly.

A padded convolutional model is right about a pixel of a window if all that the pixel's output
depends on lies in the window, or beyond the level's edge, where the model pads the level as it
pads the window. With windows ``kernel - 2 · halo`` apart every pixel lies a halo deep in some
window, the level's edges counting as infinitely far.

Outputs coarser than pixels are right under the same condition where windows begin at multiples
of the alignment, and the halo is such a multiple as well: then no cell is cut in two.
"""

from __future__ import annotations

from ..boxes import Size
from ..errors import ConfigError

__all__ = ["check_halo", "check_shift", "inner"]


def inner(kernel: Size, halo: Size) -> Size:
    """What is left of a window without its halo."""
    return Size(kernel.width - 2 * halo.width, kernel.height - 2 * halo.height)


def check_halo(kernel: Size, halo: Size, stride: object, padding: str | None) -> None:
    """Check a halo against the other settings of a sampler.

    Raises:
        ConfigError: there is a stride too, or a padding other than shift, or the halo is not
            from 0 to below half of the kernel size.
    """
    if stride is not None:
        raise ConfigError(
            f"halo and stride exclude each other: a halo of {halo} sets the stride to the kernel "
            f"size less twice the halo, {inner(kernel, halo)}"
        )
    if padding not in (None, "shift"):
        raise ConfigError(
            f"a halo goes with padding shift only, not with {padding!r}; leave out the padding"
        )
    if min(halo) < 0:
        raise ConfigError(f"halo {halo} must be at least 0 in both axes")
    if min(inner(kernel, halo)) < 1 <= min(kernel):
        raise ConfigError(
            f"a halo of {halo} leaves nothing of windows of {kernel}: choose a kernel size above "
            f"{2 * halo.width}×{2 * halo.height}"
        )


def check_shift(
    kernel: Size, stride: Size, halo: Size | None, offset: tuple[int, int], align: int
) -> None:
    """Check the settings of a sampler with padding shift.

    Raises:
        ConfigError: the windows would not cover the level, or not lie at multiples of `align`.
    """
    if any(offset):
        raise ConfigError(
            f"with padding shift windows begin at the level's corner; leave out the offset {offset}"
        )
    if align < 1:
        raise ConfigError(f"align must be at least 1, not {align}")
    settings = {"kernel size": kernel, **({"stride": stride} if halo is None else {"halo": halo})}
    for name, value in settings.items():
        for length in value:
            if length % align:
                below = length // align * align
                near = f"{below} or {below + align}" if below else f"{align}"
                raise ConfigError(
                    f"{name} {value} is not a multiple of align, {align}; the nearest is {near}"
                )
    if stride.width > kernel.width or stride.height > kernel.height:
        raise ConfigError(
            f"windows of {kernel} that lie {stride} apart do not cover the level, as padding "
            "shift promises; choose a stride that is at most the kernel size"
        )
