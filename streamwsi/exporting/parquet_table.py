"""A heatmap as a Parquet file: see `streamwsi.exporting.cell_rows` for its columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .cell_rows import FACTS, cell_rows, value_names
from .heatmap import Heatmap, open_heatmap
from .replacing import replacing

__all__ = ["export_parquet"]


def export_parquet(
    heatmap: str | Path,
    out: str | Path,
    *,
    label: str | None = None,
    every: bool = False,
    overwrite: bool = False,
) -> int:
    """Write a row per cell, a row group per block of chunks; blocks: call it in a thread.

    The schema's metadata hold, under ``streamwsi``, the slide's name, level-0 size and mpp.

    Args:
        heatmap: the folder of a heatmap.
        out: the file.
        label: a label image of the group, instead of the heatmap itself.
        every: also the cells that were not computed, or left out by a mask.
        overwrite: replace a file that is there.

    Returns:
        How many rows there are.

    Raises:
        ConfigError: pyarrow is missing, or the file is there already.
        CannotOpen: there is no heatmap, or it holds no values yet.
        CannotRead: a chunk of it cannot be read.
        CannotWrite: the file cannot be written.
    """
    pyarrow, parquet = _pyarrow()
    source = open_heatmap(heatmap, label)
    schema = _schema(pyarrow, source)
    count = 0
    with (
        replacing(Path(out), overwrite, source.record) as made,
        parquet.ParquetWriter(made, schema, compression="zstd") as file,
    ):
        for columns in cell_rows(source, every):
            if len(columns[0]):
                file.write_table(pyarrow.table([*map(pyarrow.array, columns)], schema=schema))
            count += len(columns[0])
    return count


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError('Parquet files need pyarrow: pip install "streamwsi[export]"') from error
    return pyarrow, pyarrow.parquet


def _schema(pyarrow: Any, heatmap: Heatmap) -> Any:
    record = heatmap.record
    about = {"slide": record.slide, "width": record.size[0], "height": record.size[1]}
    facts = [pyarrow.int64()] * 2 + [pyarrow.float64()] * 4 + [pyarrow.uint8()]
    value = pyarrow.from_numpy_dtype(heatmap.levels[0].dtype)
    fields = [*zip(FACTS, facts, strict=True), *((n, value) for n in value_names(heatmap))]
    metadata = json.dumps(about | {"mpp": record.mpp, "unit": "level-0 pixels"})
    return pyarrow.schema(fields, metadata={"streamwsi": metadata})
