"""Real data and public checkpoints that are not part of the project: tests that need them skip, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("CNN_STUDIO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def shared(name: str) -> Path:
    """The path of one item. Skips the test where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"needs {name}, which is not in the project: put it in ../shared/data or set CNN_STUDIO_DATA")
    return path
