"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data named by `SARFACE_DATA`; skips the test when it is absent."""
    path = (ROOT / os.environ.get("SARFACE_DATA", "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set SARFACE_DATA to the folder that holds it")
    return path
