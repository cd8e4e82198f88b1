"""streamwsi: stream whole-slide images through PyTorch models.

::

    from streamwsi import Pipeline, run_sync

A run is a handful of lanes; a lane is one slide moving read → sample → process → write; every
arrow is a bounded link; order is kept everywhere, so that the state of a lane is one number.
Read on in `streamwsi.lanes` (the way of the data), `streamwsi.stages` (what a stage is) and
`streamwsi.sources.scroll` (how each tile is decoded once).

Importing this package loads none of torch, zarr and tifffile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_imports import loaded_on_use

if TYPE_CHECKING:
    from .chunks import Batch, Pieces, Placement, ProcessedPiece
    from .errors import ConfigError, SlideError, StreamwsiError
    from .geometry import Box, Size
    from .limits import Limits
    from .pipelines import Pipeline, from_toml, to_toml
    from .reports import RunReport, SlideOutcome
    from .runs import run, run_sync
    from .slides import Level, Microns, Mpp, Power, Pyramid, PyramidLevel, Slide, SlideRef
    from .streams import stream_batches

__all__ = [
    "Batch",
    "Box",
    "ConfigError",
    "Level",
    "Limits",
    "Microns",
    "Mpp",
    "Pieces",
    "Pipeline",
    "Placement",
    "Power",
    "ProcessedPiece",
    "Pyramid",
    "PyramidLevel",
    "RunReport",
    "Size",
    "Slide",
    "SlideError",
    "SlideOutcome",
    "SlideRef",
    "StreamwsiError",
    "from_toml",
    "run",
    "run_sync",
    "stream_batches",
    "to_toml",
]

__version__ = "0.1.0"

__getattr__ = loaded_on_use(
    __name__,
    {
        "Batch": "chunks",
        "Box": "geometry",
        "ConfigError": "errors",
        "Level": "slides",
        "Limits": "limits",
        "Microns": "slides",
        "Mpp": "slides",
        "Pieces": "chunks",
        "Pipeline": "pipelines",
        "Placement": "chunks",
        "ProcessedPiece": "chunks",
        "Power": "slides",
        "Pyramid": "slides",
        "PyramidLevel": "slides",
        "RunReport": "reports",
        "Size": "geometry",
        "Slide": "slides",
        "SlideError": "errors",
        "SlideOutcome": "reports",
        "SlideRef": "slides",
        "StreamwsiError": "errors",
        "from_toml": "pipelines",
        "run": "runs",
        "run_sync": "runs",
        "stream_batches": "streams",
        "to_toml": "pipelines",
    },
)
