"""What commands share at the terminal: errors as sentences, signals, progress, exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import anyio
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from streamwsi.errors import ConfigError, StreamwsiError
from streamwsi.reports import Event, PiecesWritten, SlideEnded, SlideStarted

__all__ = [
    "Debug",
    "Interrupted",
    "Json",
    "ProgressBar",
    "errors_as_sentences",
    "fail",
    "interruptible",
    "print_json",
    "run_interruptible",
]

T = TypeVar("T")

Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


class Interrupted(Exception):
    """The person or the system asked the run to stop, and it did."""


def fail(message: str) -> None:
    """Say on stderr what went wrong."""
    # Not through rich: it would break paths in two and read [brackets] in them as markup.
    print(f"error: {message}", file=sys.stderr)


def print_json(value: Any) -> None:
    """The one object that a command prints with ``--json``."""
    print(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def errors_as_sentences(debug: bool) -> Iterator[None]:
    """Turn errors into one sentence on stderr and the exit code that belongs to them."""
    try:
        yield
    except Interrupted:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # Who reads what is printed has enough; what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if isinstance(error, typer.Exit):
            raise
        if debug:
            traceback.print_exc()
        known = isinstance(error, StreamwsiError)
        fail(str(error) if known else f"unexpected {type(error).__name__}: {error} (see --debug)")
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends blocking work as Ctrl-C does: nothing half-made is left behind.

    Raises:
        Interrupted: one of them came.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)


def run_interruptible(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main`; SIGINT or SIGTERM cancels it cleanly, a second one ends the process at once.

    Raises:
        Interrupted: `main` was cancelled and has ended.
    """

    async def watched() -> list[T]:
        results = []
        watching, work = anyio.CancelScope(), anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch_signals, watching, work)
            with work:
                results.append(await main())
            watching.cancel()
        return results

    try:
        results = anyio.run(watched)
    except BaseExceptionGroup as group:
        raise _only(group) from group
    except KeyboardInterrupt:
        raise Interrupted from None  # before the receiver was in place
    if not results:
        raise Interrupted
    return results[0]


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _watch_signals(watching: anyio.CancelScope, work: anyio.CancelScope) -> None:
    with watching, anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if work.cancel_called:
                os._exit(130)
            print("interrupted: ending cleanly; once more ends at once", file=sys.stderr)
            work.cancel()


class ProgressBar:
    """An observer that draws the run's progress on stderr, where that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} windows"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Take an event of the run."""
        if isinstance(event, SlideStarted):
            self._tasks[event.slide] = self._bar.add_task(
                event.slide.replace("[", "\\["), total=event.total, completed=event.resumed_at
            )
        elif isinstance(event, PiecesWritten):
            self._bar.advance(self._tasks[event.slide], event.count)
        elif isinstance(event, SlideEnded) and event.outcome.slide in self._tasks:
            self._bar.remove_task(self._tasks.pop(event.outcome.slide))
