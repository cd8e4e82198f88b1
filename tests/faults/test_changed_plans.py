"""The same output, another plan: refused by name, and nothing is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from streamwsi.cli import app
from streamwsi.geometry import Size
from streamwsi.testing.synthetic import write_slide


def save_model(path: Path, factor: float) -> None:
    """A TorchScript file."""

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * self.factor

    traced: Any = torch.jit.trace(Scaled(), torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    traced.save(str(path))


def heatmap(folder: Path, *options: str) -> Any:
    command = ["heatmap", str(folder / "slide.svs"), "--model", str(folder / "model.pt")]
    command += ["--out", str(folder / "out"), "--workers", "1", *options]
    return CliRunner().invoke(app, command)


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Each file's inode, time of change and bytes, and each folder's."""
    return {
        str(path): (
            (status := path.stat()).st_ino,
            status.st_mtime_ns,
            b"" if path.is_dir() else path.read_bytes(),
        )
        for path in [folder, *folder.rglob("*")]
    }


def other_model(folder: Path) -> tuple[str, ...]:
    save_model(folder / "model.pt", 3.0)
    return ()


def other_slide(folder: Path) -> tuple[str, ...]:
    write_slide(folder / "slide.svs", Size(700, 600), levels=1, seed=2)
    return ()


def other_kernel(folder: Path) -> tuple[str, ...]:
    return "--kernel-size", "60", "--stride", "64"


def other_batches_and_mean(folder: Path) -> tuple[str, ...]:
    return "--batch-size", "7", "--mean", "0.5,0.5,0.5"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("sink", ["zarr", "pdmcsv"])
@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (other_model, ["processor.model"]),
        (other_slide, ["slide.identity"]),
        (other_kernel, ["sampler.kernel_size [64, 64] → [60, 60]"]),
        (other_batches_and_mean, ["processor.batch_size 32 → 7", "processor.mean null → [0.5"]),
    ],
)
def test_a_changed_plan_is_refused_and_touches_nothing(
    sink: str, change: Callable[[Path], tuple[str, ...]], fields: list[str], tmp_path: Path
) -> None:
    write_slide(tmp_path / "slide.svs", Size(700, 600), levels=1)
    save_model(tmp_path / "model.pt", 2.0)
    first = heatmap(tmp_path, "--kernel-size", "64", "--sink", sink)
    assert first.exit_code == 0, first.stderr
    before = everything(tmp_path / "out")
    options = ("--kernel-size", "64", "--sink", sink, *change(tmp_path))
    done = heatmap(tmp_path, *options)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    for field in (*fields, "--overwrite starts afresh"):
        assert field in done.stderr
    assert everything(tmp_path / "out") == before
    assert heatmap(tmp_path, *options, "--overwrite").exit_code == 0
    assert everything(tmp_path / "out") != before


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_copies_of_slide_and_model_are_the_same_plan(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.svs", Size(700, 600), levels=1)
    save_model(tmp_path / "model.pt", 2.0)
    assert heatmap(tmp_path).exit_code == 0
    for name in ("slide.svs", "model.pt"):
        shutil.copyfile(tmp_path / name, tmp_path / "copy")
        (tmp_path / "copy").replace(tmp_path / name)
        os.utime(tmp_path / name, (0, 0))
    before = everything(tmp_path / "out")
    done = heatmap(tmp_path)
    assert done.exit_code == 0, done.stderr
    assert everything(tmp_path / "out") == before
