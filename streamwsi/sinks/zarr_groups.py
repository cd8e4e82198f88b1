"""Outputs that are zarr v3 groups: one folder, the record in the group's attributes.

The group's ``zarr.json`` is written here, by hand, because the watermark in it has to be replaced
atomically and durably; and a finished output is recognised without importing zarr. The arrays are
zarr's (`streamwsi.sinks.zarr_arrays`); an *empty* one, that holds no chunk, is a document too.
"""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..chunks import Plan
from ..errors import ConfigError
from ..json_files import zarr_attributes
from ..stages import Recipe
from .base import Output
from .durable import sync_folders, write_json

__all__ = ["ZarrGroup", "empty_array"]


class ZarrGroup(Output):
    """A folder that is a zarr v3 group.

    Attributes:
        mark: the entry of the record that is there once the arrays are.
        begun: whether the arrays are on disk.
        told: further entries of the record: what the first pieces told.
        attributes: the group's attributes besides the record.
    """

    mark: ClassVar[str]

    def __init__(self, folder: Path, name: str, plan: Plan, recipe: Recipe) -> None:
        super().__init__(folder, name, plan, recipe)
        self.begun = False
        self.told: Mapping[str, Any] = {}
        self.attributes: Mapping[str, Any] = {}

    @abstractmethod
    def announce(self) -> None:
        """Make the group one of its kind, empty as yet, for who opens it before the first
        pieces come; and save it."""

    def read(self) -> dict[str, Any] | None:
        if not self.path.exists() or self._is_blank():
            return None
        record = zarr_attributes(self.path).get("streamwsi")
        if not isinstance(record, dict):
            raise self.foreign(self.path, replaceable=False)
        self.begun = self.mark in record
        return record

    def _is_blank(self) -> bool:
        """Whether there is only what an interrupted `begin` leaves."""
        return self.path.is_dir() and all(map(_is_temporary, self.path.iterdir()))

    def check_replaceable(self) -> None:
        self.read()  # a slide may be a zarr folder too: what bears no record of ours is left alone

    def begin(self) -> None:
        self.begun = False
        removed = self.hidden("removed")
        # A folder cannot be removed at once: first it loses its name.
        if removed.is_dir() and not removed.is_symlink():
            shutil.rmtree(removed)
        if self.path.exists():
            self.path.rename(removed)
            sync_folders([self.path.parent])
            shutil.rmtree(removed)
        self.path.mkdir()
        self.save()  # before the rest: from here on the folder is known as ours
        self.announce()

    def repair(self) -> None:
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                if Path(folder, name).is_symlink():
                    raise ConfigError(
                        f"{Path(folder, name)} is a symbolic link, and outputs are not written "
                        "through links; choose another folder, or --overwrite starts afresh"
                    )
        for path in filter(_is_temporary, [*self.path.iterdir()]):
            path.unlink()
        if not self.begun:
            self.announce()

    def write_array(self, name: str, document: Mapping[str, Any]) -> None:
        """Put an array that holds nothing into the group, durably."""
        folder = self.path / name
        folder.mkdir(exist_ok=True)
        write_json(folder / "zarr.json", document)
        sync_folders([folder, self.path])

    def save(self) -> None:
        attributes = {**self.attributes, "streamwsi": {**self.record, **self.told}}
        write_json(
            self.path / "zarr.json",
            {"zarr_format": 3, "node_type": "group", "attributes": attributes},
        )


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial")


def empty_array(
    shape: Sequence[int], chunks: Sequence[int], dtype: str, fill: Any, names: Sequence[str]
) -> dict[str, Any]:
    """The metadata of a zarr v3 array of that shape that holds nothing."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*shape],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*chunks]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
        "dimension_names": [*names],
    }
