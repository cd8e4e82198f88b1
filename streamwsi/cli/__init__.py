"""The command line: one module per command, and what they share.

Exit codes: 0 all done, 1 some slides failed, 2 wrong usage or configuration, 130 interrupted.
What a person reads goes to stderr, except for the results; with ``--json`` stdout carries one
JSON object and nothing else.
"""

from __future__ import annotations

import typer

from . import demo, export, heatmap, info, raster, selftest, stages, tissue

__all__ = ["app", "main"]

app = typer.Typer(
    name="streamwsi",
    help="Stream whole-slide images through PyTorch models: heatmaps, exact and in bounded memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("heatmap")(heatmap.heatmap)
app.command("info")(info.info)
app.command("export")(export.export)
app.command("raster")(raster.raster)
app.command("tissue")(tissue.tissue)
app.command("selftest")(selftest.selftest)
app.command("stages")(stages.stages)
app.command("demo")(demo.demo)


def main() -> None:
    """The console script."""
    app()
