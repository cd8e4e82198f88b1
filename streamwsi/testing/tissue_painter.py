"""Pictures of stained tissue that never was.

`TissuePainter.paint` gives the pixels of any box of an endless slide as a pure function of the
seed and of the place. It works in two steps:

1. *Zones*, on a coarse grid around the box: how deep inside a piece of tissue, inside a nest of
   tumour, inside a lumen; how loose the stroma and how many lymphocytes; which way fibres run.
   They are sums of smooth random fields, and cheap, because the grid has few points.
2. *Stains*, per pixel: zones are interpolated and cut at sharp edges, a fibre texture follows
   the warp of the zones, nuclei are stamped where the zones want them. Two maps result, the
   concentrations of hematoxylin and eosin; light passes both by the law of Beer and Lambert.

The stains' colours are the reference vectors of Macenko et al., "A method for normalizing
histology slides for quantitative analysis", ISBI 2009, with the red of eosin a little lower.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..geometry import Box, Size
from .nuclei import Kind, sites_in, stamps_at
from .smooth_noise import Axis, Field, Floats, Texture, smoothstep, stretched

__all__ = ["TissuePainter"]

_GLASS = (244.0, 243.0, 245.0)
_HEMATOXYLIN = (0.563, 0.720, 0.406)
_EOSIN = (0.150, 0.801, 0.458)
_PITCH_UM = 8.4  # between places for nuclei
_FAT_CELL_UM = 50.0
# Centre and half axes of the pieces of tissue, as shares of the slide's width and height.
_PIECES = (
    (0.31, 0.38, 0.21, 0.26),
    (0.72, 0.63, 0.17, 0.25),
    (0.70, 0.17, 0.12, 0.08),
    (0.20, 0.84, 0.10, 0.07),
)


class _Zones(NamedTuple):
    """Coarse maps around a box; signed ones are positive inside."""

    ys: Axis
    xs: Axis
    tissue: Floats  # signed, µm from the outline
    nest: Floats  # signed
    lumen: Floats  # signed
    crowd: Floats  # share of the places in nests that hold a nucleus
    lymph: Floats  # 0 … 1
    loose: Floats  # 0 … 1: dense to loose stroma
    fat: Floats  # signed
    u: Floats  # coordinates of the fibre texture: along
    v: Floats  # and across


class TissuePainter:
    """Paints one slide.

    Args:
        size: of level 0, in pixels; the pieces of tissue are placed by it.
        mpp: µm per pixel; everything inside the tissue has its size in µm.
        seed: another seed is another slide.
    """

    def __init__(self, size: Size, mpp: float = 0.25, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        px = 1 / mpp
        self._mpp, self._seed = mpp, seed
        self._stamps = stamps_at(mpp)
        self._step = int(np.clip(2 ** round(np.log2(2 * px)), 1, 8))
        self._pieces = _place_pieces(rng, size)
        reach = min(size) * 0.2
        self._outline = Field.of(rng, (reach, 1.0), (reach / 3, 0.4), (reach / 9, 0.16))
        self._ruggedness = float(reach * mpp * 0.16)
        self._fray = Field.of(rng, (60 * px, 1.0), (18 * px, 0.4))
        self._zone = Field.of(rng, (max(reach * 0.8, 300 * px), 1.0), (220 * px, 0.35))
        self._nest = Field.of(rng, (100 * px, 1.0), (35 * px, 0.35), (14 * px, 0.07))
        self._lumen = Field.of(rng, (40 * px, 1.0), (14 * px, 0.16))
        self._lymph = Field.of(rng, (260 * px, 0.8), (70 * px, 0.6))
        self._loose = Field.of(rng, (180 * px, 0.8), (45 * px, 0.5))
        self._crowd = Field.of(rng, (350 * px, 0.8), (60 * px, 0.5))
        self._along = Field.of(rng, (320 * px, 160 * px), (70 * px, 30 * px))
        self._across = Field.of(
            rng, (420 * px, 230 * px), (90 * px, 24 * px), (30 * px, 4.5 * px), (11 * px, 1.1 * px)
        )
        self._fat = Field.of(rng, (330 * px, 0.7), (120 * px, 0.4))
        self._light = Field.of(rng, (max(size) / 3, 1.0))
        self._fibres = Texture.of(
            rng, (30 * px, 3.4 * px, 1.0), (11 * px, 1.5 * px, 0.8), (3.5 * px, 0.8 * px, 0.4)
        )
        self._grain = Texture.of(
            rng, (5 * px, 5 * px, 0.7), (1.6 * px, 1.6 * px, 1.0), (0.6 * px, 0.6 * px, 0.6)
        )

    def paint(self, box: Box) -> npt.NDArray[np.uint8]:
        """The pixels of a box, ``(height, width, 3)``, also beyond the slide's edges."""
        zones = self._zones(box)
        grain = self._grain.crop(box.x, box.y, box.width, box.height) * np.float32(1 / 255)
        # Up to one grey level more, so that a slow slope shows no steps when it is cut to uint8.
        glass = self._glass(box) + grain * np.float32(1 / _GLASS[0])
        picture = np.empty((box.height, box.width, 3), np.uint8)
        if zones is None:
            for c in range(3):
                picture[:, :, c] = np.float32(_GLASS[c]) * glass
            return picture
        hematoxylin, eosin = self._stains(box, zones, grain)
        for c in range(3):
            light = hematoxylin * np.float32(-_HEMATOXYLIN[c])
            light -= eosin * np.float32(_EOSIN[c])
            np.exp(light, out=light)
            light *= glass
            light *= np.float32(_GLASS[c])
            picture[:, :, c] = light
        return picture

    def _glass(self, box: Box) -> Floats:
        """What the empty slide lets through: about 1, a little uneven."""
        step = 16
        x, y = box.x // step * step, box.y // step * step
        xs = Axis(x, step, -(-(box.right - x) // step) + 1)
        ys = Axis(y, step, -(-(box.bottom - y) // step) + 1)
        light = 1 - np.float32(0.006) * np.abs(self._light.sample(ys, xs))
        return stretched(light, step, box.x - x, box.y - y, box.width, box.height)

    def _zones(self, box: Box) -> _Zones | None:
        step = self._step
        margin = -(-self._stamps.reach // step) * step
        x, y = (box.x - margin) // step * step, (box.y - margin) // step * step
        xs = Axis(x, step, -(-(box.right + margin - x) // step) + 1)
        ys = Axis(y, step, -(-(box.bottom + margin - y) // step) + 1)
        tissue = self._depth(ys, xs)
        if tissue.max() < -4:
            return None
        zone = smoothstep(-0.7, 0.9, self._zone.sample(ys, xs))
        nest = self._nest.sample(ys, xs) + 2.6 * zone - 1.9
        lymph = smoothstep(0.5, 1.1, self._lymph.sample(ys, xs) + 0.35 * zone)
        return _Zones(
            ys,
            xs,
            tissue=tissue,
            nest=np.minimum(nest, tissue / 30),
            lumen=np.minimum(self._lumen.sample(ys, xs) - 1.2, nest - 0.75),
            crowd=np.clip(0.75 + 0.2 * self._crowd.sample(ys, xs), 0.25, 1),
            lymph=lymph,
            loose=smoothstep(-1.2, 1.2, self._loose.sample(ys, xs)),
            fat=np.minimum(
                np.minimum(self._fat.sample(ys, xs) - 0.85, -0.25 - nest), (tissue - 20) / 100
            ),
            u=self._along.sample(ys, xs) + xs.points,
            v=self._across.sample(ys, xs) + ys.points[:, None],
        )

    def _depth(self, ys: Axis, xs: Axis) -> Floats:
        """µm inside the nearest piece of tissue; negative on glass."""
        x, y = xs.points, ys.points[:, None]
        depth = np.full((ys.number, xs.number), -np.inf, np.float32)
        for cx, cy, a, b, turn in self._pieces:
            dx, dy = x - np.float32(cx), y - np.float32(cy)
            along = (dx * np.float32(np.cos(turn)) + dy * np.float32(np.sin(turn))) / np.float32(a)
            aside = (dy * np.float32(np.cos(turn)) - dx * np.float32(np.sin(turn))) / np.float32(b)
            inside = np.float32(min(a, b) * self._mpp) * (1 - np.hypot(along, aside))
            np.maximum(depth, inside, out=depth)
        # The clip keeps the pieces, as a rule, from growing together.
        bend = np.clip(self._outline.sample(ys, xs), -1.6, 1.6) * np.float32(self._ruggedness)
        return depth + bend + 9 * self._fray.sample(ys, xs)

    def _stains(self, box: Box, zones: _Zones, grain: Floats) -> tuple[Floats, Floats]:
        """Concentrations of hematoxylin and eosin, ``(height, width)`` each."""
        x, y = box.x - int(zones.xs.start), box.y - int(zones.ys.start)

        def fine(coarse: Floats) -> Floats:
            return stretched(coarse, self._step, x, y, box.width, box.height)

        fibre = self._fibres.warped(fine(zones.u), fine(zones.v)).astype(np.float32)
        fibre *= np.float32(1 / 255)
        loose = fine(zones.loose)
        nest = smoothstep(-0.03, 0.05, fine(zones.nest))
        lymph = fine(zones.lymph)
        stroma = 0.06 + smoothstep(-0.14, 0.2, fibre - (0.3 - 0.22 * lymph) * loose)
        stroma *= 0.3 + 0.42 * fibre + 0.14 * grain
        hematoxylin = (0.04 + 0.26 * nest + 0.1 * lymph) * (0.5 + grain)
        if zones.fat.max() > 0:
            fat = smoothstep(0, 0.05, fine(zones.fat))
            stroma += fat * (self._walls(box) - stroma)
            hematoxylin *= 1 - fat
        eosin = stroma + nest * (0.4 + 0.16 * grain + 0.06 * fibre - stroma)
        body = smoothstep(-2, 2, fine(zones.tissue) + 4 * fibre - 2)
        body *= 1 - smoothstep(-0.02, 0.03, fine(zones.lumen) + 0.02 * grain)
        nuclei = self._nuclei(box, zones)
        eosin *= body
        eosin *= 1 - 0.55 * np.minimum(nuclei, 1)
        hematoxylin *= body
        np.maximum(hematoxylin, nuclei * (0.86 + 0.28 * grain), out=hematoxylin)
        return hematoxylin, eosin

    def _walls(self, box: Box) -> Floats:
        """Eosin of the walls between fat cells: where the two nearest centres are equally far."""
        pitch = _FAT_CELL_UM / self._mpp
        sites = sites_in(box, pitch, self._seed + 1)
        nearest, second = np.full((2, box.height, box.width), np.inf, np.float32)
        rows = np.arange(box.y, box.bottom, dtype=np.float32)[:, None]
        columns = np.arange(box.x, box.right, dtype=np.float32)
        for x, y, chance in zip(sites.x, sites.y, sites.chance, strict=True):
            # The two nearest centres are always less than two pitches away.
            down = slice(*np.searchsorted(rows[:, 0], (y - 2 * pitch, y + 2 * pitch)))
            across = slice(*np.searchsorted(columns, (x - 2 * pitch, x + 2 * pitch)))
            dy, dx = rows[down] - np.float32(y), columns[across] - np.float32(x)
            away = np.sqrt(dy * dy + dx * dx)
            # Distances to circles of differing radius, not to points: the walls come out bent.
            away -= np.float32(0.3 * chance * pitch)
            first, other = nearest[down, across], second[down, across]
            np.minimum(other, np.maximum(first, away), out=other)
            np.minimum(first, away, out=first)
        from_wall = (second - nearest) * np.float32(self._mpp)
        return np.float32(0.55) * (1 - smoothstep(1, 2.5, from_wall))

    def _nuclei(self, box: Box, zones: _Zones) -> Floats:
        """Hematoxylin of the nuclei, ``(height, width)``."""
        canvas = np.zeros((box.height, box.width), np.float32)
        reach = self._stamps.reach
        around = Box(box.x - reach, box.y - reach, box.width + 2 * reach, box.height + 2 * reach)
        sites = sites_in(around, _PITCH_UM / self._mpp, self._seed)
        row = np.rint((sites.y - zones.ys.start) / self._step).astype(np.intp)
        column = np.rint((sites.x - zones.xs.start) / self._step).astype(np.intp)
        known = (row >= 0) & (row < zones.ys.number) & (column >= 0) & (column < zones.xs.number)
        row, column = np.where(known, row, 0), np.where(known, column, 0)

        def here(zone: Floats) -> Floats:
            return zone[row, column]

        in_nest = here(zones.nest) > 0.02
        lymphocyte = here(zones.lymph) > 0.5 + sites.turn % 0.3
        kind = np.where(
            in_nest, Kind.EPITHELIUM, np.where(lymphocyte, Kind.LYMPHOCYTE, Kind.FIBROBLAST)
        )
        share = np.choose(kind, [here(zones.crowd), 0.95 * here(zones.lymph), 0.17])
        drawn = known & (sites.chance < share)
        drawn &= (here(zones.tissue) > 4) & (here(zones.lumen) < -0.12) & (here(zones.fat) < 0)
        dv_dy, dv_dx = np.gradient(zones.v, axis=0), np.gradient(zones.v, axis=1)
        fibre = np.arctan2(-here(dv_dx), here(dv_dy))
        turn = np.where(kind == Kind.FIBROBLAST, fibre + 0.2 * (sites.turn - 1.57), sites.turn)
        for i in np.flatnonzero(drawn):
            x, y = round(sites.x[i]) - box.x, round(sites.y[i]) - box.y
            self._stamps.draw(canvas, kind[i], sites.look[i], turn[i], x, y)
        return canvas


def _place_pieces(
    rng: np.random.Generator, size: Size
) -> tuple[tuple[float, float, float, float, float], ...]:
    """Centre, half axes and turn of each piece, in pixels and radians."""
    mirror = rng.integers(0, 2, 2)
    pieces = []
    for cx, cy, a, b in _PIECES:
        x, y = abs(mirror[0] - cx), abs(mirror[1] - cy)
        turn = float(rng.uniform(-0.15, 0.15))
        pieces.append((x * size.width, y * size.height, a * size.width, b * size.height, turn))
    return tuple(pieces)
