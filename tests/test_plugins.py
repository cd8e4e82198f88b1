"""Plugins, by the road that installed ones come: folders of metadata on the import path."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from streamwsi import plugins
from streamwsi.errors import AmbiguousStage, StageLoadError, UnknownStage

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution that offers samplers; code for them goes into a module."""

    def install_(name: str, stages: dict[str, str], code: str = "", folder: str = "site") -> None:
        site = tmp_path / folder
        info = site / f"{name}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        entries = "\n".join(f"{key} = {value}" for key, value in stages.items())
        (info / "entry_points.txt").write_text(f"[streamwsi.samplers]\n{entries}\n")
        (site / f"{name}_code.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(site)

    return install_


CODE = """
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Diagonal:
        step: int = 1
    class Plain: ...
    def function(): ...
"""


def test_the_built_in_stages_come_by_the_same_road() -> None:
    found = {(s.role, s.name): s for s in plugins.installed()}
    assert found["sampler", "sliding-window"] == plugins.InstalledStage(
        "sampler",
        "sliding-window",
        "streamwsi",
        found["sampler", "sliding-window"].version,
        "streamwsi.samplers.sliding_window:SlidingWindow",
    )
    assert {("source", "tiff"), ("sink", "heatmap-zarr"), ("processor", "torch-module")} <= {*found}


@pytest.mark.parametrize("stage", plugins.installed(), ids=lambda s: f"{s.role}-{s.name}")
def test_every_installed_stage_loads_and_knows_its_name(stage: plugins.InstalledStage) -> None:
    loaded = plugins.load(stage.role, stage.name)
    assert plugins.name_of(stage.role, loaded) == stage.name


def test_an_installed_plugin_is_found_and_loaded(install: Install) -> None:
    install("nicewsi", {"diagonal": "nicewsi_code:Diagonal"}, CODE)
    stages = plugins.installed("sampler")
    assert [s.name for s in stages] == sorted(s.name for s in stages)
    (mine,) = [s for s in stages if s.distribution == "nicewsi"]
    assert (mine.name, mine.version, mine.target) == ("diagonal", "1.5", "nicewsi_code:Diagonal")
    loaded = plugins.load("sampler", "diagonal")
    assert loaded(step=3).step == 3
    assert plugins.name_of("sampler", loaded) == "diagonal"


def test_listing_imports_nothing(install: Install) -> None:
    install("quietwsi", {"quiet": "quietwsi_code:Quiet"}, "raise RuntimeError('imported')")
    assert "quiet" in {s.name for s in plugins.installed()}
    assert "quietwsi_code" not in sys.modules


def test_a_broken_plugin_hurts_only_who_asks_for_it(install: Install) -> None:
    install("brokenwsi", {"broken": "brokenwsi_code:Broken"}, "raise RuntimeError('no licence')")
    assert plugins.load("sampler", "sliding-window")
    with pytest.raises(
        StageLoadError,
        match=r"the sampler 'broken' of brokenwsi cannot be loaded from brokenwsi_code:Broken: no",
    ):
        plugins.load("sampler", "broken")


@pytest.mark.parametrize("target", ["Plain", "function", "Missing"])
def test_what_is_no_dataclass_is_refused(install: Install, target: str) -> None:
    install(f"odd{target.lower()}", {"odd": f"odd{target.lower()}_code:{target}"}, CODE)
    with pytest.raises(StageLoadError, match=rf"the sampler 'odd' of odd{target.lower()}"):
        plugins.load("sampler", "odd")


def test_a_name_offered_twice_is_an_error_that_names_both(install: Install) -> None:
    install("onewsi", {"twice": "onewsi_code:Diagonal"}, CODE)
    install("twowsi", {"twice": "twowsi_code:Diagonal"}, CODE)
    with pytest.raises(AmbiguousStage, match="offered by onewsi and twowsi; uninstall one"):
        plugins.load("sampler", "twice")


def test_one_distribution_found_twice_is_one(install: Install) -> None:
    """A checkout beside its installation."""
    install("samewsi", {"same": "samewsi_code:Diagonal"}, CODE, "a")
    install("samewsi", {"same": "samewsi_code:Diagonal"}, CODE, "b")
    assert plugins.load("sampler", "same")
    assert [s.name for s in plugins.installed("sampler")].count("same") == 1


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(UnknownStage, match=r"no sampler named 'slide' .*: .*sliding-window"):
        plugins.load("sampler", "slide")
    with pytest.raises(UnknownStage, match="no role 'samplers'; the roles are source, sampler"):
        plugins.load("samplers", "slide")
    with pytest.raises(UnknownStage, match="InstalledStage is not offered as a sink"):
        plugins.name_of("sink", plugins.InstalledStage)
