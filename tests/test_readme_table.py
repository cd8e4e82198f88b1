"""README says what happens when something goes wrong, and which test shows it: they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rows() -> list[list[str]]:
    """The cells of the table's rows."""
    text = (ROOT / "README.md").read_text()
    section = text.split("### What happens when …")[1].split("\n## ")[0]
    # A vertical bar within a cell is escaped.
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]


PYDMED = [
    "SlidingWindowDL",
    "mininterval_loadnewbigchunk",
    "type_bigchunkloader",
    "type_smallchunkcollector",
    "tfms_onsmallchunkcollection",
    "tfms",
    "process_pieceofstream",
    "get_flag_finishcollecting",
    "saveall",
    "accum",
    "stream_to_file",
    "StreamWriter",
    "fname_tosave",
    "waiting_time_before_flush",
    "flag_visualizestats",
    "Tensor3DtoPdmcsvrow",
    "pdmcsvtoarray",
    "DefaultWSIxyWHvaltoRasterPoints",
    "scale_upsampleraster",
]


def test_coming_from_pydmed_names_everything() -> None:
    section = (ROOT / "README.md").read_text().split("## Coming from PyDmed")[1].split("\n## ")[0]
    left = "\n".join(line.split(" | ")[0] for line in section.splitlines())
    assert [name for name in PYDMED if not re.search(rf"\b{name}\b", left)] == []


def functions() -> set[str]:
    """Names of all test functions beside this file."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_names_a_test_that_exists() -> None:
    existing = functions()
    assert len(rows()) >= 20
    for when, then, name in rows():
        assert when.strip(), then
        found = re.fullmatch(r" `(test_\w+)` ", name)
        assert found is not None, name
        assert found[1] in existing
