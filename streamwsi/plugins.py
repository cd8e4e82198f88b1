"""Stages by name: entry points of the groups ``streamwsi.sources``, ``….samplers``,
``….processors`` and ``….sinks``; and ``….masks``, which samplers are made with.

The entry point's object is the stage's frozen dataclass. Built-in stages come by the same
road. Listing imports nothing; loading imports one stage, so that a broken plugin hurts only
who asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import AmbiguousStage, StageLoadError, UnknownStage

__all__ = ["ROLES", "InstalledStage", "installed", "load", "name_of"]

ROLES = ("source", "sampler", "mask", "processor", "sink")


@dataclass(frozen=True, slots=True)
class InstalledStage:
    """A stage that an installed distribution offers.

    Attributes:
        role: ``source``, ``sampler``, ``mask``, ``processor`` or ``sink``.
        name: kebab-case.
        distribution: who offers it.
        version: of the distribution.
        target: ``module:attribute``.
    """

    role: str
    name: str
    distribution: str
    version: str
    target: str


def _entry_points(role: str) -> list[EntryPoint]:
    if role not in ROLES:
        raise UnknownStage(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
    # The same distribution can be found twice (a checkout beside its installation).
    found = {(e.name, _dist(e)[0]): e for e in entry_points(group=f"streamwsi.{role}s")}
    return [found[key] for key in sorted(found)]


def _dist(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "unknown")


def installed(role: str | None = None) -> list[InstalledStage]:
    """The installed stages of a role, or of all; nothing is imported.

    Raises:
        UnknownStage: there is no such role.
    """
    return [
        InstalledStage(r, e.name, *_dist(e), e.value)
        for r in ([role] if role else ROLES)
        for e in _entry_points(r)
    ]


def load(role: str, name: str) -> type[Any]:
    """The stage of that role and name.

    Raises:
        UnknownStage: none is installed; the message lists what is.
        AmbiguousStage: several distributions offer it.
        StageLoadError: it cannot be imported.
    """
    entries = [e for e in _entry_points(role) if e.name == name]
    if not entries:
        names = ", ".join(sorted({e.name for e in _entry_points(role)}))
        raise UnknownStage(f"no {role} named {name!r} is installed; installed are: {names}")
    if len(entries) > 1:
        who = " and ".join(_dist(e)[0] for e in entries)
        raise AmbiguousStage(f"the {role} {name!r} is offered by {who}; uninstall one of them")
    entry = entries[0]
    try:
        stage = entry.load()
    except Exception as error:
        raise StageLoadError(
            f"the {role} {name!r} of {_dist(entry)[0]} cannot be loaded from {entry.value}: {error}"
        ) from error
    if not (isinstance(stage, type) and is_dataclass(stage)):
        raise StageLoadError(
            f"the {role} {name!r} of {_dist(entry)[0]} is {stage!r}, not a dataclass"
        )
    return stage


def name_of(role: str, stage: type[Any]) -> str:
    """The name under which a stage's class is installed.

    Raises:
        UnknownStage: it is not installed.
    """
    for entry in _entry_points(role):
        if entry.value == f"{stage.__module__}:{stage.__qualname__}":
            return entry.name
    raise UnknownStage(f"{stage.__qualname__} is not offered as a {role} by any entry point")
