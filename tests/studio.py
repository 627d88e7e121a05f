"""A small real workspace for tests of the pages: the digits sample, opened by the very jobs that the studio runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from core.jobs import Job, JobStore
from core.recipe import Recipe, Step
from core.workspace import Workspace


def finish(store: JobStore, job: str, seconds: float = 180) -> Job:
    """Wait for a job that must succeed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        store.pump()
        found = store.get(job)
        if not found.live:
            assert found.status == "done", f"{found.error}\n{found.log.read_text()}"
            return found
        time.sleep(0.1)
    raise AssertionError(f"{store.get(job)} after {seconds} s")


def open_digits(root: Path) -> dict[str, Any]:
    """{"model", "data"} of the digits sample in a workspace at `root`."""
    source = {"model": {"kind": "sample", "name": "digits_lenet"}, "data": {"kind": "digits"}}
    store = JobStore(Workspace(root))
    return finish(store, store.submit("open", source, "Open LeNet on Digits")).result or {}


def run_int8(root: Path, opened: dict[str, Any]) -> str:
    """The id of a candidate: the digits sample in int8."""
    recipe = Recipe((Step("quantize"),))
    store = JobStore(Workspace(root))
    return str(
        (finish(store, store.submit("run", {**opened, "recipe": recipe.to_yaml()}, recipe.title)).result or {})[
            "candidate"
        ]
    )
