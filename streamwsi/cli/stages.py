"""``streamwsi stages``: the installed stages."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from streamwsi import plugins

from .terminal import Debug, Json, errors_as_sentences, print_json

__all__ = ["stages"]


def stages(
    role: Annotated[
        str | None, typer.Argument(metavar="[ROLE]", help=" | ".join(plugins.ROLES))
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the installed stages by role, with the distribution that offers them."""
    with errors_as_sentences(debug):
        found = plugins.installed(role)
        if as_json:
            print_json({"stages": [asdict(stage) for stage in found]})
            return
        from rich.console import Console
        from rich.table import Table

        table = Table("role", "name", "distribution", "version", box=None, header_style="bold")
        for stage in found:
            table.add_row(stage.role, stage.name, stage.distribution, stage.version)
        Console().print(table)
