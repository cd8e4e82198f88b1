"""Which level of a slide to read for a pixel size or a magnification that is asked for.

A level that is as fine as asked, within a tolerance, is taken as it is. Otherwise it is the
coarsest level that is finer than asked, and what is sampled is a level made from it:
`PyramidLevel.source` says which it is made from, and `factor` how many of its pixels make one.
Such a level has the pixel size that was asked for to the last bit, not that of a rounded raster:
pixel i spans ``[i · factor, (i + 1) · factor)`` of the source, so that nothing drifts, and what
does not make a whole pixel at the right and bottom edge is left out, as scanners do.

Nothing is made finer than the slide is: there are no such details to look at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .errors import ConfigError, SlideError
from .geometry import Size
from .slides import Level, Microns, Mpp, Power, PyramidLevel, Resolution, Slide

__all__ = ["asked", "assuming", "chosen_level", "describe"]

_ROUNDING = 1e-9
"""Factors this close to an integer are that integer: less than 0.001 pixels on any slide."""


def asked(slide: Slide, resolution: Resolution) -> Level | Microns | Power:
    """The resolution for a slide, its function called, where it is one.

    Raises:
        SlideError: the function failed.
        ConfigError: it returned something else than a resolution.
    """
    if not isinstance(resolution, int | Level | Microns | Power):
        name = getattr(resolution, "__qualname__", repr(resolution))
        try:
            resolution = resolution(slide)
        except Exception as error:
            raise SlideError(
                f"{slide.ref.uri}: the level's function {name} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(resolution, bool) or not isinstance(
            resolution, int | Level | Microns | Power
        ):
            raise ConfigError(
                f"{slide.ref.uri}: the level's function {name} returned {resolution!r}; it must "
                "return a level's index, Microns(…) or Power(…)"
            )
    return Level(resolution) if isinstance(resolution, int) else resolution


def assuming(slide: Slide, mpp: float | None) -> Slide:
    """The slide, with this mpp where its header has none."""
    if mpp is None or slide.pyramid.mpp is not None:
        return slide
    return replace(slide, pyramid=replace(slide.pyramid, mpp=Mpp(mpp, mpp)))


def chosen_level(
    slide: Slide, resolution: Level | Microns | Power, tolerance: float
) -> PyramidLevel:
    """The level to sample: one of the slide's, or one that is resampled from it.

    Args:
        slide: the slide.
        resolution: what is asked for.
        tolerance: how far from it a level may be, relative, to be taken as it is.

    Raises:
        LevelNotFound: the slide has no level of that index.
        ConfigError: the header does not say what the levels are, or all of them are coarser
            than asked.
    """
    if isinstance(resolution, Level):
        return slide.level(resolution.index)
    wanted = _downsample(slide, resolution)
    fits = [
        (max(abs(x - 1), abs(y - 1)), level)
        for level, (x, y) in _factors(slide, wanted)
        if max(abs(x - 1), abs(y - 1)) <= tolerance + _ROUNDING
    ]
    if fits:
        return min(fits, key=lambda fit: fit[0])[1]
    finer = [
        (x * y, level, (x, y))
        for level, (x, y) in _factors(slide, wanted)
        if min(x, y) >= 1 - tolerance - _ROUNDING
    ]
    if not finer:
        raise ConfigError(
            f"{slide.ref.uri}: {_named(resolution)} is asked for, but the slide's finest level is "
            f"coarser ({_finest(slide, resolution)}); ask for that or a coarser one"
        )
    _, level, factor = min(finer, key=lambda one: one[0])
    return _resampled(slide, level, (_snapped(factor[0]), _snapped(factor[1])))


def describe(level: PyramidLevel, slide: Slide, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is sampled, JSON-able: the level that is read, the resampling, the pixel size.

    Args:
        level: what is sampled.
        slide: the slide, with the mpp that is assumed.
        config: the sampler's; samplers around others hold theirs as ``sampler``.
    """
    while isinstance(config.get("sampler"), Mapping):
        config = config["sampler"]
    mpp = slide.pyramid.mpp
    x, y = level.downsample
    return {
        "level": level.index,
        "factor": [*level.factor],
        "downsample": [x, y],
        "mpp": [mpp.x * x, mpp.y * y] if mpp else None,
        **{key: config[key] for key in ("tolerance", "assume_mpp") if key in config},
    }


def _downsample(slide: Slide, resolution: Microns | Power) -> tuple[float, float]:
    """Level-0 pixels per pixel that is asked for, per axis."""
    if isinstance(resolution, Microns):
        mpp = slide.pyramid.mpp
        if mpp is None:
            raise ConfigError(
                f"{slide.ref.uri}: {_named(resolution)} is asked for, but the slide does not say "
                "the size of its pixels; give that of level 0 by --assume-mpp (assume_mpp=…), or "
                "ask for a level"
            )
        return resolution.mpp / mpp.x, resolution.mpp / mpp.y
    if slide.power is None:
        raise ConfigError(
            f"{slide.ref.uri}: {_named(resolution)} is asked for, but the slide does not say its "
            "magnification; ask by --mpp (20× is mostly 0.5 µm), or for a level"
        )
    return (slide.power / resolution.power,) * 2


def _factors(
    slide: Slide, wanted: tuple[float, float]
) -> list[tuple[PyramidLevel, tuple[float, float]]]:
    """The levels, and how many of their pixels make one that is wanted, per axis."""
    return [
        (level, (wanted[0] / level.downsample[0], wanted[1] / level.downsample[1]))
        for level in slide.pyramid.levels
    ]


def _snapped(factor: float) -> float:
    """An integer where the factor is one but for rounding; 1 where it is less."""
    whole = round(factor)
    return max(1.0, float(whole) if abs(factor - whole) <= _ROUNDING * factor else factor)


def _resampled(slide: Slide, source: PyramidLevel, factor: tuple[float, float]) -> PyramidLevel:
    size, tile = (
        Size(round_(extent.width / factor[0]), round_(extent.height / factor[1]))
        for extent, round_ in ((source.size, _floor), (source.tile, math.ceil))
    )
    if min(size) < 1:
        raise ConfigError(
            f"{slide.ref.uri}, level {source.index}: of {source.size} pixels, {factor[0]:g}×"
            f"{factor[1]:g} would make one; ask for a finer resolution"
        )
    downsample = source.downsample[0] * factor[0], source.downsample[1] * factor[1]
    return PyramidLevel(source.index, size, downsample, tile, source, factor)


def _floor(value: float) -> int:
    return math.floor(value * (1 + _ROUNDING))


def _named(resolution: Microns | Power) -> str:
    if isinstance(resolution, Microns):
        return f"{resolution.mpp:g} µm per pixel"
    return f"a magnification of {resolution.power:g}×"


def _finest(slide: Slide, resolution: Microns | Power) -> str:
    if isinstance(resolution, Power):
        return f"{slide.power:g}×"
    mpp = slide.pyramid.mpp
    assert mpp is not None
    return f"{mpp.x:g} µm" if mpp.x == mpp.y else f"{mpp.x:g} × {mpp.y:g} µm"
