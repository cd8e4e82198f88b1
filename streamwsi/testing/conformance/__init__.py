"""Tests that every stage must pass, for the authors of plugins.

Subclass the kit of your stage's role in a test module and give it a case::

    from streamwsi.testing.conformance import SourceCase, SourceConformance

    class TestMySource(SourceConformance):
        @pytest.fixture
        def case(self, tmp_path):
            array = write_a_slide(tmp_path / "a.xyz")
            return SourceCase(MySource(), SlideRef.of(tmp_path / "a.xyz"), (array,))

The kit checks what the other stages rely on: the stage is a value; its pixels, windows or
pieces come whole, in order and as the reference says; what is on loan is used no longer than it
may be; what was taken is given back, however the iteration ends; failures are not taken for
ends, nor cancellation for a failure; files are not opened in the event loop's thread.

Needs pytest, with its anyio plugin (``pip install streamwsi[test]``).
"""

from .masks import MaskCase, MaskConformance
from .processors import ProcessorCase, ProcessorConformance
from .samplers import SamplerCase, SamplerConformance
from .sinks import SinkCase, SinkConformance
from .sources import SourceCase, SourceConformance

__all__ = [
    "MaskCase",
    "MaskConformance",
    "ProcessorCase",
    "ProcessorConformance",
    "SamplerCase",
    "SamplerConformance",
    "SinkCase",
    "SinkConformance",
    "SourceCase",
    "SourceConformance",
]
