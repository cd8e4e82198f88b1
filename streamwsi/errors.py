"""What can go wrong, as one tree::

    StreamwsiError
    ├── ConfigError            wrong usage or configuration; nothing was read or written
    │   ├── UnknownStage       no stage of that name is installed
    │   ├── AmbiguousStage     two distributions offer the same name
    │   ├── StageLoadError     a stage is installed but cannot be imported
    │   ├── StageMismatch      two stages of a pipeline do not fit each other
    │   └── PlanChanged        an output on disk was made by another plan
    ├── SlideError             this slide cannot be done; other slides go on
    │   ├── CannotOpen         not a slide this source can read
    │   │   └── NoSlide        nor one that any other source could read
    │   ├── LevelNotFound      the slide has no such level
    │   ├── CannotRead         pixels that were promised cannot be had
    │   ├── CannotProcess      the model or function failed on a batch
    │   ├── CannotWrite        the output cannot be written
    │   └── SlideFailed        the outcome of a lane: the slide, the stage and the cause
    ├── WorkerDied             a worker process ended in the middle of a job
    └── ContractBroken         a stage broke a rule of `streamwsi.stages`

Every message is one sentence for the person at the keyboard: it names the slide or the
setting, says what is wrong and what to do. Foreign exceptions are translated at one place
per stage, with the original chained.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousStage",
    "CannotOpen",
    "CannotProcess",
    "CannotRead",
    "CannotWrite",
    "ConfigError",
    "ContractBroken",
    "LevelNotFound",
    "NoSlide",
    "PlanChanged",
    "SlideError",
    "SlideFailed",
    "StageLoadError",
    "StageMismatch",
    "StreamwsiError",
    "UnknownStage",
    "WorkerDied",
    "first_line",
]


class StreamwsiError(Exception):
    """Base of all errors that streamwsi raises on purpose."""


class ConfigError(StreamwsiError):
    """Wrong usage or configuration; nothing was read or written."""


class UnknownStage(ConfigError):
    """No installed distribution offers a stage of that name."""


class AmbiguousStage(ConfigError):
    """Two installed distributions offer a stage of the same name."""


class StageLoadError(ConfigError):
    """A stage's entry point exists but importing it failed."""


class StageMismatch(ConfigError):
    """Two stages of a pipeline do not fit each other."""


class PlanChanged(ConfigError):
    """The output on disk was made by another plan; the message names what differs."""


class SlideError(StreamwsiError):
    """This slide cannot be done; other slides go on."""


class CannotOpen(SlideError):
    """The file is not a slide that the source can read."""


class NoSlide(CannotOpen):
    """The file was understood, and what it holds is no slide (a stack, say, or samples that are no
    intensities of 8 or 16 bits): a reader that gives a picture all the same gives a part of it."""


class LevelNotFound(SlideError):
    """The slide has no such pyramid level."""


class CannotRead(SlideError):
    """Pixels that the slide's header promised cannot be had."""


class CannotProcess(SlideError):
    """The processor failed on a batch, or returned something unusable."""


class CannotWrite(SlideError):
    """The output cannot be written."""


class SlideFailed(SlideError):
    """The outcome of a lane that ended early.

    Attributes:
        slide: the slide's id.
        stage: ``"read"``, ``"sample"``, ``"process"`` or ``"write"``.

    The cause is chained as ``__cause__``; its message is this one's.
    """

    def __init__(self, slide: str, stage: str, message: str) -> None:
        super().__init__(message)
        self.slide = slide
        self.stage = stage

    def __reduce__(self) -> tuple[type[SlideFailed], tuple[str, str, str]]:
        return type(self), (self.slide, self.stage, str(self))


class WorkerDied(StreamwsiError):
    """A worker process ended in the middle of a job (crash in a codec, out of memory, killed)."""


class ContractBroken(StreamwsiError):
    """A stage broke a rule of `streamwsi.stages`; the message names the rule."""


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that some libraries add to it."""
    if isinstance(error, SystemExit):
        return "it asked the program to exit"
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
