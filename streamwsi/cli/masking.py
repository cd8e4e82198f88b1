"""What ``--tissue`` and ``--roi`` mean: which of a sampler's windows are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from streamwsi.stages import Sampler

__all__ = ["masked"]

_OUTLINES = (".geojson", ".json")


def masked(sampler: Sampler, tissue: str, fraction: float, roi: Path | None) -> Sampler:
    """The sampler, kept to what the options ask for.

    Raises:
        ConfigError: the options mean nothing, or what they need is not there.
    """
    if tissue == "none" and roi is None:
        return sampler
    from streamwsi.samplers.mask_files import FileMask
    from streamwsi.samplers.masked import Masked
    from streamwsi.samplers.tissue_mask import TissueMask
    from streamwsi.tissue import require_skimage

    # Files are read here once, before any slide is opened: what is wrong with them is said once.
    if roi is not None:
        sampler = Masked(sampler, FileMask(_outlines(roi)).read(), fraction)
    if tissue == "auto":
        require_skimage()
        return Masked(sampler, TissueMask(), fraction)
    if tissue != "none":
        path = Path(tissue)
        if not path.exists():
            raise ConfigError(f"--tissue {tissue!r} is none of auto, none and a file that exists")
        sampler = Masked(sampler, FileMask(path).read(), fraction)
    return sampler


def _outlines(path: Path) -> Path:
    """The path, where it can be one of outlines.

    Raises:
        ConfigError: it is another kind of file.
    """
    if path.suffix.lower() not in _OUTLINES:
        raise ConfigError(f"--roi {path} is not a .geojson file; --tissue takes pictures")
    return path
