"""PerSlide: a sampler of its own for each slide that a list says something about.

::

    slides = find_slides(["cohort.csv"])    # columns path, mpp
    sampler = PerSlide.of(slides, lambda **options: SlidingWindow(256, **options))

A slide's plan is that of its sampler alone, so that its output has the very bytes of a run with
that sampler: either may complete what the other began, and a changed column is a changed plan.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..chunks import BigChunk, Plan, SmallChunks
from ..errors import ConfigError
from ..manifests import Listed, raise_problems
from ..slides import Slide, SlideRef
from ..stages import NeedsPixels, Sampler, SlideReader

__all__ = ["PerSlide"]


@dataclass(frozen=True, slots=True)
class PerSlide:
    """Chooses the sampler by the slide's id.

    Attributes:
        default: for slides without one of their own.
        samplers: the others, by the slide's id.
    """

    default: Sampler = field(metadata={"role": "sampler"})
    samplers: Mapping[str, Sampler] = field(
        default_factory=dict, hash=False, metadata={"role": "sampler", "several": "mapping"}
    )

    @classmethod
    def of(cls, slides: Iterable[Listed], make: Callable[..., Sampler]) -> PerSlide:
        """The samplers for slides of a list.

        Args:
            slides: what `streamwsi.manifests.find_slides` returns.
            make: called with a slide's options as keywords (and with none for those that have
                none), once for slides that share them.

        Raises:
            ConfigError: it did, for one or more of the slides: all of them at once.
        """
        made: dict[tuple[tuple[str, object], ...], Sampler | ConfigError] = {}
        samplers: dict[str, Sampler] = {}
        default, problems = make(), []
        for slide in slides:
            if not slide.options:
                continue
            key = tuple(slide.options.items())
            if key not in made:
                made[key] = _made(make, slide.options)
            sampler = made[key]
            if isinstance(sampler, ConfigError):
                problems.append(f"{slide.ref.uri}: {sampler}")
            else:
                samplers[slide.ref.id] = sampler
        raise_problems("the slides", problems)
        return cls(default, samplers)

    def of_slide(self, ref: SlideRef) -> Sampler:
        """The sampler for a slide."""
        return self.samplers.get(ref.id, self.default)

    def needs_pixels(self, slide: SlideRef) -> bool:
        """Whether the slide's sampler does."""
        sampler = self.of_slide(slide)
        return isinstance(sampler, NeedsPixels) and sampler.needs_pixels(slide)

    async def prepare(self, reader: SlideReader, memory: int) -> Sampler:
        """The slide's sampler, prepared where it has to be."""
        ref = reader.slide.ref
        sampler = self.of_slide(ref)
        if isinstance(sampler, NeedsPixels) and sampler.needs_pixels(ref):
            return await sampler.prepare(reader, memory)
        return sampler

    def plan(self, slide: Slide) -> Plan:
        """The plan of the slide's sampler.

        Raises:
            ConfigError, SlideError: as that sampler does.
        """
        return self.of_slide(slide.ref).plan(slide)

    def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        """The windows, cut by the slide's sampler."""
        return self.of_slide(plan.slide.ref).smallchunks(plan, bigchunks)


def _made(make: Callable[..., Sampler], options: Mapping[str, object]) -> Sampler | ConfigError:
    try:
        return make(**options)
    except ConfigError as error:
        return error
