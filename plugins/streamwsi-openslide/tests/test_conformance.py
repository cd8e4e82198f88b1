"""The plugin keeps the rules of streamwsi's stages."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from streamwsi_openslide import OpenSlideSource

from streamwsi import SlideRef
from streamwsi.testing.conformance import SourceCase, SourceConformance


class TestOpenSlideSource(SourceConformance):
    @pytest.fixture
    def case(self, tmp_path: Path) -> SourceCase:
        level = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
        levels = (level, level[::2, ::2].copy())
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            for i, array in enumerate(levels):
                tiff.write(array, tile=(64, 64), photometric="rgb", subfiletype=int(i > 0))
        return SourceCase(OpenSlideSource(), SlideRef.of(tmp_path / "a.tif"), levels)
