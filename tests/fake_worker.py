"""A worker with small tasks of its own, so that jobs are tested without a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.engine.worker import run_job
from core.errors import DataError
from core.workspace import Workspace


def count(workspace: Workspace, params: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Count to `steps`, `seconds` apart; leaves one file behind at each step."""
    for step in range(params["steps"]):
        time.sleep(params["seconds"])
        (workspace.root / "uploads" / f"step-{step}").touch()
        report((step + 1) / params["steps"], f"Step {step + 1}", loss=1 / (step + 1))
    return {"counted": params["steps"]}


def deaf(workspace: Workspace, params: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Never reports, so only a signal ends it."""
    time.sleep(60)
    return {}


def announce(workspace: Workspace, params: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    """Two reports in a row, then nothing for long: the second is what a person must see."""
    report(0.1, "First part")
    report(0.2, "Second part")
    time.sleep(60)
    return {}


def refuse(workspace: Workspace, params: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    raise DataError("x has 5 images and y has 4 labels; accepted are equal numbers.")


def crash(workspace: Workspace, params: dict[str, Any], report: Callable[..., None]) -> dict[str, Any]:
    raise ZeroDivisionError("a secret path")


if __name__ == "__main__":
    kinds = {"count": count, "deaf": deaf, "announce": announce, "refuse": refuse, "crash": crash}
    raise SystemExit(run_job(Path(sys.argv[1]), kinds))
