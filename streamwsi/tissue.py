"""Tissue on a picture of a slide: which pixels show stained tissue, and not glass.

The picture is a slide seen from afar, some 4 to 16 µm a pixel. The steps of `tissue_mask`:

1. *Optical density* by channel against the slide's own white (Beer-Lambert, as Ruifrok and
   Johnston, 2001, use it for stains), so that yellowish or dim glass does not count.
2. What a stain does to light is more than dust does: it has density and colour. The *signal*
   is the mean density plus the spread between the channels, without what is a pixel thin, and
   smoothed over a few pixels, since faint tissue differs from glass by its extent rather than
   by its contrast.
3. A *threshold*: the lower one of Otsu (1979), which parts two heaps, and the triangle method
   (Zack, Rogers and Latt, 1977), which finds the foot of a dominant one (glass), kept within
   bounds: faint tissue beside dense tissue is not lost to Otsu, and a slide that is full of
   tissue, or has none, is not split at random.
4. *Not tissue*: black borders and bubbles' rims (dark and colourless), and ink of markers
   (greens, which no common stain has; blues, reds and blacks purer or darker than stains are),
   where they are broad, with their soft edges.
5. *Shape*: opening removes hairs and specks, closing joins what belongs together, small holes
   are filled and small pieces dropped.

Limits: bright field only (the picture of a fluorescence slide is not understood); ink whose
colour is that of a stain, over tissue or beside it, counts as tissue; so do thick dust, folds
of the coverslip that are coloured, and control tissue; fat, being glass inside a net of thin
walls, is kept where its holes are small; tissue fainter than the glass is uneven is lost.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigError

__all__ = ["METHOD", "require_skimage", "tissue_mask"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Rgb = npt.NDArray[np.uint8]

METHOD = 1
"""Number of the method; another one may find another mask on the same picture."""

_SMOOTHING = 1.5
_LOWEST, _HIGHEST = 0.035, 0.12
_DARK, _COLOURLESS = 70, 30
_BROAD = 4
_SMALLEST = 2e-4
_HOLE = 1e-3


def tissue_mask(rgb: Rgb) -> Bools:
    """Where a picture shows stained tissue.

    Args:
        rgb: ``(height, width, 3)`` uint8.

    Returns:
        ``(height, width)``.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    filters, morphology = _skimage("filters"), _skimage("morphology")
    black, ink = _black(rgb), _ink(rgb)
    # Nuclei may be as dark and single pixels of any colour: ink and borders are broad.
    broad = morphology.opening(_padded(black | ink), morphology.disk(_BROAD))
    excluded = morphology.dilation(broad, morphology.disk(3))[_BROAD:-_BROAD, _BROAD:-_BROAD]
    signal = _signal(rgb, excluded)
    # Hairs and specks first: smoothed, they would be as broad as tissue.
    smooth = filters.median(signal, morphology.footprint_rectangle((3, 3)))
    smooth = filters.gaussian(smooth, _SMOOTHING, preserve_range=True)
    seen = smooth[~excluded]
    if not seen.size:
        return np.zeros(rgb.shape[:2], np.bool_)
    mask = smooth > _threshold(seen, filters)
    mask &= ~excluded
    mask = morphology.opening(mask, morphology.disk(1))
    mask = morphology.closing(mask, morphology.disk(3))
    mask = morphology.remove_small_objects(mask, max_size=int(_SMALLEST * mask.size))
    mask = morphology.remove_small_holes(mask, max_size=int(_HOLE * mask.size))
    cleaned: Bools = mask & ~excluded
    return cleaned


def require_skimage() -> None:
    """Say at once, not slide by slide, that scikit-image is not installed.

    Raises:
        ConfigError: it is not.
    """
    _skimage("filters")


def _padded(mask: Bools) -> Bools:
    """The mask with its edges going on outside, so that what touches them is as broad there."""
    return np.pad(mask, _BROAD, mode="edge")


def _skimage(part: str) -> Any:
    try:
        return import_module(f"skimage.{part}")
    except ImportError as error:
        raise ConfigError(
            'finding tissue needs scikit-image; install it with: pip install "streamwsi[tissue]"'
        ) from error


def _white(rgb: Rgb, excluded: Bools) -> Floats:
    """The glass's colour: per channel, the commonest among bright values.

    Pure white is what scanners put where they scanned nothing.
    """
    seen = rgb[~excluded & (rgb.min(axis=-1) < 255)]
    white = np.full(3, 245, np.float32)
    for channel in range(3):
        counts = np.bincount(seen[:, channel], minlength=256).astype(np.float64)
        counts = np.convolve(counts, np.ones(5), "same")
        bright = counts[200:]
        if bright.sum() > 0.02 * counts.sum():
            white[channel] = 200 + int(bright.argmax())
    return white


def _signal(rgb: Rgb, excluded: Bools) -> Floats:
    """Density plus colour, in units of optical density; ink and borders count as glass."""
    white = _white(rgb, excluded)
    table = -np.log10((np.arange(256, dtype=np.float32)[:, None] + 1) / (white + 1))
    density = np.stack([table[rgb[:, :, c], c] for c in range(3)], axis=-1).clip(0)
    signal: Floats = density.mean(axis=-1) + density.max(axis=-1) - density.min(axis=-1)
    signal[excluded] = 0
    return signal


def _threshold(seen: Floats, filters: Any) -> float:
    bounded = seen.clip(0, 1)
    if float(bounded.max()) - float(bounded.min()) < 1e-6:
        return _HIGHEST
    lower = min(filters.threshold_otsu(bounded), filters.threshold_triangle(bounded))
    return float(np.clip(lower, _LOWEST, _HIGHEST))


def _black(rgb: Rgb) -> Bools:
    """Dark and colourless: the scanner's border, rims of bubbles, black ink."""
    highest, lowest = rgb.max(axis=-1), rgb.min(axis=-1)
    dark: Bools = (highest < _DARK) & (highest - lowest < _COLOURLESS)
    return dark


def _ink(rgb: Rgb) -> Bools:
    """Colours of markers that stains do not have."""
    red, green, blue = (rgb[:, :, c].astype(np.int16) for c in range(3))
    greens = (green > red + 20) & (green > blue - 10) & (red < 190)
    blues = (blue > red + 80) & (green > red + 10) & (red < 130)
    reds = (red > green + 110) & (red > blue + 90) & (green < 100)
    found: Bools = greens | blues | reds
    return found
