"""Tissue on a picture of a slide: which pixels show stained tissue, and not glass.

The picture is a slide seen from afar, some 1 to 16 µm a pixel. The steps of `tissue_mask`:

1. *Not tissue*: black borders, bubbles' rims (dark and colourless) and ink of markers (greens,
   which no common stain has; blues, reds and blacks purer or darker than stains are), where they
   are broad, with their soft edges; of a border also the colourless shadow beside it.
2. *Optical density* by channel against the slide's own white (Beer-Lambert, as Ruifrok and
   Johnston, 2001, use it for stains), so that yellowish or dim glass does not count; nor does
   light that falls off towards the edges, where glass is seen on most of the slide.
3. What a stain does to light is more than dust does: it has density and colour. The *signal*
   is the mean density plus the spread between the channels, without what is a pixel thin, and
   smoothed over a few pixels, since faint tissue differs from glass by its extent rather than
   by its contrast.
4. A *threshold*: the lowest of Otsu's (1979), which parts two heaps, the triangle method's
   (Zack, Rogers and Latt, 1977), which finds the foot of a dominant one, and what the noise of
   the glass does not reach, kept within bounds: faint tissue beside dense tissue is not lost, and
   a slide that is full of tissue, or has none, is not split at random.
5. *Shape*: opening removes specks; thin lines without colour (hairs, the coverslip's edge) are
   left out; closing joins what belongs together, small holes are filled and small pieces dropped.

Limits: bright field only (the picture of a fluorescence slide is not understood); ink whose
colour is that of a stain (purple, orange), or that lets much light through, counts as tissue, and
tissue under opaque ink does not; so do thick dust, smears and folds of the coverslip that are
coloured, and control tissue; tissue as grey as dust is lost where it is thin; fat, being glass
inside a net of thin walls, is kept where its holes are small; tissue fainter than the glass is
uneven is lost.
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

METHOD = 2
"""Number of the method; another one may find another mask on the same picture."""

_SMOOTHING = 1.5
_LOWEST, _HIGHEST = 0.02, 0.12
_SIGMAS = 6
_NO_COLOUR, _UNEVEN = 0.03, 0.008
_SAMPLES, _FITS = 20_000, 8
_DARK, _COLOURLESS = 70, 30
_BRIGHT, _FADES = 200, 20
_BROAD = 4
_TINGED = 0.25
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
    morphology = _skimage("morphology")
    excluded = _not_tissue(rgb, morphology)
    if excluded.all():
        return np.zeros(rgb.shape[:2], np.bool_)
    scanned = ~excluded & (_extremes(rgb)[0] < 255)
    density = _flattened(_density(rgb, excluded), scanned)
    return _found(density, excluded, morphology)


def _found(density: Floats, excluded: Bools, morphology: Any) -> Bools:
    """Where the density is one of tissue, in shapes that tissue has."""
    filters = _skimage("filters")
    # Hairs and specks first: smoothed, they would be as broad as tissue.
    smooth = filters.median(_signal(density, excluded), morphology.footprint_rectangle((3, 3)))
    smooth = filters.gaussian(smooth, _SMOOTHING, preserve_range=True)
    mask = smooth > _threshold(smooth[~excluded], filters)
    mask &= ~excluded
    mask = morphology.opening(mask, morphology.disk(1))
    mask &= ~_lines(mask, density, morphology)
    mask = morphology.closing(mask, morphology.disk(3))
    mask = morphology.remove_small_objects(mask, max_size=int(_SMALLEST * mask.size))
    mask = morphology.remove_small_holes(mask, max_size=int(_HOLE * mask.size))
    cleaned: Bools = mask & ~excluded
    return cleaned


def _lines(mask: Bools, density: Floats, morphology: Any) -> Bools:
    """Thin parts of the mask without colour: hairs, the coverslip's edge, rims of bubbles."""
    measure = _skimage("measure")
    broad = _opened(mask, _BROAD, morphology)
    labels = measure.label(mask & ~morphology.dilation(broad, morphology.disk(_BROAD)))
    flat = labels.ravel()
    colours = np.bincount(flat, _spread(density).ravel())
    densities = np.bincount(flat, _mean(density).ravel())
    colourless = colours < _TINGED * densities
    colourless[0] = False
    lines: Bools = colourless[labels]
    return lines


def require_skimage() -> None:
    """Say at once, not slide by slide, that scikit-image is not installed.

    Raises:
        ConfigError: it is not.
    """
    _skimage("filters")


def _skimage(part: str) -> Any:
    try:
        return import_module(f"skimage.{part}")
    except ImportError as error:
        raise ConfigError(
            'finding tissue needs scikit-image; install it with: pip install "streamwsi[tissue]"'
        ) from error


# numpy's own reductions of an axis of three take ten times as long as these.


def _extremes(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The lowest and the highest of each pixel's three channels."""
    red, green, blue = (pixels[:, :, channel] for channel in range(3))
    return (
        np.minimum(np.minimum(red, green), blue),
        np.maximum(np.maximum(red, green), blue),
    )


def _spread(density: Floats) -> Floats:
    lowest, highest = _extremes(density)
    spread: Floats = highest - lowest
    return spread


def _mean(density: Floats) -> Floats:
    mean: Floats = (density[:, :, 0] + density[:, :, 1] + density[:, :, 2]) / np.float32(3)
    return mean


def _white(rgb: Rgb, excluded: Bools) -> Floats:
    """The glass's colour: per channel, the commonest among bright values.

    Pure white is what scanners put where they scanned nothing.
    """
    seen = rgb[~excluded & (_extremes(rgb)[0] < 255)]
    white = np.full(3, 245, np.float32)
    for channel in range(3):
        counts = np.bincount(seen[:, channel], minlength=256).astype(np.float64)
        counts = np.convolve(counts, np.ones(5), "same")
        bright = counts[200:]
        if bright.sum() > 0.02 * counts.sum():
            white[channel] = 200 + int(bright.argmax())
    return white


def _density(rgb: Rgb, excluded: Bools) -> Floats:
    """Optical density by channel, against the glass; a little below 0 where it is brighter."""
    white = _white(rgb, excluded)
    table = -np.log10((np.arange(256, dtype=np.float32)[:, None] + 1) / (white + 1))
    return np.stack([table[rgb[:, :, c], c] for c in range(3)], axis=-1)


def _flattened(density: Floats, scanned: Bools) -> Floats:
    """The density without the slow change that the glass shows, where enough glass is seen.

    Light falls off towards a slide's edges: a quadratic surface through what has no colour, with
    whatever is denser than it left out step by step, for that is no glass.
    """
    height, width = scanned.shape
    colourless = scanned & (_spread(density) < _NO_COLOUR)
    places = np.flatnonzero(colourless)
    places = places[:: max(1, len(places) // _SAMPLES)]
    y, x = places // width * (2 / height) - 1, places % width * (2 / width) - 1
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    some = density.reshape(-1, 3)[places]
    mean, glass = some.mean(axis=1), np.ones(len(places), np.bool_)
    for _ in range(_FITS):
        if not _all_over(x[glass], y[glass]):
            return density
        glass = mean - terms @ _fitted(terms[glass], mean[glass]) < _UNEVEN
    fit = _fitted(terms[glass], some[glass]).astype(np.float32)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    flat: Floats = density - (fit[0] + fit[1] * columns + fit[3] * columns * columns)
    flat -= fit[2] * rows + fit[4] * rows * columns + fit[5] * rows * rows
    return flat


def _fitted(terms: npt.NDArray[np.float64], values: Floats) -> npt.NDArray[np.float64]:
    """Coefficients, rounded far below what matters: a resumed run must find the same mask, also
    where the linear algebra sums in another order (on fewer threads, say).
    """
    fit = np.linalg.lstsq(terms, values.astype(np.float64), rcond=None)[0]
    return np.asarray(fit, np.float64).round(6)


def _all_over(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> bool:
    """Whether places are in most of the ninths of a picture; they run from -1 to 1."""
    counts = np.histogram2d(y, x, 3, ((-1, 1), (-1, 1)))[0]
    return bool(np.count_nonzero(counts > _SAMPLES / 500) >= 6)


def _signal(density: Floats, excluded: Bools) -> Floats:
    """Density plus colour, in units of optical density; ink and borders count as glass."""
    dense = density.clip(0)
    lowest, highest = _extremes(dense)
    signal: Floats = _mean(dense) + highest - lowest
    signal[excluded] = 0
    return signal


def _threshold(seen: Floats, filters: Any) -> float:
    bounded = seen.clip(0, 1)
    if float(bounded.max()) - float(bounded.min()) < 1e-6:
        return _HIGHEST
    lower = min(filters.threshold_otsu(bounded), filters.threshold_triangle(bounded))
    return float(np.clip(min(lower, _above_glass(bounded)), _LOWEST, _HIGHEST))


def _above_glass(signal: Floats) -> float:
    """What glass does not reach: its noise is told by the values below the commonest one."""
    counts, edges = np.histogram(signal, 400, (0, 0.2))
    commonest = float(edges[int(counts.argmax())] + edges[1] / 2)
    below = commonest - signal[signal < commonest]
    noise = float(np.sqrt(np.mean(below * below))) if below.size else 0.0
    return commonest + _SIGMAS * noise


def _not_tissue(rgb: Rgb, morphology: Any) -> Bools:
    """Borders of the scanner, bubbles' rims and ink, with their soft edges."""
    lowest, highest = _extremes(rgb)
    grey = (highest < _BRIGHT) & (highest - lowest < _COLOURLESS)
    black = grey & (highest < _DARK)
    # Nuclei may be as dark and single pixels of any colour: ink and borders are broad.
    broad = _opened(black | _ink(rgb), _BROAD, morphology)
    # A border's shadow is as colourless, and fades.
    border = broad & black
    border &= ~_skimage("segmentation").clear_border(border)
    for _ in range(_FADES if border.any() else 0):
        border = morphology.dilation(border, morphology.disk(1)) & (border | grey)
    excluded: Bools = morphology.dilation(broad | border, morphology.disk(3))
    return excluded


def _opened(mask: Bools, radius: int, morphology: Any) -> Bools:
    """Opened, the mask's edges going on outside: what touches them is as broad there."""
    padded = np.pad(mask, radius, mode="edge")
    opened: Bools = morphology.opening(padded, morphology.disk(radius))
    return opened[radius:-radius, radius:-radius]


def _ink(rgb: Rgb) -> Bools:
    """Colours of markers that stains do not have."""
    red, green, blue = (rgb[:, :, c].astype(np.int16) for c in range(3))
    greens = (green > red + 20) & (green > blue - 10) & (red < 190)
    blues = (blue > red + 80) & (green > red + 10) & (red < 130)
    reds = (red > green + 110) & (red > blue + 90) & (green < 100)
    found: Bools = greens | blues | reds
    return found
