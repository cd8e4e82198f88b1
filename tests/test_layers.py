"""Imports inside the package go one way, those for type checking included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "streamwsi"
# Each of these may import those before it.
ENGINE = ["lazy_imports", "errors", "apart", "json_files", "functions", "boxes", "geometry"]
ENGINE += ["limits", "heaps", "slides"]
ENGINE += ["manifests", "resolutions", "chunks", "values", "resampling", "blocks", "worker_child"]
ENGINE += ["zygote_child", "zygote", "paces", "workers", "stages", "reports", "links", "batches"]
ENGINE += ["touched", "budgets", "resampled_readers", "lanes", "plugins", "stage_tables"]
ENGINE += ["pipelines", "runs"]
ENGINE += ["mixing", "slots", "streams", "torch_dataset"]
VALUES, FRAME = ENGINE[: ENGINE.index("blocks")], ENGINE[: ENGINE.index("links")]
FORMATS = ["pdmcsv", "heatmaps", "blending", "mosaics", "tissue"]
STAGES = ["sources", "samplers", "processors", "sinks"]
OUTER = ["pictures", "thumbnails", "exporting", "selftest", "testing"]
MAY_IMPORT = {
    **{name: ENGINE[:i] for i, name in enumerate(ENGINE)},
    **dict.fromkeys([*FORMATS, "pictures"], VALUES),
    "mosaics": [*VALUES, "heatmaps", "blending"],
    **dict.fromkeys(STAGES, FRAME + FORMATS),
    "thumbnails": FRAME,
    "exporting": [*FRAME, "pictures", "thumbnails", "sources", "sinks"],
    "selftest": ENGINE + FORMATS + STAGES + ["exporting"],
    "testing": ENGINE + FORMATS + STAGES,
    "cli": ENGINE + FORMATS + STAGES + OUTER,
    "__init__": ENGINE,
    "__main__": ["cli"],
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules and packages directly under streamwsi that a file imports."""
    package = ("streamwsi", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *(node.module or "").split(".")] if node.module else [*base]
            targets = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from (target[1] for target in targets if target[0] == "streamwsi" and target[1:])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    assert own in MAY_IMPORT, f"{own} has no place among the layers: give it one"
    assert {*imports(path)} <= {own, *MAY_IMPORT[own]}


def test_the_imports_are_seen() -> None:
    """All ways to write them."""
    assert {"errors", "geometry", "slides"} <= {*imports(ROOT / "chunks.py")}
    assert "pipelines" in {*imports(ROOT / "__init__.py")}  # under TYPE_CHECKING
    assert "zygote_child" in {*imports(ROOT / "zygote.py")}  # from . import
    assert "scroll" not in {*imports(ROOT / "sources" / "base.py")}  # its own package
    assert "sources" in {*imports(ROOT / "sources" / "base.py")}
