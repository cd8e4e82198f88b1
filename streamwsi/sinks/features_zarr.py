"""FeaturesZarr: a vector per window, as a zarr group.

``OUT/<slide id>.features.zarr`` is a zarr v3 group with three arrays, row k for window k:

- ``features``: float32 or float16 ``(n, d)``; NaN for windows with damaged pixels;
- ``coords``: int64 ``(n, 2)``: x and y of the window's top-left corner in level-0 pixels;
- ``valid``: bool ``(n,)``: False where pixels of the window could not be had, and where the
  window was not computed yet.

The group's attribute ``windows`` says what the windows are (`features.window_attributes`), and
``streamwsi`` is the record. The number of rows is known from the plan, that of columns from the
first pieces: until then the group has no arrays. A chunk of features is 16 MiB, so that a
million windows of 1536 float16 numbers are 184 files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np

from ..chunks import Pieces, Plan
from ..slides import SlideRef
from ..stages import Recipe
from ..values import ValueType
from .base import ResumableWriter, claimed
from .corners import kernel_of
from .features import Dtype, FeatureRows, check_dtype, check_vectors, window_attributes
from .zarr_groups import ZarrGroup, empty_array

if TYPE_CHECKING:
    from .zarr_arrays import DurableStore
    from .zarr_rows import Rows

__all__ = ["FeaturesZarr"]

_CHUNK_BYTES = 16 << 20
#: Rows per chunk of the two narrow arrays.
_NARROW = 1 << 16
#: Of an open chunk: itself, a copy while it is stored, and its compressed form.
_COPIES = 3
#: Bytes of a row of the two narrow arrays, and of a vector where nobody can tell.
_NARROW_BYTES = 2 * 8 + 1
_ROW_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FeaturesZarr:
    """Writes ``OUT/<slide id>.features.zarr``.

    Args:
        out: the output folder; it is made where it is missing.
        dtype: ``"float32"`` or ``"float16"``.

    Raises:
        ConfigError: it is another dtype.
    """

    out: str | Path
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the features; not the folder."""
        return {"type": "features-zarr", "dtype": self.dtype}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The group's path."""
        return (str(Path(self.out) / f"{slide.id}.features.zarr"),)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        if values is not None:
            check_vectors((plan.count, *values.shape))
        row = _ROW_BYTES if values is None else values.numbers * np.dtype(self.dtype).itemsize
        wide = min(plan.count, _rows_per_chunk(row)) * row
        narrow = min(plan.count, _NARROW) * _NARROW_BYTES
        return _COPIES * (wide + narrow)

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[ResumableWriter]:
        """The features of one slide.

        Raises:
            ConfigError: the output exists and may not be overwritten.
            PlanChanged: the output was begun by another plan.
            CannotWrite: the output cannot be created.
        """
        output = _Group(Path(self.out), f"{plan.slide.ref.id}.features.zarr", plan, recipe)
        output.dtype = self.dtype
        async with claimed(output, overwrite=overwrite):
            writer = _Writer(output)
            try:
                yield writer
            finally:
                await writer.close()


def _rows_per_chunk(nbytes: int) -> int:
    return max(1, _CHUNK_BYTES // nbytes)


class _Group(ZarrGroup):
    kind = "FeaturesZarr"
    mark = "dimensions"
    dtype: Dtype = "float32"

    def read(self) -> dict[str, Any] | None:
        record = super().read()
        # Without windows all is done once the record is there, but for the arrays.
        if record and self.plan.count == 0 and not (self.path / "valid" / "zarr.json").exists():
            return None
        return record

    def announce(self) -> None:
        self.attributes = {"windows": window_attributes(self.plan, kernel_of(self.plan))}
        self.save()
        if self.plan.count == 0:
            for name, shape, dtype, fill, axes in _columns(self.plan, self.dtype, 0):
                chunk = [1] * len(shape)
                fill = "NaN" if name == "features" else fill
                self.write_array(name, empty_array(shape, chunk, dtype, fill, axes))


def _columns(
    plan: Plan, dtype: str, dimensions: int
) -> list[tuple[str, tuple[int, ...], str, Any, tuple[str, ...]]]:
    """Name, shape, dtype, fill value and axes of each array."""
    n = plan.count
    return [
        ("features", (n, dimensions), dtype, np.nan, ("window", "feature")),
        ("coords", (n, 2), "int64", 0, ("window", "xy")),
        ("valid", (n,), "bool", False, ("window",)),
    ]


class _Writer(ResumableWriter):
    def __init__(self, output: _Group) -> None:
        super().__init__(output)
        self._group = output
        self._features = FeatureRows(output.plan, output.dtype, output.path)
        self._store: DurableStore | None = None
        self._rows: list[Rows] = []

    async def close(self) -> None:
        """End all writing before the output is unlocked."""
        if self._store is not None:
            with anyio.CancelScope(shield=True):
                await self._store.settle()

    async def _put(self, pieces: Pieces[Any]) -> None:
        columns = await anyio.to_thread.run_sync(self._features.of, pieces)
        if not self._rows:
            self._rows = await self._open_arrays()
        for rows, some in zip(self._rows, columns, strict=True):
            await rows.put(some)

    async def _flush(self) -> None:
        for rows in self._rows:
            await rows.store()
        if self._store is not None:
            await self._store.sync()

    async def _open_arrays(self) -> list[Rows]:
        module = await anyio.to_thread.run_sync(_zarr_rows)
        group = self._group
        self._store = module.open_store(group.path)
        # Saved with the next checkpoint too, where the output goes on.
        group.attributes = {"windows": window_attributes(group.plan, kernel_of(group.plan))}
        group.told = {"dimensions": self._features.dimensions}
        return await (self._reopen if group.begun else self._create)()

    async def _create(self) -> list[Rows]:
        assert self._store is not None
        group = self._group
        wide = _rows_per_chunk(self._features.dimensions * np.dtype(group.dtype).itemsize)
        made = []
        for name, shape, dtype, fill, axes in _columns(
            group.plan, group.dtype, self._features.dimensions
        ):
            rows = wide if name == "features" else _NARROW
            made.append(
                await _zarr_rows().create_rows(self._store, name, shape, rows, dtype, fill, axes)
            )
        await self._store.sync()
        await anyio.to_thread.run_sync(group.save)
        return made

    async def _reopen(self) -> list[Rows]:
        assert self._store is not None
        group, found = self._group, []
        for name, shape, *_ in _columns(group.plan, group.dtype, self._features.dimensions):
            rows = await _zarr_rows().open_rows(self._store, name, shape, self.resume_at)
            if rows is None:
                raise self._features.another_length()
            found.append(rows)
        return found


def _zarr_rows() -> Any:
    """The module that needs zarr, whose import takes a while."""
    from . import zarr_rows

    return zarr_rows
