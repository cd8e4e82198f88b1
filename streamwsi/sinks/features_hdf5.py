"""FeaturesHdf5: a vector per window, as the HDF5 file that CLAM and TRIDENT load.

``OUT/<slide id>.h5`` holds, row k for window k (contiguous, not compressed):

- ``features``: float32 or float16 ``(n, d)``; NaN for windows with damaged pixels;
- ``coords``: int64 ``(n, 2)``: x and y of the window's top-left corner in level-0 pixels, with
  the attributes that these tools give them (`features.patch_attributes`);
- ``valid``: bool ``(n,)``: False where pixels of the window could not be had. They do not know
  it; ``features[valid]`` are the vectors to train on.

For CLAM let `out` be the folder ``h5_files`` of its features.

A consumer that finds the file may take it for whole, as these tools do: so it appears under its
name when it is. Until then it is ``.<slide id>.h5.unfinished``, laid out at once and written in
place (`streamwsi.sinks.hdf5_tables`, which says why HDF5 cannot tear it). The alternative, rows
in a store of another kind that become HDF5 at the end, needs twice the disk, and a last step as
long as the features are large. The record is a file of its own, ``<slide id>.h5.json``: to tell
whether an output is finished, nothing has to be parsed that may be a stranger's.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ..chunks import Pieces, Plan
from ..errors import ConfigError
from ..slides import SlideRef
from ..stages import Recipe
from ..values import ValueType
from .base import ResumableWriter, claimed
from .corners import kernel_of
from .durable import sync_folders
from .features import Dtype, FeatureRows, check_dtype, check_vectors, patch_attributes
from .sidecars import FileOutput

if TYPE_CHECKING:
    from .hdf5_tables import Column, Table

__all__ = ["FeaturesHdf5"]

#: A batch's vectors in the file's dtype, and without gaps; less on small slides.
_OPEN_BYTES = 16 << 20
#: Bytes of a vector, where nobody can tell.
_ROW_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class FeaturesHdf5:
    """Writes ``OUT/<slide id>.h5``; needs h5py.

    Args:
        out: the output folder; it is made where it is missing.
        dtype: ``"float32"`` or ``"float16"``.

    Raises:
        ConfigError: it is another dtype, or h5py is not installed.
    """

    out: str | Path
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if find_spec("h5py") is None:
            raise ConfigError('HDF5 files need h5py: pip install "streamwsi[hdf5]"')

    @property
    def config(self) -> Mapping[str, Any]:
        """What identifies the features; not the folder."""
        return {"type": "features-hdf5", "dtype": self.dtype}

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        """The file's path."""
        return (str(Path(self.out) / f"{slide.id}.h5"),)

    def memory(self, plan: Plan, values: ValueType | None) -> int:
        """See `streamwsi.stages.HoldsOutput`."""
        if values is not None:
            check_vectors((plan.count, *values.shape))
        row = _ROW_BYTES if values is None else 2 * values.nbytes
        return min(_OPEN_BYTES, plan.count * row)

    @asynccontextmanager
    async def open(
        self, plan: Plan, recipe: Recipe, *, overwrite: bool
    ) -> AsyncIterator[ResumableWriter]:
        """The features of one slide.

        Raises:
            ConfigError: the windows are not square, or the output may not be overwritten.
            PlanChanged: the output was begun by another plan.
            CannotWrite: the output cannot be created.
        """
        kernel = kernel_of(plan)
        if kernel is not None and kernel.width != kernel.height:
            raise ConfigError(
                f"the HDF5 layout has one patch size for both axes and cannot tell windows of "
                f"{kernel}; choose a square kernel, or FeaturesZarr"
            )
        output = _File(Path(self.out), f"{plan.slide.ref.id}.h5", plan, recipe)
        output.dtype = self.dtype
        async with claimed(output, overwrite=overwrite):
            writer = _Writer(output)
            try:
                yield writer
            finally:
                await writer.close()


class _File(FileOutput):
    kind = "FeaturesHdf5"
    dtype: Dtype = "float32"

    @property
    def unfinished(self) -> Path:
        return self.hidden("unfinished")

    @property
    def paths(self) -> tuple[Path, ...]:
        return *super().paths, self.unfinished

    def is_there(self, record: dict[str, Any] | None) -> bool:
        # A finished file that was removed is not there, whatever the record says.
        finished = record is not None and record["state"]["pieces"] == record["state"]["total"]
        return self.path.exists() or (self.unfinished.exists() and not finished)

    def begin(self) -> None:
        # The record first: a file without one would not be recognised as ours.
        self.save()
        self.path.unlink(missing_ok=True)
        self.unfinished.unlink(missing_ok=True)
        if self.plan.count == 0:
            self.create(0).close()
            self.finish()

    def repair(self) -> None:
        if self.state.pieces == 0:
            # What there is may be older than the record.
            self.path.unlink(missing_ok=True)
            self.unfinished.unlink(missing_ok=True)
        elif not self.unfinished.exists():
            # All was written when the run died, but not yet recorded.
            self.path.rename(self.unfinished)
        elif self.path.exists():
            raise self.foreign(self.path, replaceable=True)

    def columns(self, dimensions: int) -> tuple[Column, ...]:
        """The datasets."""
        from .hdf5_tables import Column

        n, attributes = self.plan.count, patch_attributes(self.plan, kernel_of(self.plan))
        return (
            Column("features", (n, dimensions), self._float, {"name": attributes["name"]}),
            Column("coords", (n, 2), "<i8", attributes),
            Column("valid", (n,), "?"),
        )

    @property
    def _float(self) -> str:
        return "<f4" if self.dtype == "float32" else "<f2"

    def create(self, dimensions: int) -> Table:
        """The file, laid out."""
        from .hdf5_tables import create_table

        return create_table(self.unfinished, self.columns(dimensions))

    def reopen(self, dimensions: int) -> Table | None:
        """The file that an earlier run has begun; None where it holds something else."""
        from .hdf5_tables import open_table

        return open_table(self.unfinished, self.columns(dimensions))

    def finish(self) -> None:
        """Give the file its name, once all of it is durable."""
        if self.path.exists():
            raise FileExistsError(errno.EEXIST, "somebody else has put a file there")
        self.unfinished.rename(self.path)
        sync_folders([self.path.parent])


class _Writer(ResumableWriter):
    def __init__(self, output: _File) -> None:
        super().__init__(output)
        self._file = output
        self._features = FeatureRows(output.plan, output.dtype, output.path)
        self._table: Table | None = None

    async def close(self) -> None:
        if self._table is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._table.close)

    async def _put(self, pieces: Pieces[Any]) -> None:
        await anyio.to_thread.run_sync(self._write, pieces)

    def _write(self, pieces: Pieces[Any]) -> None:
        columns = self._features.of(pieces)
        if self._table is None:
            self._table = self._opened()
        self._table.write(pieces.places.start, *columns)

    def _opened(self) -> Table:
        if self.resume_at == 0:
            return self._file.create(self._features.dimensions)
        table = self._file.reopen(self._features.dimensions)
        if table is None:
            raise self._features.another_length()
        return table

    async def _flush(self) -> None:
        await anyio.to_thread.run_sync(self._sync)

    def _sync(self) -> None:
        assert self._table is not None
        self._table.sync()
        # Somebody may have removed the file, or put another one in its place.
        if not self._table.is_at(self._file.unfinished):
            raise OSError(errno.ESTALE, "the file was replaced by another one")
        sync_folders([self._file.path.parent])
        if self._pieces == self._file.state.total:
            self._file.finish()
