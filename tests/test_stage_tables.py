"""Stages that hold others, functions and masks, on their way to TOML and back."""

from __future__ import annotations

import functools
import re
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi import Pipeline, from_toml, plugins, run_sync, to_toml
from streamwsi.errors import ConfigError, UnknownStage
from streamwsi.geometry import Size
from streamwsi.processors import (
    FunctionProcessor,
    Together,
    TorchModule,
    Transformed,
    processor,
)
from streamwsi.samplers import FileMask, Masked, PerSlide, RandomPatches, SlidingWindow, TissueMask
from streamwsi.sinks import HeatmapZarr, MemorySink, Pdmcsv, Select, Tee
from streamwsi.sources import TiffSource, ZarrSource
from streamwsi.sources.first_of import FirstOf
from streamwsi.sources.invalid import Filled, Strict
from streamwsi.testing.outputs import tree
from streamwsi.testing.synthetic import write_slide


def negative(pixels: Any) -> Any:
    """Of a window or a batch."""
    return 255 - pixels


def second_level(slide: Any) -> int:
    """A level as a function of the slide."""
    return min(1, len(slide.pyramid.levels) - 1)


def weighted(slide: Any) -> Any:
    return np.ones((2, 2))


@processor(batch_size=7, where="thread", config={"gain": 2.5, "names": ["a"], "deep": {"x": 1}})
def redness(batch: Any) -> Any:
    return batch.pixels[..., 0].mean(axis=(1, 2))


def plain(batch: Any) -> Any:
    return batch.pixels.mean(axis=(1, 2))


ROOT = Path(__file__).parents[1]
WINDOWS = SlidingWindow(64, level=second_level)
MODEL = TorchModule("hematoxylin", batch_size=7)

STAGES = [
    ("source", FirstOf((TiffSource(), ZarrSource()))),
    ("source", Filled(Strict(TiffSource()), (1.0, 2.0, 3.0))),
    ("sampler", WINDOWS),
    ("sampler", Masked(WINDOWS, TissueMask(), 0.5)),
    ("sampler", Masked(Masked(SlidingWindow(9, 3), FileMask("a b.png")), FileMask("roi.geojson"))),
    ("sampler", Masked(PerSlide(WINDOWS, {"a": SlidingWindow(8)}), TissueMask())),
    ("sampler", PerSlide(WINDOWS)),
    ("sampler", PerSlide(WINDOWS, {"a": Masked(WINDOWS, TissueMask()), "type": SlidingWindow(8)})),
    ("sampler", PerSlide(WINDOWS, {'ü "1".x': SlidingWindow(8), "[b]": RandomPatches(3)})),
    ("sampler", RandomPatches(5, weights=weighted)),
    ("sampler", RandomPatches(5, 64, weights=TissueMask())),
    ("sampler", RandomPatches(5, 64, weights=FileMask("a.png"))),
    ("processor", redness),
    ("processor", FunctionProcessor(plain, batch_size=3, where="processes")),
    ("processor", Together(MODEL, Transformed(redness, window=negative))),
    ("processor", Together(Together(MODEL), Together(MODEL, redness))),
    ("processor", Transformed(Transformed(MODEL, batch=negative), negative, negative)),
    ("processor", Together(nuclei=MODEL, red=Transformed(redness, negative))),
    ("sink", Tee(Select(HeatmapZarr("a"), "nuclei"), Select(Pdmcsv("b"), 1))),
    ("sink", Tee(HeatmapZarr("out", chunk=16), Pdmcsv("out"), Tee(HeatmapZarr("other")))),
]


def pipeline(**stages: Any) -> Pipeline[Any]:
    defaults: dict[str, Any] = {
        "source": TiffSource(),
        "sampler": WINDOWS,
        "processor": MODEL,
        "sink": HeatmapZarr("out"),
    }
    return Pipeline(**(defaults | stages))


@pytest.mark.parametrize(("role", "stage"), STAGES)
def test_stages_that_hold_others_come_back_as_they_were(role: str, stage: Any) -> None:
    made = pipeline(**{role: stage})
    back = from_toml(to_toml(made))
    assert back == made


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda id_: not id_.startswith(".") and not {"/", "\0"} & {*id_}
)


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(ids, st.integers(1, 99).map(SlidingWindow), max_size=4))
def test_any_slide_has_its_sampler(samplers: dict[str, Any]) -> None:
    made = pipeline(sampler=PerSlide(WINDOWS, samplers))
    assert from_toml(to_toml(made)) == made


def test_it_reads_well() -> None:
    made = pipeline(
        sampler=Masked(SlidingWindow(64), TissueMask(), 0.5),
        processor=Transformed(MODEL, window=negative),
        sink=Tee(HeatmapZarr("out"), Pdmcsv("out")),
    )
    assert to_toml(made) == textwrap.dedent(
        f"""\
        [source]
        type = "tiff"

        [sampler]
        type = "masked"
        fraction = 0.5

        [sampler.sampler]
        type = "sliding-window"
        kernel_size = 64

        [sampler.mask]
        type = "tissue"

        [processor]
        type = "transformed"
        window = "{__name__}:negative"

        [processor.processor]
        type = "torch-module"
        model = "hematoxylin"
        batch_size = 7

        [sink]
        type = "tee"

        [[sink.sinks]]
        type = "heatmap-zarr"
        out = "out"

        [[sink.sinks]]
        type = "pdmcsv"
        out = "out"
        """
    )


def test_the_readmes_example_is_a_pipeline() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    made = from_toml(text.replace("my_stains:normalised", f"{__name__}:negative"))
    assert made == Pipeline(
        source=TiffSource(),
        sampler=Masked(SlidingWindow(256, mpp=0.5), TissueMask(), 0.5),
        processor=Transformed(TorchModule("model.pt"), window=negative),
        sink=Tee(HeatmapZarr("out"), Pdmcsv("out")),
    )


def test_inline_tables_are_the_same() -> None:
    text = """
    source = { type = "tiff" }
    processor = { type = "torch-module", model = "hematoxylin", batch_size = 7 }
    sink = { type = "tee", sinks = [{ type = "pdmcsv", out = "a" }] }
    [sampler]
    type = "masked"
    sampler = { type = "sliding-window", kernel_size = 64 }
    mask = { type = "file", path = "mask.png" }
    """
    assert from_toml(text) == pipeline(
        sampler=Masked(SlidingWindow(64), FileMask("mask.png")), sink=Tee(Pdmcsv("a"))
    )


def test_a_pipeline_from_toml_writes_the_bytes_of_the_one_in_python(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", Size(500, 400), levels=2)
    for out in ("python", "toml"):
        made = pipeline(
            sampler=Masked(PerSlide(SlidingWindow(64), {"a": SlidingWindow(32)}), TissueMask()),
            processor=Together(Transformed(MODEL, negative), MODEL),
            sink=Tee(HeatmapZarr(str(tmp_path / out)), Pdmcsv(str(tmp_path / out))),
        )
        if out == "toml":
            (tmp_path / "p.toml").write_text(to_toml(made))
            made = from_toml(tmp_path / "p.toml")
        run_sync(made, [tmp_path / "a.svs"]).raise_for_failures()
    assert tree(tmp_path / "python") == tree(tmp_path / "toml")
    assert len(tree(tmp_path / "python")) > 3


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (
            {"sampler": Masked(WINDOWS, np.ones((3, 4), np.bool_))},
            r"sampler\.mask cannot go to TOML: ArrayMask .*; save its pixels as a PNG and give Fil",
        ),
        (
            {"processor": Transformed(MODEL, window=lambda w: w)},
            r"processor\.window holds <lambda>, which TOML cannot name; define it at the top level",
        ),
        (
            {"processor": Transformed(MODEL, window=functools.partial(negative))},
            r"processor\.window holds partial object, which TOML cannot name",
        ),
        (
            {"processor": Together(MODEL, TorchModule(TiffSource()))},  # type: ignore[arg-type]
            r"processor\.processors\.model holds a TiffSource, which TOML cannot name",
        ),
        (
            {"sampler": RandomPatches(3, weights=np.ones((2, 2)))},
            r"sampler\.weights cannot go to TOML: ndarray is not offered as a mask",
        ),
    ],
)
def test_what_toml_cannot_hold_is_named(stages: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        to_toml(pipeline(**stages))


def test_outlines_that_were_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "roi.geojson"
    path.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}')
    made = pipeline(sampler=Masked(WINDOWS, FileMask(path).read()))
    with pytest.raises(UnknownStage, match=r"Outlines is not .*; give FileMask\(path\) itself"):
        to_toml(made)


TEXT = to_toml(
    pipeline(
        sampler=PerSlide(WINDOWS, {"a": Masked(WINDOWS, TissueMask())}),
        processor=Transformed(redness, window=negative),
        sink=Tee(Pdmcsv("out")),
    )
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('type = "tissue"', 'type = "tissues"'), "no mask named 'tissues' .*: file, tissue"),
        (('type = "tissue"', ""), r"\[sampler\.samplers\.a\.mask\] needs a type, .* mask"),
        (('[sampler.samplers.a.mask]\ntype = "tissue"', ""), r"\[sampler.samplers.a\] .*'mask'"),
        (("[sampler.samplers.a]", "[sampler.samplers]"), r"\[sampler.samplers.type\] needs a type"),
        (("[[sink.sinks]]", "[sink.sinks]"), r"\[sink\.sinks\] holds several: write \[\[sink"),
        (('out = "out"', 'outs = "out"'), r"\[sink\.sinks\[0\]\] .*'outs'; did you mean 'out'"),
        (('[[sink.sinks]]\ntype = "pdmcsv"\nout = "out"', ""), "Tee needs at least one sink"),
        ((":negative", ":positive"), r"\[processor\.window\] .*:positive: .* no attribute"),
        ((f"{__name__}:negative", "no.such:f"), r"\[processor\.window\] .*there is no module no"),
        ((f"{__name__}:negative", "negative"), "'negative' does not name a function"),
        ((":negative", ":redness"), "transform FunctionProcessor.* is not a function"),
        ((":redness", ":WINDOWS"), "SlidingWindow.* cannot be a processor: it is not a function"),
        (("batch_size = 7", ""), "redness is decorated with batch_size = 7; give that here"),
    ],
)
def test_a_mistake_is_named(change: tuple[str, str], says: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ConfigError, match=says):
        from_toml(TEXT.replace(*change))


def test_a_decorated_function_is_taken_out_of_its_processor() -> None:
    text = TEXT.replace(":redness", ":plain")
    made = from_toml(text).processor
    assert isinstance(made, Transformed)
    assert made.processor == FunctionProcessor(
        plain, batch_size=7, where="thread", config=redness.config
    )
    assert f'function = "{__name__}:redness"' in to_toml(pipeline(processor=redness))


def test_functions_of_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_stains.py").write_text("def darker(window):\n    return window // 2\n")
    monkeypatch.chdir(tmp_path)
    made = from_toml(TEXT.replace(f"{__name__}:negative", "my_stains:darker")).processor
    assert isinstance(made, Transformed)
    assert made.window is not None
    assert made.window(8) == 4


def test_a_mask_of_a_plugin_comes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "maskwsi-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: maskwsi\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[streamwsi.masks]\ncircle = maskwsi_code:Circle\n")
    code = """
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Circle:
        radius: float = 1.0
    """
    (tmp_path / "maskwsi_code.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    assert "circle" in {stage.name for stage in plugins.installed("mask")}
    text = TEXT.replace('type = "tissue"', 'type = "circle"\nradius = 2.5')
    made = from_toml(text)
    assert repr(made.sampler).count("Circle(radius=2.5)") == 1
    assert to_toml(made) == text


def test_memory_is_a_sink_by_name() -> None:
    assert tomllib.loads(to_toml(pipeline(sink=MemorySink())))["sink"] == {"type": "memory"}
