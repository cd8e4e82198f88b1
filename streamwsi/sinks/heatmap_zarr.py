"""HeatmapZarr: a slide's heatmap as an OME-Zarr 0.5 image that grows while it is computed.

``OUT/<slide id>.zarr`` is a zarr v3 group with two arrays:

- ``0``: float32 ``(c, y, x)``, NaN where nothing was computed: the image. A processor's vector
  is one cell, a map ``(C, h, w)`` is laid beside its neighbours (`streamwsi.heatmaps`). The
  image's transformations say where the cells lie, in micrometres, or in level-0 pixels where
  the slide has no mpp.
- ``valid``: uint8 ``(y, x)``, a cell per window: 0 nothing computed, 1 computed, 2 computed
  from pixels some of which could not be had, 3 not part of the plan (left out by a mask).

The group's attribute ``streamwsi`` is the record (`streamwsi.sinks.base`): what the heatmap was
made from, the names of its channels, and how far it is (`streamwsi.sinks.zarr_groups`).

Only open blocks are in memory; at a checkpoint they are stored as far as they are filled, so
that the group opens at any time and shows all that is finished. Until the first pieces tell how
many channels there are, the image is an empty array, ``planned``: one channel, NaN everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np

from ..chunks import Pieces, Plan
from ..errors import CannotWrite, ConfigError, StageMismatch
from ..heatmaps import Raster, left_out
from ..slides import SlideRef
from ..stages import Recipe
from ..values import ValueType
from .base import ResumableWriter, claimed
from .durable import sync_folders
from .heatmap_metadata import channel_names, ome_attributes
from .zarr_groups import ZarrGroup, empty_array

if TYPE_CHECKING:
    from .zarr_arrays import DurableStore, Front

__all__ = ["HeatmapZarr"]

_PLANNED = "planned"
_COMPUTED, _DAMAGED, _LEFT_OUT = 1, 2, 3

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
        chunk: cells per side of a chunk; chunks are smaller where cells are heavy.
    """

    out: str | Path
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ConfigError(f"a heatmap's chunk must be at least 1 cell, not {self.chunk}")

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the heatmap; not the folder."""
        return {"type": "heatmap-zarr", "chunk": self.chunk}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The group's path."""
        return (str(Path(self.out) / f"{slide.id}.zarr"),)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        raster = self._raster(plan, values)
        if raster is not None:
            return 2 * raster.block_bytes
        count = plan.count if plan.grid is None else plan.grid.count
        return min(_OPEN_BYTES, count * _WINDOW_BYTES)

    def _raster(self, plan: Plan, values: ValueType | None) -> Raster | None:
        """The raster of values that are known beforehand.

        Raises:
            StageMismatch: they cannot be laid out.
        """
        if plan.grid is None or values is None:
            return None
        shape = values.shape or (1,)
        return Raster.of_values(plan.grid, (plan.count, *shape), self.chunk)

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
        output = _Group(Path(self.out), f"{plan.slide.ref.id}.zarr", plan, recipe)
        async with claimed(output, overwrite=overwrite):
            writer = _Writer(output, self.chunk)
            try:
                yield writer
            finally:
                await writer.close()


class _Group(ZarrGroup):
    kind = "HeatmapZarr"
    mark = "channels"

    def announce(self) -> None:
        assert self.plan.grid is not None
        raster, slide = Raster(self.plan.grid), self.plan.slide
        document = empty_array(raster.shape, raster.chunks, "float32", "NaN", ("c", "y", "x"))
        self.write_array(_PLANNED, document)
        self.describe(
            ome_attributes(slide.ref.id, raster, self.plan.level, slide.pyramid.mpp, _PLANNED)
        )
        self.save()

    def describe(self, ome: Mapping[str, Any]) -> None:
        """Set the image's metadata."""
        self.attributes = {"ome": ome}

    def forget_planned(self) -> None:
        """Remove the empty image, once the other one is there."""
        if (self.path / _PLANNED).exists():
            shutil.rmtree(self.path / _PLANNED)
            sync_folders([self.path])


class _Writer(ResumableWriter):
    def __init__(self, output: _Group, chunk: int) -> None:
        super().__init__(output)
        assert output.plan.grid is not None
        self._group = output
        self._grid = output.plan.grid
        self._chunk = chunk
        self._shape: tuple[int, ...] = ()
        self._store: DurableStore | None = None
        self._fronts: list[Front] = []

    async def close(self) -> None:
        """End all writing before the output is unlocked."""
        if self._store is not None:
            with anyio.CancelScope(shield=True):
                await self._store.settle()

    async def _put(self, pieces: Pieces[Any]) -> None:
        values = _floats(pieces.values)
        if not self._fronts:
            self._fronts = await self._open_arrays(values.shape)
            self._shape = values.shape[1:]
        if values.shape[1:] != self._shape:
            raise StageMismatch(
                f"{self._group.path}: the processor returned values of shape {self._shape} and "
                f"then {values.shape[1:]} per window; a heatmap needs one shape"
            )
        values = values.reshape(*values.shape[:2], *(values.shape[2:] or (1, 1)))
        codes = np.where(pieces.valid, _COMPUTED, _DAMAGED).astype(np.uint8).reshape(-1, 1, 1, 1)
        image, valid = self._fronts
        for run in pieces.places.runs():
            at = slice(run.first - pieces.places.start, run.first - pieces.places.start + run.count)
            await image.put(run, values[at])
            await valid.put(run, codes[at])

    async def _flush(self) -> None:
        for front in self._fronts:
            await front.store()
        if self._store is not None:
            await self._store.sync()

    async def _open_arrays(self, shape: tuple[int, ...]) -> list[Front]:
        arrays = await anyio.to_thread.run_sync(_zarr_arrays)
        group, slide = self._group, self._group.plan.slide
        image = Raster.of_values(self._grid, shape, self._chunk)
        valid = Raster(self._grid, side=self._chunk, itemsize=1)
        self._store = arrays.DurableStore(group.path)
        group.describe(ome_attributes(slide.ref.id, image, group.plan.level, slide.pyramid.mpp))
        group.told = {"channels": channel_names(group.identity["processor"], image.channels)}
        fronts = await (self._reopen if group.begun else self._create)(image, valid)
        await anyio.to_thread.run_sync(group.forget_planned)
        return fronts

    async def _create(self, image: Raster, valid: Raster) -> list[Front]:
        arrays, store = _zarr_arrays(), self._store
        assert store is not None
        fronts = [
            await arrays.create_front(store, "0", image, "float32", np.nan, ("c", "y", "x")),
            await arrays.create_front(store, "valid", valid, "uint8", 0, ("y", "x")),
        ]
        await self._mark_left_out(fronts[1])
        await store.sync()
        await anyio.to_thread.run_sync(self._group.save)
        return fronts

    async def _mark_left_out(self, valid: Front) -> None:
        """Say of each cell without a window that there will be none."""
        plan = self._group.plan
        if plan.count == self._grid.count:
            return
        for run in left_out(self._grid, plan.runs(0, plan.count)):
            await valid.put(run, np.full((run.count, 1, 1, 1), _LEFT_OUT, np.uint8))
        await valid.store()
        valid.keeps_stored = True

    async def _reopen(self, image: Raster, valid: Raster) -> list[Front]:
        arrays = _zarr_arrays()
        fronts = [
            await arrays.open_front(self._store, "0", image),
            await arrays.open_front(self._store, "valid", valid),
        ]
        if None in fronts:
            raise CannotWrite(
                f"{self._group.path} was begun with other values than {image.channels} × "
                f"{image.window} per window; --overwrite starts afresh"
            )
        fronts[1].keeps_stored = self._group.plan.count < self._grid.count
        if self.resume_at > 0:
            for run in self._group.plan.runs(self.resume_at, self.resume_at + 1):
                for front in fronts:
                    await front.restore(run)
        return fronts


def _zarr_arrays() -> Any:
    """The module that needs zarr, whose import takes a while."""
    from . import zarr_arrays

    return zarr_arrays


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        what = f"{values.dtype} array" if isinstance(values, np.ndarray) else type(values).__name__
        raise StageMismatch(f"a heatmap needs arrays of numbers, but the processor returned {what}")
    return values.astype(np.float32, copy=False)
