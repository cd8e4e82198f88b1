"""A run at the terminal: its progress while it goes on, its report at the end."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from streamwsi.reports import Event, RunReport, SlideEnded, SlideOutcome

from .terminal import Interrupted, ProgressBar, fail, print_json, run_interruptible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamwsi.limits import Limits
    from streamwsi.pipelines import Pipeline
    from streamwsi.slides import SlideRef

__all__ = ["run_reported"]


def run_reported(
    pipeline: Pipeline[Any],
    slides: Sequence[Path | SlideRef],
    limits: Limits,
    overwrite: bool,
    as_json: bool,
) -> RunReport:
    """Run, with a progress bar, and print the report.

    Raises:
        Interrupted: after printing what was done until then.
    """
    from streamwsi.runs import run

    ended: list[SlideOutcome] = []

    def remember(event: Event) -> None:
        if isinstance(event, SlideEnded):
            ended.append(event.outcome)

    with ProgressBar() as progress:

        async def main() -> RunReport:
            return await run(
                pipeline,
                slides,
                limits=limits,
                overwrite=overwrite,
                observers=(remember, progress),
            )

        try:
            # What models print must not stand before the one object.
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                report = run_interruptible(main)
        except Interrupted:
            progress.__exit__()
            _print_report(RunReport(tuple(ended), sum(o.seconds for o in ended)), as_json)
            raise
    _print_report(report, as_json)
    return report


def _print_report(report: RunReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    for outcome in report.outcomes:
        if outcome.status == "failed":
            fail(outcome.error or "unknown")
        elif outcome.status == "interrupted":
            print(f"interrupted: {outcome.uri}; the same command completes it", file=sys.stderr)
        elif not as_json:
            print(_line(outcome))
        if outcome.status == "done" and outcome.invalid == outcome.total > 0:
            print(
                f"warning: {outcome.uri}: not one of its {outcome.total:,} windows could be "
                "computed; see that the file is whole",
                file=sys.stderr,
            )


def _line(outcome: SlideOutcome) -> str:
    facts = [f"{outcome.pieces:,} windows in {outcome.seconds:.1f} s"]
    facts += _resampling(outcome)
    if outcome.resumed_at:
        facts = [f"{outcome.resumed_at:,} windows were there already", *facts]
    if outcome.damaged_tiles:
        facts.append(f"{outcome.damaged_tiles} tiles could not be read")
    if outcome.invalid:
        facts.append(f"{outcome.invalid:,} windows are NaN for it")
    if outcome.filled:
        facts.append(f"{outcome.filled:,} windows were computed with a colour in their place")
    if outcome.distinct_tiles:
        facts.append(f"each tile decoded {outcome.amplification:.2f} times")
    if outcome.tiles_saved:
        facts.append(f"{outcome.tiles_saved:,} tiles outside the mask were not decoded")
    return f"{outcome.uri} -> {', '.join(outcome.outputs)} ({'; '.join(facts)})"


def _resampling(outcome: SlideOutcome) -> list[str]:
    """What was read in place of the pixel size that was asked for."""
    resolution = outcome.resolution
    if resolution is None or "tolerance" not in resolution:
        return []
    x, y = resolution["factor"]
    by = "as it is" if x == y == 1 else f"resampled by {x:.4g}" + (f"×{y:.4g}" if x != y else "")
    return [f"level {resolution['level']} {by} (tolerance {resolution['tolerance']:.2g})"]
