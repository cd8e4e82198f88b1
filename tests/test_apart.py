"""Outputs lie apart from the slide."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamwsi.apart import check_apart
from streamwsi.errors import ConfigError


@pytest.mark.parametrize("output", ["a.zarr", "link.zarr", "a.zarr/b.zarr", ".", "x/../a.zarr"])
def test_an_output_in_the_slides_place_is_refused(tmp_path: Path, output: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    for slide in ("a.zarr", "link.zarr"):
        with pytest.raises(ConfigError, match=f"{slide}: the output .* choose another"):
            check_apart(tmp_path / slide, tmp_path / output)


@pytest.mark.parametrize("output", ["b.zarr", "a.zarr.zarr", "out/a.zarr"])
def test_others_may_lie_beside_it(tmp_path: Path, output: str) -> None:
    (tmp_path / "a.zarr").mkdir()
    check_apart(tmp_path / "a.zarr", tmp_path / output)


def test_a_slide_that_is_no_file_has_no_place(tmp_path: Path) -> None:
    check_apart("memory", "memory")
    check_apart(tmp_path / "gone.svs", tmp_path / "gone.svs")
