"""Pipelines as values, and their way to TOML and back."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi import plugins
from streamwsi.errors import ConfigError, StageMismatch, UnknownStage
from streamwsi.pipelines import Pipeline, from_toml, to_toml
from streamwsi.samplers import SlidingWindow
from streamwsi.sources.memory import MemorySource
from streamwsi.testing.faults import Checksums, RecordingSink


@dataclass(frozen=True)
class BareSource:
    """A source without a field."""

    def accepts(self, ref: Any) -> bool:
        return False

    def open(self, ref: Any, workers: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Everything(RecordingSink):
    """A sink with a field of each kind that TOML knows."""

    folder: str = "out"
    path: Path = Path("x")
    whole: int = 1
    real: float = 0.5
    switch: bool = False
    some: tuple[Any, ...] = ()
    made: tuple[int, ...] = field(default_factory=lambda: (1, 2))
    thing: Any = None


STAGES: dict[tuple[str, str], type[Any]] = {
    ("source", "bare"): BareSource,
    ("sampler", "sliding-window"): SlidingWindow,
    ("processor", "checksums"): Checksums,
    ("sink", "everything"): Everything,
}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """These stages, and no others, are installed."""

    def load(role: str, name: str) -> type[Any]:
        if (role, name) not in STAGES:
            raise UnknownStage(f"no {role} named {name!r}")
        return STAGES[role, name]

    def name_of(role: str, stage: type[Any]) -> str:
        names = [n for (r, n), installed in STAGES.items() if (r, installed) == (role, stage)]
        if not names:
            raise UnknownStage(f"{stage.__qualname__} is not offered")
        return names[0]

    monkeypatch.setattr(plugins, "load", load)
    monkeypatch.setattr(plugins, "name_of", name_of)


def pipeline(**stages: Any) -> Pipeline[Any]:
    defaults: dict[str, Any] = {
        "source": BareSource(),
        "sampler": SlidingWindow(64),
        "processor": Checksums(),
        "sink": Everything(),
    }
    return Pipeline(**(defaults | stages))


TEXT = """
[source]
type = "bare"
[sampler]
type = "sliding-window"
kernel_size = [64, 32]
stride = 16
[processor]
type = "checksums"
[sink]
type = "everything"
"""


def test_toml_names_the_stages_and_their_fields(tmp_path: Path) -> None:
    made = from_toml(TEXT)
    assert made.sampler == SlidingWindow((64, 32), 16)
    assert made.processor == Checksums()
    (tmp_path / "p.toml").write_text(TEXT)
    assert from_toml(tmp_path / "p.toml").sampler == made.sampler


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)
@given(folder=texts, real=st.floats(allow_nan=False), switch=st.booleans(), some=st.tuples(values))
def test_fields_come_back_as_they_were(
    folder: str, real: float, switch: bool, some: tuple[Any, ...]
) -> None:
    sink = Everything(folder=folder, real=real, switch=switch, some=some)
    tables = tomllib.loads(to_toml(pipeline(sink=sink)))
    back = {key: as_tuples(value) for key, value in tables["sink"].items() if key != "type"}
    assert Everything(**back).__dict__ == sink.__dict__


def as_tuples(value: Any) -> Any:
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def test_defaults_are_left_out() -> None:
    assert to_toml(pipeline(processor=Checksums(batch_size=3))) == (
        '[source]\ntype = "bare"\n\n[sampler]\ntype = "sliding-window"\nkernel_size = 64\n\n'
        '[processor]\ntype = "checksums"\nbatch_size = 3\n\n[sink]\ntype = "everything"\n'
    )


def test_a_pipeline_comes_back_from_its_toml() -> None:
    made = pipeline(sampler=SlidingWindow((64, 32), 16, 2), processor=Checksums(4, delay_s=0.5))
    back = from_toml(to_toml(made))
    assert (back.source, back.sampler, back.processor) == (
        made.source,
        made.sampler,
        made.processor,
    )


def test_what_toml_cannot_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sink\.thing holds .*, which TOML cannot name"):
        to_toml(pipeline(sink=Everything(thing=object())))
    with pytest.raises(UnknownStage, match="RecordingSink is not offered"):
        to_toml(pipeline(sink=RecordingSink()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[sampler]", "[samplers]"), "it does not know 'samplers'"),
        (('[sink]\ntype = "everything"', ""), r"it lacks \[sink\]"),
        (('type = "checksums"', ""), r"\[processor\] needs a type"),
        (('type = "checksums"', "type = 3"), r"\[processor\] needs a type"),
        (('[processor]\ntype = "checksums"', ""), r"it lacks \[processor\]"),
        (("stride", "strides"), r"\[sampler\] .* no field 'strides'; did you mean 'stride'"),
        (("stride = 16", "stride = 0"), "stride 0×0 must be at least 1"),
        (("stride = 16", 'stride = "a"'), "'a' is not a size"),
        (('type = "checksums"', 'type = "checksum"'), "no processor named 'checksum'"),
        (("[sink]", "[sink"), "cannot be read"),
        (
            ('type = "everything"', 'type = "everything"\nfail_at = 1\nfail_at = 2'),
            "cannot be read",
        ),
    ],
)
def test_a_mistake_in_toml_is_named(change: tuple[str, str], says: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ConfigError, match=says):
        from_toml(TEXT.replace(*change))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        from_toml(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(TEXT.encode() + b"# \xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_toml(tmp_path / "latin.toml")


def test_a_stage_that_needs_a_field_says_so() -> None:
    STAGES["source", "bare"] = MemorySource
    try:
        with pytest.raises(ConfigError, match=r"\[source\] bare: .*slides"):
            from_toml(TEXT)
    finally:
        STAGES["source", "bare"] = BareSource


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ({"sampler": RecordingSink()}, "cannot be the sampler: it lacks plan, smallchunks"),
        ({"source": None}, "cannot be the source: it lacks accepts, open"),
        ({"processor": Checksums}, r"cannot be the processor.*it is a class: give an instance"),
    ],
)
def test_a_stage_in_the_wrong_place_is_refused(stages: dict[str, Any], says: str) -> None:
    with pytest.raises(StageMismatch, match=says):
        pipeline(**stages)


def test_pipelines_compare_as_values() -> None:
    assert pipeline(sink=SINK) == pipeline(sink=SINK)
    assert pipeline(sink=SINK) != pipeline(sink=SINK, sampler=SlidingWindow(65))
    assert "kernel_size=64" in repr(pipeline())


SINK = Everything()
