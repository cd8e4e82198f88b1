"""HeatmapZarr: a slide's heatmap as an OME-Zarr 0.5 image that grows while it is computed.

``OUT/<slide id>.zarr`` is a zarr v3 group with the arrays:

- ``0``: float ``(c, y, x)``, NaN where nothing was computed, or labels ``(y, x)``: the image. A
  processor's vector is one cell, and so is each number of a map ``(C, h, w)``. Maps are laid
  beside their neighbours (`side_by_side`), or, where windows overlap or reach beyond the level,
  blended with them (`merging`). The image's transformations say where the cells lie, in
  micrometres, or in level-0 pixels where the slide has no mpp.
- ``valid``: uint8 ``(y, x)``, a cell per window, or of a map that is blended per cell: 0 nothing
  computed, 1 computed, 2 could not be computed for pixels that could not be had, 3 not part of
  the plan (left out by a mask).
- ``1``, ``2``, …: the smaller levels, which the metadata name when all is done. Of maps that are
  blended, ``1`` grows with ``0``.

The group's attribute ``streamwsi`` is the record (`streamwsi.sinks.base`): what the heatmap was
made from, the names of its channels, and how far it is (`streamwsi.sinks.zarr_groups`).

The group opens at any time and shows all that is finished. Until the first pieces tell how many
channels there are, the image is an empty array, ``planned``: one channel, NaN everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np

from ..blending import BLENDS, Blend
from ..chunks import Pieces, Plan
from ..errors import CannotWrite, ConfigError, StageMismatch
from ..geometry import Grid, Size
from ..heatmaps import Raster
from ..mosaics import Mosaic
from ..slides import SlideRef
from ..stages import Recipe
from ..values import ValueType
from .base import ResumableWriter, claimed
from .cell_types import CELL_TYPES, CellType, channels_of, dtype_of
from .channel_display import hex_colour
from .chunking import SIDE
from .heatmap_group import HeatmapGroup
from .heatmap_image import HeatmapImage
from .heatmap_metadata import channel_names

if TYPE_CHECKING:
    from .merging import Merging
    from .side_by_side import SideBySide
    from .zarr_arrays import AnyArray, DurableStore

__all__ = ["HeatmapZarr"]

_SIDE = 256
"""Cells per side of a chunk of maps that lie side by side; blended ones are bands of more."""

#: Where values are not known beforehand: an open block (at most 32 MiB, or one window), and as
#: much for storing it ...
_OPEN_BYTES = 64 << 20
#: ... less on small slides, whose windows are taken to give at most this much.
_WINDOW_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class HeatmapZarr:
    """Writes ``OUT/<slide id>.zarr``, an OME-Zarr image.

    Args:
        out: the output folder; it is made where it is missing.
        chunk: cells per side of a chunk; chunks are smaller where cells are heavy. None: 256, and
            512 for maps that are blended.
        blend: what becomes of cells that several windows have a value for: ``"mean"``,
            ``"gaussian"``, ``"max"``, ``"crop"`` or ``"last"`` (`streamwsi.blending`).
        dtype: ``"float32"``, ``"float16"``, or ``"labels"``: uint8, 1 + the channel with the
            largest value, 0 where nothing was computed.
        colours: how viewers show the channels, or label images the classes: six hexadecimal
            digits each, as in ``"E69F00"``. None: eight colours in turn.

    Raises:
        ConfigError: a setting makes no sense.
    """

    out: str | Path
    chunk: int | None = None
    blend: Blend = "mean"
    dtype: CellType = "float32"
    colours: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"a heatmap's chunk must be at least 1 cell, not {self.chunk}")
        for name, value, known in (
            ("blend", self.blend, BLENDS),
            ("dtype", self.dtype, CELL_TYPES),
        ):
            if value not in known:
                raise ConfigError(
                    f"a heatmap's {name} must be one of {', '.join(known)}, not {value!r}"
                )
        if self.colours is not None:
            object.__setattr__(self, "colours", tuple(self.colours))
            for colour in self.colours:
                hex_colour(colour)

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the heatmap; not the folder."""
        return {
            "type": "heatmap-zarr",
            "chunk": self.chunk,
            "blend": self.blend,
            "dtype": self.dtype,
            **({} if self.colours is None else {"colours": [*self.colours]}),
        }

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The group's path."""
        return (str(Path(self.out) / f"{slide.id}.zarr"),)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        if plan.grid is None or values is None:
            count = plan.count if plan.grid is None else plan.grid.count
            return min(_OPEN_BYTES, count * _WINDOW_BYTES)
        cells = self.arrangement(plan.grid, (plan.count, *(values.shape or (1,))))
        image = HeatmapImage(plan, cells, self.dtype, self.chunk or SIDE)
        open_ = 2 * cells.block_bytes if isinstance(cells, Raster) else cells.merging_bytes
        return max(open_, image.pyramid_bytes)

    def arrangement(self, grid: Grid, shape: tuple[int, ...]) -> Raster | Mosaic:
        """Where the cells of values ``(n, C)`` or ``(n, C, h, w)`` lie.

        Raises:
            StageMismatch: they cannot be laid out.
            ConfigError: there are not as many colours as channels.
        """
        raster = Raster.of_values(grid, shape, self.chunk or _SIDE)
        if self.colours and len(self.colours) != raster.channels:
            raise ConfigError(
                f"{len(self.colours)} colours were given for {raster.channels} channels; give one "
                "for each"
            )
        stored = channels_of(self.dtype, raster.channels)
        whole = grid.stride == grid.kernel and grid.pad is None and grid.regular
        if raster.window == Size(1, 1) and not grid.regular:
            raise StageMismatch(
                "a heatmap's cells lie at equal distances, but these windows do not (the last of a "
                "row or column was moved back to the level's edge); choose padding valid or same, "
                "a model that gives maps, or another sink"
            )
        if raster.window != Size(1, 1) and not whole:
            return Mosaic.of(grid, raster.channels, raster.window, self.chunk or SIDE)
        return replace(raster, channels=stored, itemsize=np.dtype(dtype_of(self.dtype)).itemsize)

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[ResumableWriter]:
        """The heatmap of one slide.

        Raises:
            StageMismatch: the sampler's windows do not lie on a grid.
            ConfigError: the output exists and may not be overwritten.
            PlanChanged: the output was begun by another plan.
            CannotWrite: the output cannot be created.
        """
        if plan.grid is None:
            raise StageMismatch(
                "a heatmap needs windows on a grid, and this sampler's are not; choose a "
                "sliding window, or another sink"
            )
        output = HeatmapGroup(Path(self.out), f"{plan.slide.ref.id}.zarr", plan, recipe)
        async with claimed(output, overwrite=overwrite):
            writer = _Writer(output, self)
            try:
                yield writer
            finally:
                await writer.close()


class _Writer(ResumableWriter):
    def __init__(self, output: HeatmapGroup, sink: HeatmapZarr) -> None:
        super().__init__(output)
        assert output.plan.grid is not None
        self._group = output
        self._grid = output.plan.grid
        self._sink = sink
        self._shape: tuple[int, ...] = ()
        self._store: DurableStore | None = None
        self._map: SideBySide | Merging | None = None
        self._image: HeatmapImage | None = None

    async def close(self) -> None:
        """End all writing before the output is unlocked."""
        with anyio.CancelScope(shield=True):
            if self._map is not None:
                await anyio.to_thread.run_sync(self._map.close)
            if self._store is not None:
                await self._store.settle()

    async def _put(self, pieces: Pieces[Any]) -> None:
        values = _floats(pieces.values)
        if self._map is None:
            self._map = await self._open(values.shape)
            self._shape = values.shape[1:]
        if values.shape[1:] != self._shape:
            raise StageMismatch(
                f"{self._group.path}: the processor returned values of shape {self._shape} and "
                f"then {values.shape[1:]} per window; a heatmap needs one shape"
            )
        values = values.reshape(*values.shape[:2], *(values.shape[2:] or (1, 1)))
        invalid = self._invalid + np.cumsum(~pieces.valid) - ~pieces.valid
        for run in pieces.places.runs():
            first = run.first - pieces.places.start
            at = slice(first, first + run.count)
            await self._map.put(run, values[at], pieces.valid[at], int(invalid[first]))

    async def _flush(self) -> None:
        if self._map is not None and self._store is not None:
            last = self._pieces == self._group.plan.count
            await self._map.flush(last)
            if last:
                await self._finish()
            await self._store.sync()

    def _durable(self) -> tuple[int, int]:
        if self._map is None:
            return super()._durable()
        return self._map.durable(self._pieces, self._invalid)

    async def _finish(self) -> None:
        """Add the smaller levels, which the record's last state will name."""
        from .zarr_pyramid import build_pyramid, shown_ranges

        assert self._image is not None
        assert self._store is not None
        paths = await _zarr_arrays().in_a_loop_of_its_own(
            build_pyramid,
            self._store,
            self._image.path,
            labels=self._sink.dtype == "labels",
            made=int(self._image.half is not None),
        )
        if self._sink.dtype != "labels":
            ranges = await _zarr_arrays().in_a_loop_of_its_own(shown_ranges, self._store, paths[-1])
            self._image = replace(self._image, ranges=ranges)
        self._group.show(self._image, *paths)
        await anyio.to_thread.run_sync(self._group.save_labels)

    async def _open(self, shape: tuple[int, ...]) -> SideBySide | Merging:
        arrays = await anyio.to_thread.run_sync(_zarr_arrays)
        group, plan, fresh = self._group, self._group.plan, not self._group.begun
        cells = self._sink.arrangement(self._grid, shape)
        self._store = arrays.DurableStore(group.path)
        names = channel_names(group.identity["processor"], shape[1])
        sink = self._sink
        self._image = HeatmapImage(
            plan, cells, sink.dtype, sink.chunk or SIDE, names, sink.colours or ()
        )
        group.show(self._image)
        found = await (self._create if fresh else self._reopen)(self._image)
        written = await self._arranged(cells, *found)
        await written.begin(self.resume_at, fresh)
        if fresh:
            await self._store.sync()
            await anyio.to_thread.run_sync(group.save_image)
        await anyio.to_thread.run_sync(group.forget_planned)
        return written

    async def _arranged(
        self, cells: Raster | Mosaic, image: AnyArray, codes: AnyArray, half: AnyArray | None = None
    ) -> SideBySide | Merging:
        """What writes the arrays; importing it takes zarr."""
        sink, plan = self._sink, self._group.plan
        if isinstance(cells, Raster):
            from .side_by_side import SideBySide

            return SideBySide(image, codes, cells, sink.dtype, plan)
        from .merging import Merging

        # It allocates the whole front: not in the loop.
        return await anyio.to_thread.run_sync(
            Merging, image, codes, half, cells, sink.blend, sink.dtype, plan, self._group.path
        )

    async def _create(self, image: HeatmapImage) -> list[AnyArray]:
        return [
            await _zarr_arrays().create_array(self._store, path, shape, cut, dtype, fill, axes)
            for path, shape, cut, dtype, fill, axes in image.arrays()
        ]

    async def _reopen(self, image: HeatmapImage) -> list[AnyArray]:
        found = [
            await _zarr_arrays().open_array(self._store, path, shape, cut, dtype)
            for path, shape, cut, dtype, *_ in image.arrays()
        ]
        if None in found:
            raise CannotWrite(
                f"{self._group.path} was begun with other values than {image.cells.channels} × "
                f"{image.cells.window} per window, or lacks an array of these; --overwrite starts "
                "afresh"
            )
        return found


def _zarr_arrays() -> Any:
    """The module that needs zarr, whose import takes a while."""
    from . import zarr_arrays

    return zarr_arrays


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values as they are laid out; a number per window is a vector of one."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        what = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
        raise StageMismatch(f"a heatmap needs arrays of numbers, but the processor returned {what}")
    floats: np.ndarray[Any, np.dtype[np.float32]] = values.astype(np.float32, copy=False)
    return floats[:, None] if floats.ndim == 1 else floats
