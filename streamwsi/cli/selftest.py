"""``streamwsi selftest``: whether outputs line up with the slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamwsi.limits import Limits
from streamwsi.slides import SlideRef

from .terminal import Debug, Json, errors_as_sentences, fail, print_json, run_interruptible

if TYPE_CHECKING:
    from streamwsi.selftest import Finding, Findings

__all__ = ["selftest"]


def selftest(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that outputs line up with the slide, to less than half a level-0 pixel.

    Synthetic fiducials take the place of the slide's pixels, on its own pyramid. They are sent
    through every resolution, stride, blend, sink and export, and looked for where each output says
    that they are. It takes about a minute, and nothing stays on the disk.
    """
    with errors_as_sentences(debug):
        found = run_interruptible(lambda: _check(slide, quiet=as_json))
        if as_json:
            print_json(_record(slide, found))
        else:
            _print(found)
        if found.failures:
            fail(_sentence(slide, found))
            raise typer.Exit(1)


async def _check(path: Path, *, quiet: bool) -> Findings:
    from rich.console import Console
    from rich.progress import Progress

    from streamwsi.selftest import check_alignment
    from streamwsi.workers import open_workers

    from .opening import any_source

    async with (
        open_workers(Limits(workers=1)) as workers,
        any_source().open(SlideRef.of(path), workers) as reader,
    ):
        slide = reader.slide
    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=quiet or not console.is_terminal
    ) as progress:
        bar = progress.add_task("checking", total=None)
        return await check_alignment(
            slide, done=lambda done, total: progress.update(bar, completed=done, total=total)
        )


def _print(found: Findings) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from streamwsi.selftest import TOLERANCE

    console = Console(highlight=False)
    table = Table("windows", "output", box=None, header_style="bold")
    table.add_column("error", justify="right")
    windows = ""
    for finding in found.findings:
        off = not finding.error < TOLERANCE
        shown = finding.windows if finding.windows != windows else ""
        windows = finding.windows
        error = Text(f"{finding.error:.3f}", style="bold red" if off else "")
        table.add_row(Text(shown), Text(finding.output), error)
    console.print(table)
    for text in found.left_out:
        console.print(Text(f"not checked: {text}"), soft_wrap=True)
    worst = found.worst
    console.print(
        Text(
            f"worst error {worst.error:.3f} level-0 pixels of {len(found.findings)} measured: "
            f"{_named(worst)}"
        ),
        soft_wrap=True,
    )


def _named(finding: Finding) -> str:
    return f"{finding.output} of {finding.windows}"


def _sentence(slide: Path, found: Findings) -> str:
    """What is wrong."""
    from streamwsi.selftest import TOLERANCE

    worst, count = found.worst, len(found.failures)
    if worst.problem:
        what = f"{_named(worst)} cannot be checked: {worst.problem}"
    elif math.isinf(worst.error):
        what = f"{_named(worst)} does not show a fiducial"
    else:
        what = f"{_named(worst)} is off by {worst.error:.3f} level-0 pixels"
    of = f"{count} of {len(found.findings)} outputs do not line up with the slide"
    return (
        f"{slide}: {of} to less than {TOLERANCE} pixels; {what}; do not trust places in such "
        "outputs, and report it with the table above"
    )


def _record(slide: Path, found: Findings) -> dict[str, Any]:
    from streamwsi.selftest import TOLERANCE

    return {
        "slide": str(slide),
        "passed": not found.failures,
        "tolerance": TOLERANCE,
        "worst": _finding(found.worst),
        "findings": [_finding(finding) for finding in found.findings],
        "left_out": found.left_out,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    """Errors that are not finite are null."""
    error = finding.error if math.isfinite(finding.error) else None
    record: dict[str, Any] = {"windows": finding.windows, "output": finding.output, "error": error}
    return record | ({"problem": finding.problem} if finding.problem else {})
