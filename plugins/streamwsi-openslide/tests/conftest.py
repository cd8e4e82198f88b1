"""Fixtures of the plugin's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def slides() -> Path:
    """The folder of real slides, where this checkout has one beside it."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "slides"
    if not folder.is_dir():
        pytest.skip("the folder of real slides is not here")
    return folder
