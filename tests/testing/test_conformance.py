"""The kits pass stages that keep the rules, and fail those that break one."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from streamwsi.chunks import Batch, BigChunk, Pieces, Plan, Receipt, SmallChunks
from streamwsi.geometry import Box, Size
from streamwsi.processors import FunctionProcessor, Together, TorchModule, Transformed
from streamwsi.samplers import ArrayMask, FileMask, Masked, PerSlide, SlidingWindow, TissueMask
from streamwsi.samplers.sliding_window import windows_of
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, HeatmapZarr, Pdmcsv, Tee
from streamwsi.slides import Pyramid, PyramidLevel, Slide, SlideRef
from streamwsi.sources import MemorySource, TiffSource
from streamwsi.testing.conformance import (
    MaskCase,
    MaskConformance,
    ProcessorCase,
    ProcessorConformance,
    SamplerCase,
    SamplerConformance,
    SinkCase,
    SinkConformance,
    SourceCase,
    SourceConformance,
)
from streamwsi.testing.conformance.rules import same
from streamwsi.testing.faults import Checksums, Fault, ScriptedSource
from streamwsi.testing.worker_faults import SeededSource, seeded_pixels, seeded_ref

RNG = np.random.default_rng(3)
LEVELS = (
    RNG.integers(0, 200, (150, 110, 3), np.uint8),
    RNG.integers(0, 200, (75, 55, 3), np.uint8),
)
REF = SlideRef("a", "memory:a")


class TestMemorySource(SourceConformance):
    @pytest.fixture
    def case(self) -> SourceCase:
        return SourceCase(MemorySource({"a": LEVELS}), REF, LEVELS)


class TestScriptedSource(SourceConformance):
    @pytest.fixture
    def case(self) -> SourceCase:
        return SourceCase(ScriptedSource({"a": LEVELS}, (16, 24), jitter=4), REF, LEVELS)


class TestSeededSource(SourceConformance):
    @pytest.fixture
    def case(self) -> SourceCase:
        ref = seeded_ref(1, 90, 120)
        return SourceCase(SeededSource(), ref, (seeded_pixels(ref),))


class TestTiffSource(SourceConformance):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            for i, array in enumerate(LEVELS):
                tiff.write(array, tile=(16, 32), photometric="rgb", subfiletype=int(i > 0))
        return SourceCase(TiffSource(), SlideRef.of(tmp_path / "a.tif"), LEVELS)


def sampled() -> tuple[Slide, Any]:
    level = PyramidLevel(0, Size(110, 150), (1.0, 1.0), Size(16, 16))
    return Slide(REF, Pyramid((level,)), "uint8", 3), LEVELS[0]


class TestSlidingWindow(SamplerConformance):
    @pytest.fixture(
        params=[
            SlidingWindow(20, 9),
            SlidingWindow((7, 30), (16, 31)),
            SlidingWindow(24, halo=(4, 8), align=4),
        ]
    )
    def case(self, request: pytest.FixtureRequest) -> SamplerCase:
        return SamplerCase(request.param, *sampled())


MASK = np.zeros((150, 110), np.bool_)
MASK[20:130, 31:90] = True
MASK[50:60, 40:77] = False


class TestMasked(SamplerConformance):
    """The kit asks for plans of samplers that see no pixels: a mask that is there already."""

    @pytest.fixture(params=[0.05, 0.7])
    def case(self, request: pytest.FixtureRequest) -> SamplerCase:
        return SamplerCase(Masked(SlidingWindow(20, 9), MASK, request.param), *sampled())


class TestPerSlide(SamplerConformance):
    @pytest.fixture(params=[{"a": SlidingWindow((7, 30), (16, 31))}, {"b": SlidingWindow(33)}])
    def case(self, request: pytest.FixtureRequest) -> SamplerCase:
        return SamplerCase(PerSlide(SlidingWindow(20, 9), request.param), *sampled())


class TestArrayMask(MaskConformance):
    @pytest.fixture
    def case(self) -> MaskCase:
        return MaskCase(ArrayMask(MASK), LEVELS, MASK)


class TestFileMask(MaskConformance):
    @pytest.fixture(params=["mask.png", "mask.tif"])
    def case(self, request: pytest.FixtureRequest, tmp_path: Path) -> MaskCase:
        path = tmp_path / request.param
        pixels = MASK.astype(np.uint8) * 255
        if path.suffix == ".png":
            path.write_bytes(imagecodecs.png_encode(pixels))
        else:
            tifffile.imwrite(path, pixels)
        return MaskCase(FileMask(str(path)), LEVELS, MASK, folder=tmp_path)


class TestOutlines(MaskConformance):
    @pytest.fixture
    def case(self, tmp_path: Path) -> MaskCase:
        shell = [[31, 20], [90, 20], [90, 130], [31, 130], [31, 20]]
        hole = [[40, 50], [77, 50], [77, 60], [40, 60], [40, 50]]
        path = tmp_path / "mask.geojson"
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [shell, hole]}))
        return MaskCase(FileMask(path), LEVELS, MASK, folder=tmp_path)


class TestTissueMask(MaskConformance):
    @pytest.fixture
    def case(self) -> MaskCase:
        pixels = np.full((300, 260, 3), 240, np.uint8)
        pixels[60:180, 50:200] = RNG.integers(90, 190, (120, 150, 1)) - [0, 60, 10]
        return MaskCase(TissueMask(), (pixels,))


WINDOWS = RNG.integers(0, 200, (30, 9, 7, 3), np.uint8)


class TestChecksums(ProcessorConformance):
    @pytest.fixture
    def case(self) -> ProcessorCase:
        return ProcessorCase(Checksums(8), WINDOWS)


class TestTorchModule(ProcessorConformance):
    @pytest.fixture
    def case(self) -> ProcessorCase:
        model = "streamwsi.processors.hematoxylin:Hematoxylin"
        return ProcessorCase(TorchModule(model, batch_size=8), WINDOWS)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": x.mean((2, 3)), "map": x[:, :2, :4, :4]}


class TestSeveralOutputs(ProcessorConformance):
    @pytest.fixture
    def case(self, tmp_path: Path) -> ProcessorCase:
        path = tmp_path / "two.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.script(TwoOutputs()).save(str(path))  # type: ignore[no-untyped-call]
        return ProcessorCase(TorchModule(path, batch_size=8, output=("mean", "map")), WINDOWS)


def brightness(batch: Any) -> Any:
    """A channel per window."""
    return batch.pixels.mean(axis=(1, 2))


def negative(window: Any) -> Any:
    return 255 - window


class TestFunction(ProcessorConformance):
    @pytest.fixture
    def case(self) -> ProcessorCase:
        return ProcessorCase(FunctionProcessor(brightness, batch_size=8), WINDOWS)


class TestTogether(ProcessorConformance):
    @pytest.fixture
    def case(self) -> ProcessorCase:
        one: FunctionProcessor[Any] = FunctionProcessor(brightness, batch_size=8)
        return ProcessorCase(Together(one, Transformed(one, negative)), WINDOWS)


class TestTransformed(ProcessorConformance):
    @pytest.fixture
    def case(self) -> ProcessorCase:
        one: FunctionProcessor[Any] = FunctionProcessor(brightness, batch_size=8)
        return ProcessorCase(Transformed(one, negative, negative), WINDOWS)


class TestTee(SinkConformance):
    @pytest.fixture
    def case(self) -> SinkCase:
        return SinkCase(lambda folder: Tee(HeatmapZarr(folder, chunk=4), Pdmcsv(folder)), vectors)


class TestHeatmapZarr(SinkConformance):
    @pytest.fixture
    def case(self) -> SinkCase:
        return SinkCase(lambda folder: HeatmapZarr(folder, chunk=4), vectors)


class TestPdmcsv(SinkConformance):
    @pytest.fixture
    def case(self) -> SinkCase:
        return SinkCase(Pdmcsv, vectors)


class TestFeaturesZarr(SinkConformance):
    @pytest.fixture
    def case(self) -> SinkCase:
        return SinkCase(FeaturesZarr, vectors)


class TestFeaturesHdf5(SinkConformance):
    @pytest.fixture
    def case(self) -> SinkCase:
        return SinkCase(FeaturesHdf5, vectors)


def vectors(count: int) -> Any:
    return np.arange(count * 2, dtype=np.float32).reshape(count, 2)


async def broken_rules(kit: Any, case: Any, tmp_path: Path) -> set[str]:
    """The tests of a kit that a case does not pass."""
    failed = set()
    for name, test in inspect.getmembers(kit(), callable):
        if not name.startswith("test_"):
            continue
        wanted = inspect.signature(test).parameters
        given: dict[str, Any] = {"case": case}
        if "tmp_path" in wanted:
            given["tmp_path"] = tmp_path / name
            given["tmp_path"].mkdir()
        if "turns" in wanted:
            given["turns"] = 5
        if "at" in wanted:
            given["at"] = 0.5
        try:
            result = test(**given)
            if isinstance(result, Coroutine):
                await result
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | anyio.get_cancelled_exc_class()):
                raise
            failed.add(name.removeprefix("test_"))
    return failed


@dataclass(frozen=True)
class Crooked:
    """A mask that breaks one rule."""

    vice: str
    name = "crooked"

    @property
    def config(self) -> dict[str, Any]:
        return {"kind": "crooked"} | ({"at": id(object)} if self.vice == "nothing" else {})

    def shares(self, base: Size, top: float, bottom: float, lefts: Any, rights: Any) -> Any:
        shares = ArrayMask(MASK).shares(base, top, bottom, lefts, rights)
        if self.vice == "endless":
            return ArrayMask(MASK).shares(base, max(0, top), min(bottom, 150), lefts, rights)
        return {"percent": shares * 100, "coarse": np.rint(shares), "short": shares[:1]}.get(
            self.vice, shares
        )


@pytest.mark.parametrize(
    ("vice", "rules"),
    [
        ("none", set()),
        ("percent", {"shares_are_those_of_the_reference", "a_window_has_the_mean_of_its_parts"}),
        ("coarse", {"shares_are_those_of_the_reference", "a_window_has_the_mean_of_its_parts"}),
        ("short", {"shares_are_those_of_the_reference"}),
        ("endless", {"nothing_lies_beyond_the_slide"}),
    ],
)
async def test_a_mask_that_breaks_a_rule_is_found_out(
    tmp_path: Path, vice: str, rules: set[str]
) -> None:
    found = await broken_rules(MaskConformance, MaskCase(Crooked(vice), LEVELS, MASK), tmp_path)
    assert rules <= found
    assert bool(found) == bool(rules)


@dataclass(frozen=True)
class Twisted:
    """A source with one of several vices."""

    vice: str

    def accepts(self, ref: SlideRef) -> bool:
        if self.vice == "raises" and ref.id != "a":
            raise ValueError("what is that?")
        return ref.id == "a"

    @asynccontextmanager
    async def open(self, ref: SlideRef, workers: Any) -> AsyncIterator[Any]:
        faults = (Fault(Box(5, 5, 1, 1), "damage"),) if self.vice == "damage" else ()
        plain = ScriptedSource({"a": LEVELS}, 16, faults)
        if self.vice == "keeps":
            workers.arena._free.pop()
        async with plain.open(ref, workers) as reader:
            if self.vice in ("order", "writable", "wrong", "drops"):
                yield _TwistedReader(reader, self.vice)
            else:
                yield reader


class _TwistedReader:
    def __init__(self, reader: Any, vice: str) -> None:
        self._reader, self._vice = reader, vice
        self.slide, self.tally, self.needs = reader.slide, reader.tally, reader.needs

    async def bigchunks(self, regions: Any, memory: int) -> AsyncGenerator[BigChunk, None]:
        waiting: list[BigChunk] = []
        async for chunk in self._reader.bigchunks(regions, memory):
            if self._vice == "order":
                waiting.insert(0, chunk)
                if len(waiting) < 2:
                    continue
            elif self._vice == "writable":
                waiting = [BigChunk(chunk.region, chunk.pixels.copy(), (), chunk.release)]
            elif self._vice == "wrong":
                waiting = [BigChunk(chunk.region, np.roll(chunk.pixels, 1, 1), (), chunk.release)]
                waiting[0].pixels.flags.writeable = False
            else:
                waiting = [chunk] if chunk.region.index != 2 else []
            while waiting:
                yield waiting.pop(0)


@pytest.mark.parametrize(
    ("vice", "rules"),
    [
        ("none", set()),
        ("raises", {"it_accepts_its_slide_and_never_raises"}),
        ("damage", {"pixels_are_those_of_the_reference", "pixels_stay_while_they_are_held"}),
        ("order", {"pixels_are_those_of_the_reference"}),
        ("writable", {"pixels_are_those_of_the_reference"}),
        ("wrong", {"pixels_are_those_of_the_reference"}),
        ("drops", {"pixels_are_those_of_the_reference"}),
        ("keeps", {"leaving_early_leaves_nothing", "cancellation_is_not_swallowed"}),
    ],
)
async def test_a_source_that_breaks_a_rule_is_found_out(
    tmp_path: Path, vice: str, rules: set[str]
) -> None:
    case = SourceCase(Twisted(vice), REF, LEVELS, kinds=("threads",), timeout_s=1.0)
    found = await broken_rules(SourceConformance, case, tmp_path)
    assert rules <= found if rules else not found


@dataclass(frozen=True)
class TwistedSampler(SlidingWindow):
    """A sampler with one of several vices."""

    vice: str = "none"

    def plan(self, slide: Slide) -> Any:
        plan = SlidingWindow.plan(self, slide)
        if self.vice == "config":
            return replace(plan, config={"type": "twisted", "step": (1, 2)})
        if self.vice == "chance":
            return replace(plan, config={"type": "twisted", "n": int(RNG.integers(10**9))})
        if self.vice == "beyond":
            return replace(plan, grid=replace(plan.grid, size=Size(130, 150)))
        return plan

    async def smallchunks(
        self, plan: Plan, bigchunks: AsyncIterator[BigChunk]
    ) -> AsyncGenerator[SmallChunks, None]:
        if self.vice == "scope":
            async with anyio.create_task_group():
                async for chunk in bigchunks:
                    for some in windows_of(plan, chunk):
                        yield some
        async for chunk in bigchunks:
            if self.vice == "keeps":
                chunk.retain()
            for some in windows_of(plan, chunk):
                if self.vice == "blind":
                    some.valid[:] = True
                if self.vice == "short" and some.first + len(some) == plan.count:
                    return
                if self.vice == "flipped":
                    some.pixels = some.pixels[:, ::-1]
                yield some


@pytest.mark.parametrize(
    ("vice", "rules"),
    [
        ("none", set()),
        ("config", {"the_config_is_json_and_names_the_type"}),
        ("chance", {"the_same_slide_gives_the_same_plan"}),
        ("beyond", {"windows_are_numbered_and_lie_on_the_level"}),
        ("keeps", {"windows_come_whole_and_in_order"}),
        ("blind", {"damage_is_told_of_the_windows_that_show_it"}),
        ("scope", {"nothing_is_held_across_a_yield"}),
        ("short", {"windows_come_whole_and_in_order", "windows_of_a_resumed_run"}),
        ("flipped", {"windows_come_whole_and_in_order"}),
    ],
)
async def test_a_sampler_that_breaks_a_rule_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vice: str, rules: set[str]
) -> None:
    monkeypatch.setattr("streamwsi.samplers.panels._REGION_PIXELS", 1)
    case = SamplerCase(TwistedSampler(20, 9, vice=vice), *sampled())
    found = await broken_rules(SamplerConformance, case, tmp_path)
    assert rules <= found if rules else not found


@dataclass(frozen=True)
class TwistedProcessor(Checksums):
    """A processor with one of several vices."""

    vice: str = "none"

    @asynccontextmanager
    async def open(self, workers: Any) -> AsyncIterator[Any]:
        async with Checksums.open(self, workers) as running:
            yield _TwistedRunning(running, self.vice)


class _TwistedRunning:
    def __init__(self, running: Any, vice: str) -> None:
        self._running, self._vice, self.batch_size = running, vice, running.batch_size
        self.config = {"seed": float("nan") if vice == "config" else 1}

    async def pieces(self, batches: AsyncIterator[Batch]) -> AsyncGenerator[Pieces[Any], None]:
        if self._vice == "late":
            # Reads the pixels of a batch when the next one is there.
            held: list[Batch] = []
            async for batch in batches:
                held.append(batch)
            for batch in held:
                yield Pieces(batch.places, batch.pixels.mean((1, 2, 3)).tolist(), batch.valid)
        elif self._vice == "keeps":
            async for batch in batches:
                batch.keep()
                yield Pieces(batch.places, [0] * len(batch), batch.valid)
        elif self._vice == "swallows":
            try:
                async for batch in batches:
                    yield Pieces(batch.places, [0] * len(batch), batch.valid)
            except Exception:
                return
        elif self._vice == "valid":
            async for batch in batches:
                yield Pieces(batch.places, [0] * len(batch), np.ones_like(batch.valid))
        else:
            async for some in self._running.pieces(batches):
                if not (self._vice == "drops" and some.places.start == 8):
                    yield some


@pytest.mark.parametrize(
    ("vice", "rules"),
    [
        ("none", set()),
        ("config", {"it_says_what_identifies_its_results"}),
        ("late", {"the_same_windows_give_the_same_values"}),
        ("keeps", {"a_batch_gives_its_pieces_in_order"}),
        ("swallows", {"a_failure_before_it_is_not_the_end"}),
        ("valid", {"a_batch_gives_its_pieces_in_order"}),
        ("drops", {"a_batch_gives_its_pieces_in_order"}),
    ],
)
async def test_a_processor_that_breaks_a_rule_is_found_out(
    tmp_path: Path, vice: str, rules: set[str]
) -> None:
    case = ProcessorCase(TwistedProcessor(8, vice=vice), WINDOWS)
    found = await broken_rules(ProcessorConformance, case, tmp_path)
    assert rules <= found if rules else not found


@dataclass(frozen=True)
class TwistedSink(Pdmcsv):
    """A sink with one of several vices."""

    vice: str = "none"

    @property
    def config(self) -> Any:
        return {"type": "twisted"} | ({"out": str(self.out)} if self.vice == "place" else {})

    def outputs(self, slide: SlideRef) -> tuple[str, ...]:
        return (
            (str(Path(self.out) / "all.csv"),)
            if self.vice == "one"
            else Pdmcsv.outputs(self, slide)
        )

    @asynccontextmanager
    async def open(self, plan: Plan, recipe: Any, *, overwrite: bool) -> AsyncIterator[Any]:
        if self.vice == "careless":
            recipe = replace(recipe, processor={})
        if self.vice == "blocking":
            (Path(self.out) / "log.txt").write_text("begun")
        async with Pdmcsv.open(self, plan, recipe, overwrite=overwrite) as writer:
            yield _TwistedWriter(writer, self.vice)


class _TwistedWriter:
    def __init__(self, writer: Any, vice: str) -> None:
        self._writer, self._vice, self.resume_at = writer, vice, writer.resume_at

    async def write(self, pieces: AsyncIterator[Pieces[Any]]) -> Receipt:
        async def calmed() -> AsyncIterator[Pieces[Any]]:
            try:
                async for some in pieces:
                    yield some
            except Exception:
                return

        receipt: Receipt = await self._writer.write(calmed() if self._vice == "calm" else pieces)
        return receipt


@pytest.mark.parametrize(
    ("vice", "rules"),
    [
        ("none", set()),
        ("place", {"it_says_where_it_writes_and_what_identifies_it"}),
        ("one", {"it_says_where_it_writes_and_what_identifies_it"}),
        ("careless", {"another_plan_changes_nothing"}),
        ("blocking", {"the_loop_opens_no_files"}),
        ("calm", {"a_failure_before_it_leaves_an_output_to_complete"}),
    ],
)
async def test_a_sink_that_breaks_a_rule_is_found_out(
    tmp_path: Path, vice: str, rules: set[str]
) -> None:
    case = SinkCase(lambda folder: TwistedSink(folder, vice=vice), vectors)
    found = await broken_rules(SinkConformance, case, tmp_path)
    assert rules <= found if rules else not found


def test_records_are_compared_field_by_field() -> None:
    one = np.array([(1.0, np.nan), (2.0, 3.0)], [("a", "f4"), ("b", "f4")])
    other = one.copy()
    assert same(one, other)
    other["b"][1] = 4
    assert not same(one, other)
    assert not same(one, one.astype([("a", "f4"), ("c", "f4")]))
