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
    from streamwsi.samplers.masks import Mask
    from streamwsi.stages import Sampler

__all__ = ["Masking", "per_slide"]

_OUTLINES = (".geojson", ".json")


@dataclass(frozen=True, slots=True)
class Masking:
    """Which of a sampler's windows are kept.

    Attributes:
        tissue: ``auto``, ``none`` or a file's path.
        fraction: the share of a window that must be on it.
        roi: a file of outlines, or what was read from it.
    """

    tissue: str
    fraction: float
    roi: Path | FileMask | Mask | None

    def read(self) -> tuple[Masking, Mask | None]:
        """The same with its files read, once for all slides; and the tissue's mask.

        Raises:
            ConfigError: an option means nothing, or what it needs is not there.
        """
        from streamwsi.samplers.mask_files import FileMask
        from streamwsi.tissue import require_skimage

        roi = _outlines(self.roi).read() if isinstance(self.roi, Path) else self.roi
        if self.tissue == "auto":
            require_skimage()
        if self.tissue in ("auto", "none"):
            return replace(self, roi=roi), None
        path = Path(self.tissue)
        if not path.exists():
            raise ConfigError(
                f"--tissue {self.tissue!r} is none of auto, none and a file that exists"
            )
        return replace(self, roi=roi), FileMask(path).read()

    def of(self, sampler: Sampler, drawn: Mask | None) -> Sampler:
        """The sampler, kept to what is asked for."""
        from streamwsi.samplers.masked import Masked
        from streamwsi.samplers.tissue_mask import TissueMask

        if self.roi is not None and not isinstance(self.roi, Path):
            sampler = Masked(sampler, self.roi, self.fraction)
        mask = TissueMask() if self.tissue == "auto" else drawn
        return sampler if mask is None else Masked(sampler, mask, self.fraction)


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
        ConfigError: the options mean nothing, or what they need is not there, be it the
            command's or those of slides: the latter all at once.
    """
    from streamwsi.samplers.per_slide import PerSlide

    masking, drawn = masking.read()

    def sampler(roi: Path | None = None, **options: Any) -> Sampler:
        inner = make(**(options if {*options} & {*resolution} else {**resolution, **options}))
        return (masking if roi is None else replace(masking, roi=_own(roi))).of(inner, drawn)

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
