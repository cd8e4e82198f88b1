"""Heatmaps for the tests of exporters: those that the sink writes, and others by hand."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
import pytest
import zarr

from streamwsi.sinks.heatmap_zarr import HeatmapZarr
from streamwsi.testing.outputs import recipe, stream

Array = npt.NDArray[Any]
MakeHeatmap = Callable[..., Path]


@pytest.fixture
def sunk(tmp_path: Path) -> MakeHeatmap:
    """Write values ``(windows, C[, h, w])`` of a plan by the sink itself."""

    async def write(
        plan: Any,
        values: Array,
        valid: Array | None,
        stop: int,
        channels: list[str],
        settings: dict[str, Any],
    ) -> Path:
        sink = HeatmapZarr(tmp_path / "heatmaps", **settings)
        made = recipe(plan, sink, **({"channels": channels} if channels else {}))
        async with sink.open(plan, made, overwrite=True) as writer:
            pieces = stream(plan, values, valid=valid, stop=stop)
            try:
                await writer.write(pieces)
            except Exception:
                assert stop < plan.count  # an interrupted run
        return Path(sink.outputs(plan.slide.ref)[0])

    def sink(
        plan: Any,
        values: Array,
        *,
        valid: Array | None = None,
        stop: int | None = None,
        channels: Sequence[str] = (),
        **settings: Any,
    ) -> Path:
        end = plan.count if stop is None else stop
        return anyio.run(write, plan, values, valid, end, [*channels], settings)

    return sink


def _transformations(pitch: tuple[float, float], origin: tuple[float, float]) -> list[Any]:
    """NGFF's, of cells ``(x, y)`` apart whose first one begins at a corner; level-0 pixels."""
    centre = [origin[a] + pitch[a] / 2 - 0.5 for a in (1, 0)]
    return [
        {"type": "scale", "scale": [1.0, pitch[1], pitch[0]]},
        {"type": "translation", "translation": [0.0, *centre]},
    ]


@pytest.fixture
def group(tmp_path: Path) -> MakeHeatmap:
    """Write a group by hand, of any number type, with any levels and chunks."""

    def make(
        levels: Sequence[Array],
        *,
        name: str = "map",
        pitch: tuple[float, float] = (8.0, 8.0),
        origin: tuple[float, float] = (0.0, 0.0),
        fill: float = np.nan,
        chunks: tuple[int, int, int] | None = None,
        shards: tuple[int, int, int] | None = None,
        valid: Array | None = None,
        kernel: int = 8,
        stride: int = 8,
        channels: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        complete: bool = True,
        **ome: Any,
    ) -> Path:
        path = tmp_path / f"{name}.zarr"
        base = levels[0]
        width, height = size or (int(base.shape[2] * pitch[0]), int(base.shape[1] * pitch[1]))
        axes = [{"name": "c", "type": "channel"}]
        axes += [{"name": n, "type": "space"} for n in "yx"]
        datasets = []
        for number, level in enumerate(levels):
            times = [base.shape[a] / level.shape[a] for a in (2, 1)]
            far = (pitch[0] * times[0], pitch[1] * times[1])
            transforms = _transformations(far, origin)
            datasets.append({"path": str(number), "coordinateTransformations": transforms})
        image: Any = {"name": name, "axes": axes, "datasets": datasets}
        windows = np.ones(base.shape[1:], np.uint8) if valid is None else valid
        record: Any = {
            "slide": {"name": f"{name}.svs", "width": width, "height": height, "mpp": None},
            "sampler": {"kernel_size": [kernel, kernel], "stride": [stride, stride]},
            "channels": [*channels] or [str(c) for c in range(base.shape[0])],
            "state": {"total": 9, "pieces": 9 if complete else 3, "invalid": 0},
        }
        store = zarr.open_group(
            str(path),
            mode="w",
            zarr_format=3,
            attributes={
                "ome": {"version": "0.5", "multiscales": [image], **ome},
                "streamwsi": record,
            },
        )
        for number, level in enumerate(levels):
            array = store.create_array(
                str(number),
                shape=level.shape,
                dtype=level.dtype,
                chunks=chunks or level.shape,
                shards=shards,
                fill_value=fill,
            )
            array[:] = level
        store.create_array("valid", shape=windows.shape, dtype="uint8", fill_value=0)[:] = windows
        return path

    return make


@pytest.fixture
def sparse(group: MakeHeatmap) -> Callable[..., tuple[Path, Any]]:
    """A large map without codes that holds nothing yet, and its array."""

    def make(
        rows: int, columns: int, chunks: tuple[int, int, int], **settings: Any
    ) -> tuple[Path, Any]:
        path = group([np.zeros((1, 4, 4), np.float32)], **settings)
        (path / "valid" / "zarr.json").unlink()
        shape = (1, rows, columns)
        how: dict[str, Any] = {"dtype": "float32", "fill_value": np.nan, "overwrite": True}
        return path, zarr.create_array(str(path / "0"), shape=shape, chunks=chunks, **how)

    return make


@pytest.fixture
def attributes() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """Change what a group says about itself."""

    def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
        document = json.loads((path / "zarr.json").read_text())
        edit(document["attributes"])
        (path / "zarr.json").write_text(json.dumps(document))

    return change


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a package look as if it were not installed."""
    real = builtins.__import__

    def remove(package: str) -> None:
        def missing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)

    return remove
