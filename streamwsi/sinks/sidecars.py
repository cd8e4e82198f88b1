"""Outputs that are one file, with the record in a file of its own beside it: ``NAME.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..json_files import read_json
from .base import Output
from .durable import write_json
from .records import State

__all__ = ["FileOutput"]


class FileOutput(Output):
    """A file and its sidecar."""

    @property
    def sidecar(self) -> Path:
        """The record's path."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def paths(self) -> tuple[Path, ...]:
        return *super().paths, self.sidecar

    def owns(self, state: State) -> bool:
        """Whether this is a state that outputs of this kind have."""
        return True

    def recorded(self) -> dict[str, Any] | None:
        """The record; None where there is no sidecar.

        Raises:
            ConfigError: the sidecar is not ours.
        """
        document = read_json(self.sidecar)
        if document is None and not self.sidecar.exists():
            return None
        record = (document or {}).get("streamwsi")
        state = State.from_json(record.get("state")) if isinstance(record, dict) else None
        if state is None or not self.owns(state):
            raise self.foreign(self.sidecar, replaceable=False)
        assert isinstance(record, dict)
        return record

    def read(self) -> dict[str, Any] | None:
        record = self.recorded()
        if self.path.exists() and (record is None or not self.path.is_file()):
            raise self.foreign(self.path, replaceable=self.path.is_file())
        # A sidecar without its file is what an interrupted `begin` leaves: nothing is lost.
        return record if self.is_there(record) else None

    def is_there(self, record: dict[str, Any] | None) -> bool:
        """Whether the file that a record tells of is on the disk."""
        return self.path.exists()

    def check_replaceable(self) -> None:
        self.recorded()
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(
                f"{self.path} exists and is not a file, so it is not overwritten; choose "
                "another folder"
            )

    def save(self) -> None:
        write_json(self.sidecar, {"streamwsi": self.record})
