"""Durable jobs: one folder and one process per job. No threads, no torch; a job outlives the page and the server.

    <workspace>/jobs/<id>/  spec.json    what was asked, never changed        (submit)
                            claim        made with O_EXCL: who makes it, starts the worker, and nobody else (pump)
                            proc.json    the worker's process id and start time
                            state.json   status, fraction, message, numbers   (the worker, atomically)
                            cancel       its existence asks the worker to stop (cancel)
                            log.txt      what the worker printed

A worker notices `cancel` at its next progress report; one that does not is asked by signal after 5 s and killed after
10 s. A worker that is gone without a last word makes the job fail with a sentence; whatever it finished stays.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from core.errors import JobError
from core.workspace import Workspace, write_json

LIVE = ("queued", "running", "cancelling")
TERMINATE_AFTER = 5.0  # seconds after `cancel` until the worker gets SIGTERM
KILL_AFTER = 10.0  # … and SIGKILL
START_WITHIN = 30.0  # seconds a claimed job may be without a process

_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}  # children belong to the process, so they are not kept per store


@dataclass(frozen=True)
class Job:
    """What is known about a job right now."""

    id: str
    kind: str
    title: str
    params: dict[str, Any]
    folder: Path
    created: float  # seconds since the epoch, as all times here
    status: str = "queued"  # queued, running, cancelling, done, failed or cancelled
    fraction: float = 0.0  # done so far, in [0, 1]
    message: str = "Waiting to start"
    started: float | None = None
    ended: float | None = None
    updated: float = 0.0
    seconds_left: float | None = None  # estimated from the progress so far, when it was last reported
    error: str = ""  # one sentence, when failed
    result: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None  # newest value of each number the task reported
    curves: dict[str, list[float]] | None = None  # all values of each of those numbers

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


class JobStore:
    """The jobs of one workspace. Holds nothing itself, so any number of stores may look at the same folder."""

    def __init__(self, workspace: Workspace, *, max_running: int = 1, worker: str = "core.engine.worker") -> None:
        """One job at a time by default: two that share the cores would spoil each other's latency measurements."""
        self.root = workspace.root / "jobs"
        self.max_running = max_running
        self.worker = worker  # the module that runs a job

    def submit(self, kind: str, params: Mapping[str, Any], title: str) -> str:
        """Queue a job and start it if there is room. Returns its id."""
        job = time.strftime("%y%m%d-%H%M%S-") + secrets.token_hex(3)
        folder = self.root / job
        folder.mkdir(parents=True)
        write_json(folder / "state.json", {"status": "queued"})
        spec = {"id": job, "kind": kind, "title": title, "params": dict(params), "created": time.time()}
        write_json(folder / "spec.json", spec)  # last: a folder without it is no job
        self.pump()
        return job

    def get(self, job: str) -> Job:
        """Raises JobError when there is no such job."""
        folder = self.root / Path(job).name
        try:
            found = _read(folder)
            if found.live and _gone(folder, found.created):
                found = _read(folder)  # it may have written its last word between the two looks
                found = _lost(found) if found.live else found
        except (OSError, ValueError, TypeError) as error:
            raise JobError(f"Job {folder.name} is not in the workspace: no record can be read.") from error
        if found.live and (folder / "cancel").exists():
            return replace(found, status="cancelling", message="Stopping", seconds_left=None)
        return found

    def list(self) -> list[Job]:
        """All jobs, newest first; a waiting job's message says how many are before it."""
        names = [f.name for f in self.root.iterdir() if (f / "spec.json").exists()]
        jobs = sorted((self.get(name) for name in names), key=lambda j: (j.created, j.id), reverse=True)
        ahead = sum(j.status in ("running", "cancelling") for j in jobs)
        waiting = [j.id for j in reversed(jobs) if j.status == "queued"]
        return [replace(j, message=_place(ahead + waiting.index(j.id))) if j.status == "queued" else j for j in jobs]

    def cancel(self, job: str) -> None:
        """Ask a live job to stop. One that has not started is cancelled at once."""
        found = self.get(job)
        if not found.live:
            return
        if found.status == "queued" and _claim(found.folder):
            _end(found.folder, "cancelled", "Cancelled before it started")
        else:
            (found.folder / "cancel").touch()

    def pump(self) -> None:
        """Start waiting jobs while there is room. Safe to call from anywhere, any number of times."""
        self.reap()
        jobs = self.list()
        room = self.max_running - sum(j.status in ("running", "cancelling") for j in jobs)
        for job in reversed(jobs):
            if room > 0 and job.status == "queued" and _claim(job.folder):
                self._start(job)
                room -= 1

    def reap(self) -> None:
        """Write down the end of jobs whose worker is gone, and stop workers that ignore `cancel`."""
        for job in self.list():
            if job.status in ("failed", "cancelled") and _read(job.folder).live:
                _end(job.folder, job.status, job.message, job.error)
            elif job.status == "cancelling":
                _press(job.folder)

    def _start(self, job: Job) -> None:
        try:
            with job.log.open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", self.worker, str(job.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=Path(__file__).resolve().parents[1],
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # a signal to the server, such as Ctrl-C, is not one to the worker
                )
        except OSError as error:
            _end(job.folder, "failed", "Could not start", f"The worker could not be started: {error}.")
            return
        _CHILDREN[child.pid] = child
        write_process(job.folder, child.pid)


def write_process(folder: Path, pid: int) -> None:
    """Say which process runs the job. The worker does so too, in case the server dies right after it started it."""
    write_json(folder / "proc.json", {"pid": pid, "started": _start_time(pid)})


def _read(folder: Path) -> Job:
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state["status"] == "queued" and (folder / "proc.json").exists():
        state |= {"status": "running", "message": "Starting"}
    return Job(folder=folder, **spec, **state)


def _claim(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "claim", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _place(ahead: int) -> str:
    if ahead == 0:
        return "Waiting to start"
    return f"Waiting: {ahead} job{'s' if ahead > 1 else ''} before this one"


def _end(folder: Path, status: str, message: str, error: str = "") -> None:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state.pop("seconds_left", None)
    now = time.time()
    end = {"status": status, "message": message, "error": error, "updated": now, "ended": now}
    write_json(folder / "state.json", state | end)


def _start_time(pid: int) -> float | None:
    """When the process began: tells a worker from a later process with the same id. None when it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _gone(folder: Path, created: float) -> bool:
    try:
        process = json.loads((folder / "proc.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        claim = folder / "claim"  # claimed, but the server died before it could start the worker
        return claim.exists() and time.time() - claim.stat().st_mtime > START_WITHIN
    now = _start_time(process["pid"])
    # the clock may be set between two readings, hence the slack; no id comes round again within seconds
    return now is None or process["started"] is None or abs(now - process["started"]) > 10


def _lost(job: Job) -> Job:
    if (job.folder / "cancel").exists():
        return replace(job, status="cancelled", message="Cancelled", seconds_left=None)
    how = _exit_of(job.folder)
    error = f"The worker ended unexpectedly{how}. Everything already made is kept; start it again to repeat this job."
    return replace(job, status="failed", message="Failed", error=error, seconds_left=None)


def _exit_of(folder: Path) -> str:
    """' (signal 9, …)' where this process started the worker; only a parent gets to know."""
    proc = folder / "proc.json"
    child = _CHILDREN.get(json.loads(proc.read_text(encoding="utf-8"))["pid"]) if proc.exists() else None
    try:
        code = child.wait(5) if child else None  # its threads may take a moment longer to go than it
    except subprocess.TimeoutExpired:
        return ""
    if code is None:
        return ""
    if code >= 0:
        return f" (exit code {code})"
    return " (signal 9, often too little memory)" if code == -9 else f" (signal {-code})"


def _press(folder: Path) -> None:
    """Signal a worker, with its children, that has ignored `cancel` for too long."""
    asked = time.time() - (folder / "cancel").stat().st_mtime
    proc = folder / "proc.json"
    if asked < TERMINATE_AFTER or not proc.exists():
        return
    try:
        worker = psutil.Process(json.loads(proc.read_text(encoding="utf-8"))["pid"])
        for process in [*worker.children(recursive=True), worker]:
            process.kill() if asked > KILL_AFTER else process.terminate()
    except psutil.NoSuchProcess:
        return  # it went by itself; the next look sees that
