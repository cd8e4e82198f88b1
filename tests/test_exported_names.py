"""Every module says what it exports, and importing the package loads nothing heavy."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import streamwsi

ROOT = Path(__file__).parents[1] / "streamwsi"
MODULES = sorted(
    ".".join(("streamwsi", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py" and path.read_text().strip()
)
HEAVY = ("torch", "zarr", "tifffile", "imagecodecs", "h5py")


@pytest.mark.parametrize("name", MODULES)
def test_exported_names_are_sorted_and_exist(name: str) -> None:
    module = importlib.import_module(name)
    names = module.__all__
    # Constants, classes, functions: the order that ruff keeps.
    assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert len(names) == len({*names})
    assert [n for n in names if not hasattr(module, n)] == []


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are_for(name: str) -> None:
    assert importlib.import_module(name).__doc__


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {*run.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_after("import streamwsi")
    assert "streamwsi" in loaded
    assert loaded & {*HEAVY, "numpy", "anyio", "asyncio", "typer", "rich"} == set()


def test_importing_the_stages_loads_nothing_heavy() -> None:
    """They are constructed long before they run, if they run at all."""
    loaded = loaded_after(
        "import streamwsi.samplers, streamwsi.sources, streamwsi.sinks, streamwsi.processors, "
        "streamwsi.sources.tiff, streamwsi.sources.zarr, streamwsi.sinks.heatmap_zarr, "
        "streamwsi.sinks.pdmcsv, streamwsi.processors.torch_module, "
        "streamwsi.samplers.sliding_window, streamwsi.runs"
    )
    assert "streamwsi.sinks.heatmap_zarr" in loaded
    assert loaded & {*HEAVY} == set()


def test_the_package_gives_its_names_on_first_use() -> None:
    assert [n for n in streamwsi.__all__ if not hasattr(streamwsi, n)] == []
    with pytest.raises(AttributeError, match="nonsense"):
        _ = streamwsi.nonsense
