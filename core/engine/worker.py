"""`python -m core.engine.worker <job folder>`: run one job to its end and say how it went.

The process holds everything with tensors, so a crash, an out-of-memory kill or a hostile model takes down one job and
nothing else. A task is a function `(workspace, params, report) -> result`; `KINDS` is the list of them.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.engine import tasks
from core.errors import Cancelled, JobError, StudioError
from core.jobs import write_process
from core.workspace import Workspace, write_json

Task = Callable[[Workspace, dict[str, Any], Callable[..., None]], dict[str, Any]]

KINDS: dict[str, Task] = {
    "open": tasks.open_pair,
    "run": tasks.run_recipe,
    "optimize": tasks.optimize,
    "sensitivity": tasks.measure_sensitivity,
}

INTERVAL = 0.2  # seconds between two writes of the state
COUNTS = re.compile(r"[\d.,]+")
CURVE = 500  # values kept of each reported number


class Progress:
    """The `report` that tasks call: writes the job's state, and raises Cancelled when the user asked to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {"fraction": 0.0, "started": time.time(), "metrics": {}, "curves": {}}
        self.written = 0.0
        self.words = ""

    def __call__(self, fraction: float, message: str, **numbers: object) -> None:
        """`numbers` are kept: the newest value of each, and floats as a curve."""
        if (self.folder / "cancel").exists():
            raise Cancelled("Cancelled.")
        for name, value in numbers.items():
            self.state["metrics"][name] = value
            if isinstance(value, float):
                self.state["curves"][name] = [*self.state["curves"].get(name, ())[1 - CURVE :], value]
        now = time.time()
        self.state |= {"fraction": round(min(max(fraction, 0.0), 1.0), 4), "message": message}
        self.state["seconds_left"] = _seconds_left(now - self.state["started"], fraction)
        words = COUNTS.sub("", message)  # what is being done; how much of it changes too often to write each time
        if numbers or words != self.words or now - self.written >= INTERVAL:
            self.words = words
            self.write("running")

    def write(self, status: str, **more: object) -> None:
        self.written = time.time()
        write_json(self.folder / "state.json", self.state | {"status": status, "updated": self.written} | more)

    def end(self, status: str, message: str, **more: object) -> None:
        self.state["seconds_left"] = None
        self.write(status, message=message, ended=time.time(), **more)


def _seconds_left(elapsed: float, fraction: float) -> float | None:
    """None until enough is done for the estimate to mean something."""
    if elapsed < 1 or fraction < 0.1:
        return None
    return elapsed * (1 - fraction) / fraction


def run_job(folder: Path, kinds: Mapping[str, Task] = KINDS) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 cancelled. A traceback goes to the log and nowhere else."""
    write_process(folder, os.getpid())
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    progress = Progress(folder)
    try:
        progress(0.0, "Starting")
        if spec["kind"] not in kinds:
            raise JobError(f"Unknown kind of job: received {spec['kind']!r}, accepted are {', '.join(kinds)}.")
        result = kinds[spec["kind"]](Workspace(folder.parents[1]), spec["params"], progress)
    except Cancelled:
        progress.end("cancelled", "Cancelled")
        return 2
    except StudioError as refusal:
        print(refusal)
        progress.end("failed", "Failed", error=str(refusal))
        return 1
    except Exception:
        # the boundary of the process: whatever went wrong, the page gets a sentence and the log the traceback
        reference = secrets.token_hex(4)
        print(f"reference {reference}")
        traceback.print_exc()
        sentence = f"The job stopped unexpectedly. Its log, under reference {reference}, says where; nothing was lost."
        progress.end("failed", "Failed", error=sentence)
        return 1
    progress.end("done", "Finished", fraction=1.0, result=result)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_job(Path(sys.argv[1])))
