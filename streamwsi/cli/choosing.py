"""Which windows the command line asks for: ``--tissue``, ``--roi``, and a list's columns.

What a list says of a slide takes the place of the command's options for it, and gives the same
sampler that the options would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from streamwsi.manifests import Listed
    from streamwsi.samplers.mask_files import FileMask
    from streamwsi.samplers.masks import Mask, MaskSource
    from streamwsi.stages import Sampler

__all__ = ["Masking", "per_slide"]

_OUTLINES = (".geojson", ".json")


@dataclass(frozen=True, slots=True)
class Masking:
    """Which of a sampler's windows are kept.

    Attributes:
        fraction: the share of a window that must be on each mask.
        roi: regions of interest, where there are any.
        tissue: the tissue, where it is asked for.
    """

    fraction: float
    roi: Mask | MaskSource | None = None
    tissue: Mask | MaskSource | None = None

    @classmethod
    def read(cls, tissue: str, fraction: float, roi: Path | None) -> Masking:
        """What the options mean, their files read: once, whatever the number of slides.

        Args:
            tissue: ``auto``, ``none`` or a file's path.
            fraction: the share of a window that must be on a mask.
            roi: a file of outlines.

        Raises:
            ConfigError: an option means nothing, or what it needs is not there.
        """
        return cls(fraction, None if roi is None else _outlines(roi).read(), _tissue(tissue))

    def of(self, sampler: Sampler) -> Sampler:
        """The sampler, kept to what is asked for."""
        masks = [mask for mask in (self.roi, self.tissue) if mask is not None]
        if masks:
            from streamwsi.samplers.masked import Masked

            for mask in masks:
                sampler = Masked(sampler, mask, self.fraction)
        return sampler


def _tissue(option: str) -> Mask | MaskSource | None:
    if option == "none":
        return None
    if option == "auto":
        from streamwsi.samplers.tissue_mask import TissueMask
        from streamwsi.tissue import require_skimage

        require_skimage()
        return TissueMask()
    path = Path(option)
    if not path.exists():
        raise ConfigError(f"--tissue {option!r} is none of auto, none and a file that exists")
    from streamwsi.samplers.mask_files import FileMask

    return FileMask(path).read()


def per_slide(
    slides: Iterable[Listed],
    make: Callable[..., Sampler],
    resolution: Mapping[str, Any],
    masking: Masking,
) -> Sampler:
    """The sampler for all slides.

    Args:
        slides: with what lists say about them.
        make: the sampler of a resolution, and of an ``assume_mpp`` other than the command's.
        resolution: the command's ``level``, ``mpp`` and ``power``.
        masking: the command's.

    Raises:
        ConfigError: the options of slides mean nothing, or what they need is not there: all of
            them at once; or the command's resolution means nothing.
    """
    from streamwsi.samplers.per_slide import PerSlide

    def sampler(roi: Path | None = None, **options: Any) -> Sampler:
        inner = make(**(options if {*options} & {*resolution} else {**resolution, **options}))
        return (masking if roi is None else replace(masking, roi=_own(roi))).of(inner)

    chosen = PerSlide.of(slides, sampler)
    return chosen if chosen.samplers else chosen.default


def _own(roi: Path) -> FileMask:
    """A slide's outlines: looked at now, so that all mistakes are told before the run, and read
    again in its lane, so that memory does not grow with the list.
    """
    mask = _outlines(roi)
    mask.read()
    return mask


def _outlines(path: Path) -> FileMask:
    """The file, where it can be one of outlines.

    Raises:
        ConfigError: it is another kind of file.
    """
    from streamwsi.samplers.mask_files import FileMask

    if path.suffix.lower() not in _OUTLINES:
        raise ConfigError(f"the roi {path} is not a .geojson file; --tissue takes pictures")
    return FileMask(path)
