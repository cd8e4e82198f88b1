"""FirstOf: a source that asks other sources, in order, who can open a slide.

The command line reads whatever is installed through it. A file can look like two formats at
once (an SVS is a TIFF that OpenSlide knows as well), so that a source which accepts a slide
and then cannot open it hands it to the next; but not where it has found what no slide holds
(`NoSlide`). Where nobody accepts it, the error says what the
path is instead of a slide, for that is what a user got wrong.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread

from ..errors import CannotOpen, ConfigError, NoSlide
from ..slides import SlideRef
from ..stages import SlideReader, Source
from ..workers import Workers, worker_modules

__all__ = ["FirstOf"]


@dataclass(frozen=True, slots=True)
class FirstOf:
    """The first of several sources that opens the slide.

    Attributes:
        sources: in the order in which they are tried.

    Raises:
        ConfigError: there are none.
    """

    sources: tuple[Source, ...] = field(metadata={"role": "source", "several": "list"})

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("FirstOf needs at least one source")

    @property
    def worker_modules(self) -> tuple[str, ...]:
        """See `streamwsi.workers.DecodesInWorkers`."""
        return tuple(module for source in self.sources for module in worker_modules(source))

    def accepts(self, ref: SlideRef) -> bool:
        """Whether one of the sources does."""
        return any(_accepts(source, ref) for source in self.sources)

    def open(self, ref: SlideRef, workers: Workers) -> AbstractAsyncContextManager[SlideReader]:
        """A reader of the first source that accepts the slide and can open it.

        Raises:
            CannotOpen: on entering, where nobody can: the error of the first that accepted the
                slide, with the others' as notes.
        """
        return self._open(ref, workers)

    @asynccontextmanager
    async def _open(self, ref: SlideRef, workers: Workers) -> AsyncIterator[SlideReader]:
        errors: list[CannotOpen] = []
        for source in self.sources:
            # In a thread: accepting looks into files, and may import a plugin's library.
            if not await anyio.to_thread.run_sync(_accepts, source, ref):
                continue
            async with AsyncExitStack() as stack:
                try:
                    reader = await stack.enter_async_context(source.open(ref, workers))
                except NoSlide:
                    raise
                except CannotOpen as error:
                    errors.append(error)
                    continue
                yield reader
                return
        if not errors:
            names = [type(source).__name__.removesuffix("Source") for source in self.sources]
            raise CannotOpen(await anyio.to_thread.run_sync(_refusal, ref.uri, names))
        for other in errors[1:]:
            errors[0].add_note(f"tried next: {other}")
        raise errors[0]


def _accepts(source: Source, ref: SlideRef) -> bool:
    try:
        return source.accepts(ref)
    except Exception:
        # A plugin that breaks its promise must not take the others with it.
        return False


def _refusal(uri: str, names: list[str]) -> str:
    """What the path is, said for somebody who took it for a slide."""
    if problem := _problem(Path(uri)):
        return f"{uri}: {problem}"
    what = "is no slide of a format that can be read here"
    if Path(uri).is_dir():
        what = "is a folder, and no slide of a format that is one; name the slides in it"
    hint = "" if "OpenSlide" in names else "; for more formats: pip install streamwsi-openslide"
    return f"{uri}: {what} (tried {', '.join(names)}){hint}"


def _problem(path: Path) -> str | None:
    """Why the path cannot be a slide at all, if there is such a reason."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            next(path.iterdir(), None)
            return None
        if not stat.S_ISREG(status.st_mode):
            return "is not a regular file; copy the slide to a disk first"
        if status.st_size == 0:
            return "is empty; copy the slide again"
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        place = "slides are read from local paths only" if ":/" in str(path) else "check the path"
        return f"there is no such file; {place}"
    except PermissionError:
        return "may not be read; check its permissions"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error}); check the path"
    return None
