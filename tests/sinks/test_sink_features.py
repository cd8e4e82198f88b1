"""Features: rows, places in level-0 pixels, what is said about the windows."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from streamwsi import Pipeline, run
from streamwsi.chunks import Batch
from streamwsi.errors import CannotWrite, ConfigError, ContractBroken, StageMismatch
from streamwsi.geometry import Box, Grid, Size
from streamwsi.limits import Limits
from streamwsi.processors import FunctionProcessor
from streamwsi.samplers import Masked, RandomPatches, SlidingWindow
from streamwsi.samplers.sliding_window import GridPlan
from streamwsi.sinks import FeaturesHdf5, FeaturesZarr, Tee, features_zarr
from streamwsi.slides import Mpp
from streamwsi.sources import MemorySource
from streamwsi.testing.outputs import grid_plan, recipe, stream, tree

Make = Callable[..., Any]
Array = npt.NDArray[Any]
BOTH = [pytest.param(FeaturesZarr, id="zarr"), pytest.param(FeaturesHdf5, id="hdf5")]
GRID = Grid(Size(28, 20), Size(8, 8), Size(4, 4), 5)
VALUES = np.random.default_rng(7).normal(size=(GRID.count, 6)).astype(np.float32)
PLAN = grid_plan(GRID, downsample=4.0)


async def write(sink: Any, plan: Any = PLAN, values: Any = VALUES, **kwargs: Any) -> Path:
    async with sink.open(plan, recipe(plan, sink), overwrite=False) as writer:
        await writer.write(stream(plan, values, start=writer.resume_at, **kwargs))
    return Path(sink.outputs(plan.slide.ref)[0])


def read(path: Path) -> dict[str, Array]:
    """The three arrays of either file."""
    names = ("features", "coords", "valid")
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            assert {*file} == {*names}
            return {name: file[name][()] for name in names}
    group: Any = zarr.open_group(path, mode="r")
    assert {*group} == {*names}
    return {name: np.asarray(group[name][...]) for name in names}


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 3, 1000])
async def test_rows_are_windows(
    make: Make, dtype: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_zarr, "_CHUNK_BYTES", rows * 6 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(features_zarr, "_NARROW", rows)
    valid = np.arange(GRID.count) % 5 != 3
    found = read(await write(make(tmp_path, dtype), valid=valid))
    expected = VALUES.astype(dtype)
    expected[~valid] = np.nan
    assert found["features"].dtype == dtype
    np.testing.assert_array_equal(found["features"], expected)
    np.testing.assert_array_equal(found["valid"], valid)
    assert [str(found[name].dtype) for name in ("valid", "coords")] == ["bool", "int64"]
    assert found["coords"].tolist() == [
        [PLAN.place(i).box.x * 4, PLAN.place(i).box.y * 4] for i in range(PLAN.count)
    ]


@pytest.mark.parametrize("make", BOTH)
async def test_integers_and_single_numbers(make: Make, tmp_path: Path) -> None:
    valid = np.arange(GRID.count) > 0
    found = read(await write(make(tmp_path), values=np.arange(GRID.count), valid=valid))
    assert found["features"].shape == (GRID.count, 1)
    assert np.isnan(found["features"][0, 0])
    assert found["features"][1:, 0].tolist() == [*range(1, GRID.count)]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * GRID.count, "need arrays of numbers, but the processor returned list"),
        (np.zeros((GRID.count, 2), "c8"), "need arrays of numbers, .* returned complex64 array"),
        (np.zeros((GRID.count, 0)), r"one vector per window, .* shape \(4, 0\); pool them"),
        (np.zeros((GRID.count, 3, 2, 2)), r"one vector .* \(4, 3, 2, 2\); pool them, or choose a"),
        (np.full((GRID.count, 2), -7e4), "reach 70000, and float16 holds at most 65504; choose"),
    ],
)
async def test_values_that_are_no_features(
    make: Make, values: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StageMismatch, match=message):
        await write(make(tmp_path, "float16"), values=values)


@pytest.mark.parametrize("make", BOTH)
async def test_infinity_is_a_number_that_a_model_may_give(make: Make, tmp_path: Path) -> None:
    values = VALUES.copy()
    values[2, 1] = np.inf
    found = read(await write(make(tmp_path, "float16"), values=values))
    assert found["features"][2, 1] == np.inf


@pytest.mark.parametrize("make", BOTH)
async def test_vectors_of_another_length_on_the_way(make: Make, tmp_path: Path) -> None:
    sink = make(tmp_path)
    async with sink.open(PLAN, recipe(PLAN, sink), overwrite=False) as writer:

        async def both() -> Any:
            async for some in stream(PLAN, VALUES, stop=8):
                yield some
            async for some in stream(PLAN, VALUES[:, :5], start=8):
                yield some

        with pytest.raises(StageMismatch, match="returned 6 numbers and then 5 per window"):
            await writer.write(both())
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(make(tmp_path / "b"), stop=8)
    message = r"slide\.\S+ was begun with vectors of another length than 5; --overwrite"
    with pytest.raises(CannotWrite, match=message):
        await write(make(tmp_path / "b"), values=VALUES[:, :5])


@pytest.mark.parametrize("make", BOTH)
def test_other_dtypes_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="must be float32 or float16, not 'float64'"):
        make("out", "float64")


def test_without_h5py_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamwsi.sinks.features_hdf5.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'need h5py: pip install "streamwsi\[hdf5\]"'):
        FeaturesHdf5("out")


async def test_windows_that_are_not_square(tmp_path: Path) -> None:
    plan = grid_plan(Grid(Size(28, 20), Size(8, 4), Size(4, 4)))
    values = np.zeros((plan.count, 2))
    with pytest.raises(ConfigError, match="cannot tell windows of 8×4; choose a square kernel, or"):
        await write(FeaturesHdf5(tmp_path), plan, values)
    assert tree(tmp_path) == {}
    group: Any = zarr.open_group(await write(FeaturesZarr(tmp_path), plan, values), mode="r")
    assert group.attrs["windows"]["kernel_size"] == [8, 4]


# Where nothing, or not all, was computed.


@pytest.mark.parametrize("make", BOTH)
async def test_no_windows(make: Make, tmp_path: Path) -> None:
    class Empty(GridPlan):
        count = 0

    plan = Empty(PLAN.slide, PLAN.level, GRID, 1, PLAN.config)
    path = await write(make(tmp_path), plan, VALUES[:0])
    before = tree(tmp_path)
    found = read(path)
    assert [found[name].shape for name in ("features", "coords", "valid")] == [
        (0, 0),
        (0, 2),
        (0,),
    ]
    await write(make(tmp_path), plan, VALUES[:0])
    assert tree(tmp_path) == before
    # A run that died after the record was there, and before the rest.
    for name in ("valid", "coords", "features") if path.is_dir() else ():
        (path / name / "zarr.json").unlink()
        (path / name).rmdir()
    if path.is_file():
        path.unlink()
    await write(make(tmp_path), plan, VALUES[:0])
    assert tree(tmp_path) == before


async def test_an_hdf5_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    sink = FeaturesHdf5(tmp_path)
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(sink, stop=8)
    assert {*tree(tmp_path)} == {".slide.h5.unfinished", "slide.h5.json"}
    found = read_unfinished(tmp_path / ".slide.h5.unfinished")
    np.testing.assert_array_equal(found[:8], VALUES[:8])
    await write(sink)
    assert {*tree(tmp_path)} == {"slide.h5", "slide.h5.json"}


def read_unfinished(path: Path) -> Array:
    with h5py.File(path) as file:
        return np.asarray(file["features"][()])


async def test_a_zarr_group_shows_what_is_there(tmp_path: Path) -> None:
    sink = FeaturesZarr(tmp_path)
    async with sink.open(PLAN, recipe(PLAN, sink), overwrite=False):
        group: Any = zarr.open_group(tmp_path / "slide.features.zarr", mode="r")
        assert [*group] == []
        assert group.attrs["windows"]["level"] == 1
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(sink, stop=8)
    found = read(tmp_path / "slide.features.zarr")
    np.testing.assert_array_equal(found["valid"], np.arange(GRID.count) < 8)
    np.testing.assert_array_equal(found["features"][:8], VALUES[:8])
    assert np.isnan(found["features"][8:]).all()


async def test_an_hdf5_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = await write(FeaturesHdf5(tmp_path))
    before = tree(tmp_path)
    path.unlink()
    await write(FeaturesHdf5(tmp_path))
    assert tree(tmp_path) == before


async def test_a_run_that_died_between_the_name_and_the_record(tmp_path: Path) -> None:
    await write(FeaturesHdf5(tmp_path / "whole"))
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(FeaturesHdf5(tmp_path), stop=8)
    (tmp_path / ".slide.h5.unfinished").unlink()
    (tmp_path / "slide.h5").write_bytes((tmp_path / "whole" / "slide.h5").read_bytes())
    await write(FeaturesHdf5(tmp_path))
    whole = tree(tmp_path / "whole")
    assert {name: tree(tmp_path)[name] for name in whole} == whole


async def test_a_strangers_file_is_not_replaced(tmp_path: Path) -> None:
    """Neither one beside an unfinished one, nor one that is put there meanwhile."""
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(FeaturesHdf5(tmp_path), stop=8)
    (tmp_path / "slide.h5").write_bytes(b"theirs")
    with pytest.raises(ConfigError, match=r"slide\.h5 exists and was not made by"):
        await write(FeaturesHdf5(tmp_path))
    (tmp_path / "slide.h5").unlink()

    def meanwhile(piece: int) -> None:
        (tmp_path / "slide.h5").write_bytes(b"theirs")

    with pytest.raises(CannotWrite, match="somebody else has put a file there"):
        await write(FeaturesHdf5(tmp_path), between=meanwhile)
    assert (tmp_path / "slide.h5").read_bytes() == b"theirs"


async def test_an_unfinished_file_that_was_replaced(tmp_path: Path) -> None:
    with pytest.raises(ContractBroken, match="ended at 8"):
        await write(FeaturesHdf5(tmp_path), stop=8)
    with h5py.File(tmp_path / ".slide.h5.unfinished", "w") as file:
        file["features"] = np.zeros((2, 2))
    with pytest.raises(CannotWrite, match="vectors of another length"):
        await write(FeaturesHdf5(tmp_path))
    (tmp_path / ".slide.h5.unfinished").write_bytes(b"nothing")
    with pytest.raises(CannotWrite, match=r"slide\.h5 cannot be written: "):
        await write(FeaturesHdf5(tmp_path))


async def test_files_are_few(tmp_path: Path) -> None:
    """5 million numbers: a chunk of features, and one of each of the others."""
    plan = grid_plan(Grid(Size(70_000, 8), Size(8, 8), Size(1, 1)))
    values = np.ones((plan.count, 70), np.float32)
    await write(FeaturesZarr(tmp_path), plan, values, batch=1 << 14)
    chunks = [name for name, data in tree(tmp_path).items() if data and "/c/" in name]
    assert len(chunks) == 2 + 2 + 2  # 19.6 MB of features, 69 993 rows of the others


@pytest.mark.parametrize("make", BOTH)
async def test_memory_does_not_grow(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 MB of features through some chunks of 1 MB."""
    monkeypatch.setattr(features_zarr, "_CHUNK_BYTES", 1 << 20)
    plan, sink = grid_plan(Grid(Size(100_000, 1), Size(1, 1), Size(1, 1))), make(tmp_path)
    values = np.broadcast_to(np.arange(128, dtype=np.float32), (plan.count, 128))
    await write(make(tmp_path / "first"), PLAN)  # what is imported is not counted
    tracemalloc.start()
    try:
        await write(sink, plan, values, batch=512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Three chunks; the open chunks of coords and valid, stored likewise; some batches.
    assert peak < 3 * (1 << 20) + 3 * 17 * (1 << 16) + 8 * 512 * 128 * 4


# What is said about the windows.


def attributes(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        assert dict(file["features"].attrs) == {"name": "slide"}
        assert dict(file["valid"].attrs) == {}
        found = dict(file["coords"].attrs)
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


async def test_attributes_of_a_level(tmp_path: Path) -> None:
    assert attributes(await write(FeaturesHdf5(tmp_path))) == {
        "name": "slide",
        "patch_size": 8,
        "patch_size_level0": 32,
        "patch_level": 1,
        "level0_magnification": 40,
        "target_magnification": 10,
        "overlap": 4,
        "downsample": [4.0, 4.0],
        "level_dim": [28, 20],
        "downsampled_level_dim": [28, 20],
        "level0_width": 112,
        "level0_height": 80,
    }
    group: Any = zarr.open_group(await write(FeaturesZarr(tmp_path)), mode="r")
    assert group.attrs["windows"] == {
        "kernel_size": [8, 8],
        "stride": [4, 4],
        "level": 1,
        "factor": [1.0, 1.0],
        "downsample": [4.0, 4.0],
        "mpp": [1.0, 1.0],
        "kernel_size_level0": [32.0, 32.0],
        "level0_size": [112, 80],
    }
    document = json.loads((tmp_path / "slide.features.zarr" / "zarr.json").read_text())
    record = document["attributes"]["streamwsi"]
    assert record["dimensions"] == 6
    assert record["state"] == {"complete": True, "invalid": 0, "pieces": 24, "total": 24}


@pytest.mark.parametrize(
    ("mpp", "power", "level0", "target"),
    [
        (0.1214, None, 80, 20),
        (0.1725, 20.0, 60, 15),
        (0.2527, 20.0, 40, 10),
        (0.499, None, 20, 5),
        (1.0, None, 10, 2.5),
        (2.0, None, 5, 1.25),
        (7.0, 2.5, 2.5, 0.625),
        (None, 20.0, 20, 5),
        (None, None, None, None),
    ],
)
async def test_magnifications(
    mpp: float | None, power: float | None, level0: Any, target: Any, tmp_path: Path
) -> None:
    plan = grid_plan(GRID, downsample=4.0, mpp=None if mpp is None else Mpp(mpp, mpp))
    plan = replace(plan, slide=replace(plan.slide, power=power))
    found = attributes(await write(FeaturesHdf5(tmp_path), plan))
    assert found.get("level0_magnification") == level0
    assert found.get("target_magnification") == target


# As their users load them, in our words.


def as_clam(folder: Path, slide: str) -> tuple[Array, Array]:
    """CLAM's dataset of bags, `Generic_MIL_Dataset` with `load_from_h5(True)`."""
    with h5py.File(folder / "h5_files" / f"{slide}.h5", "r") as file:
        return file["features"][:], file["coords"][:]


def as_clam_patches(path: Path) -> tuple[int, int, int]:
    """CLAM's `Whole_Slide_Bag_FP`: what it would read again from the slide."""
    with h5py.File(path, "r") as file:
        coords = file["coords"]
        return coords.attrs["patch_level"], coords.attrs["patch_size"], len(coords)


def as_trident(path: Path) -> tuple[dict[str, Any], Array, Array]:
    """TRIDENT's `read_coords`, and the features as `extract_slide_features` takes them."""
    with h5py.File(path, "r") as file:
        return dict(file["coords"].attrs), file["coords"][:], file["features"][:]


async def test_clam_and_trident_load_it(tmp_path: Path) -> None:
    import torch

    path = await write(FeaturesHdf5(tmp_path / "h5_files"))
    features, coords = as_clam(tmp_path, "slide")
    assert torch.from_numpy(features).shape == (GRID.count, 6)
    assert coords.shape == (GRID.count, 2)
    assert as_clam_patches(path) == (1, 8, GRID.count)
    attrs, coords, features = as_trident(path)
    # What its drawing and its encoders of slides take.
    needed = ("patch_size", "level0_magnification", "target_magnification")
    assert None not in [attrs.get(name) for name in needed]
    batch = torch.from_numpy(features).float().unsqueeze(0)
    assert batch.shape == (1, GRID.count, 6)
    assert torch.from_numpy(coords).unsqueeze(0).dtype == torch.int64
    size = attrs["patch_size"] * attrs["level0_magnification"] // attrs["target_magnification"]
    assert int(attrs["patch_size_level0"]) == size == 32


# Whole runs: the vector tells where its window is.

LEVELS = [(203, 331), (101, 166), (50, 83)]


def slide(levels: list[tuple[int, int]]) -> tuple[Array, ...]:
    """Pixels that are their own place: ``(y, x)`` of level 0, in 16 bits."""
    height, width = levels[0]
    y, x = np.mgrid[:height, :width]
    base = np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint16)
    arrays = []
    for rows, columns in levels:
        step = round(height / rows)
        arrays.append(np.ascontiguousarray(base[::step, ::step][:rows, :columns]))
    return tuple(arrays)


def first_pixel(batch: Batch) -> Array:
    return batch.pixels[:, 0, 0, 1::-1].astype(np.float32)


async def features_of(sampler: Any, tmp_path: Path, **kwargs: Any) -> dict[str, Array]:
    pipeline: Pipeline[Any] = Pipeline(
        source=MemorySource({"a": slide(LEVELS)}, **kwargs),
        sampler=sampler,
        processor=FunctionProcessor(first_pixel, batch_size=7),
        sink=Tee(FeaturesHdf5(tmp_path), FeaturesZarr(tmp_path)),
    )
    report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="128MiB"))
    report.raise_for_failures()
    found, other = (read(Path(path)) for path in report.outcomes[0].outputs)
    for name, values in found.items():
        np.testing.assert_array_equal(values, other[name])
    return found


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("kernel", [16, 17])
async def test_coords_at_every_level(level: int, kernel: int, tmp_path: Path) -> None:
    found = await features_of(SlidingWindow(kernel, 13, level=level), tmp_path)
    rows, columns = LEVELS[level]
    expected = [
        (x * 2**level, y * 2**level)
        for y in range(0, rows - kernel + 1, 13)
        for x in range(0, columns - kernel + 1, 13)
    ]
    assert found["coords"].tolist() == [[*place] for place in expected]
    np.testing.assert_array_equal(found["features"], found["coords"])


async def test_coords_of_resampled_windows(tmp_path: Path) -> None:
    """Level 1 (0.5 µm) makes 0.7 µm: window k begins at 13·k·2.8 level-0 pixels."""
    levels = slide(LEVELS)
    source = MemorySource({"a": levels}, mpp=0.25)
    pipeline: Pipeline[Any] = Pipeline(
        source=source,
        sampler=SlidingWindow(16, 13, mpp=0.7),
        processor=FunctionProcessor(first_pixel, batch_size=7),
        sink=FeaturesHdf5(tmp_path),
    )
    report = await run(pipeline, ["a"], limits=Limits(worker_kind="inline", memory="128MiB"))
    report.raise_for_failures()
    path = tmp_path / "a.h5"
    found = read(path)
    rows, columns = (int(extent / 1.4) for extent in LEVELS[1])
    expected = [
        (round(x * 2.8), round(y * 2.8))
        for y in range(0, rows - 15, 13)
        for x in range(0, columns - 15, 13)
    ]
    assert found["coords"].tolist() == [[*place] for place in expected]
    # The first pixel of a window is where it says, to about a pixel of the windows.
    assert np.abs(found["features"] - found["coords"]).max() < 2.8
    with h5py.File(path) as file:
        attrs = dict(file["coords"].attrs)
    assert "patch_level" not in attrs
    assert attrs["patch_size"] == 16
    assert attrs["patch_size_level0"] == 45  # 44.8
    assert attrs["overlap"] == 3
    assert attrs["level0_magnification"] == 40
    assert attrs["target_magnification"] == pytest.approx(40 / 2.8)


async def test_coords_of_padded_windows(tmp_path: Path) -> None:
    sampler = SlidingWindow(16, 8, level=1, padding="same", offset=(-3, 2))
    found = await features_of(sampler, tmp_path)
    rows, columns = LEVELS[1]
    expected = [(2 * x, 2 * y) for y in range(-6, rows, 8) for x in range(-3, columns, 8)]
    assert found["coords"].tolist() == [[*place] for place in expected]
    assert found["coords"].min() == -12
    inside = (found["coords"] >= 0).all(axis=1)
    np.testing.assert_array_equal(found["features"][inside], found["coords"][inside])


async def test_coords_under_a_mask_and_of_random_patches(tmp_path: Path) -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[3:6, 2:7] = True
    whole = await features_of(SlidingWindow(16, 13, level=1), tmp_path / "whole")
    some = await features_of(Masked(SlidingWindow(16, 13, level=1), mask), tmp_path / "some")
    assert 0 < len(some["coords"]) < len(whole["coords"])
    np.testing.assert_array_equal(some["features"], some["coords"])
    patches = await features_of(RandomPatches(50, 16, level=1), tmp_path / "random")
    np.testing.assert_array_equal(patches["features"], patches["coords"])
    assert len({*map(tuple, patches["coords"].tolist())}) > 40


async def test_patches_of_several_sizes_are_refused(tmp_path: Path) -> None:
    class Scattered:
        """Two windows of different sizes, on no grid."""

        slide, level, config, grid, count = PLAN.slide, PLAN.level, PLAN.config, None, 2

        def place(self, index: int) -> Any:
            return replace(PLAN.place(0), box=Box(index, 0, 4 + index, 4 + index), index=index)

    plan = Scattered()
    with pytest.raises(StageMismatch, match=r"windows differ in size \(4×4, 5×5\)"):
        await write(FeaturesZarr(tmp_path), plan, VALUES[:2])
