"""Jobs end as they should whatever happens to the worker, the page or the server."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core import jobs as jobs_module
from core.errors import JobError
from core.jobs import Job, JobStore
from core.workspace import Workspace


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(Workspace(tmp_path), worker="tests.fake_worker")


def wait(store: JobStore, job: str, reached: Callable[[Job], bool], seconds: float = 30) -> Job:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        store.pump()
        found = store.get(job)
        if reached(found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {store.get(job)} after {seconds} s\n{found.log.read_text()}")


def test_a_job_runs_to_its_result(store: JobStore) -> None:
    found = wait(store, store.submit("count", {"steps": 4, "seconds": 0.01}, "Count to 4"), lambda j: not j.live)
    assert (found.status, found.fraction, found.error) == ("done", 1.0, "")
    assert found.result == {"counted": 4}
    assert found.curves == {"loss": [1.0, 0.5, pytest.approx(1 / 3), 0.25]}
    assert found.metrics == {"loss": 0.25}
    assert found.created <= (found.started or 0) <= (found.ended or 0)


def test_time_left_follows_the_progress(store: JobStore) -> None:
    job = store.submit("count", {"steps": 40, "seconds": 0.1}, "Count slowly")
    found = wait(store, job, lambda j: j.fraction >= 0.5)
    # half of 40 steps of 0.1 s are left: 2 s, and a busy machine only makes it longer
    assert found.seconds_left is not None
    assert 1.0 < found.seconds_left < 8.0
    store.cancel(job)
    wait(store, job, lambda j: not j.live)


def test_what_a_long_silence_follows_is_shown(store: JobStore) -> None:
    job = store.submit("announce", {}, "Announce")
    assert wait(store, job, lambda j: j.message == "Second part", seconds=15).fraction == 0.2
    os.kill(json.loads((store.root / job / "proc.json").read_text())["pid"], signal.SIGKILL)
    wait(store, job, lambda j: not j.live)


def test_cancel_in_the_middle_keeps_what_was_made(store: JobStore) -> None:
    job = store.submit("count", {"steps": 500, "seconds": 0.05}, "Count for long")
    wait(store, job, lambda j: j.fraction > 0)
    store.cancel(job)
    assert store.get(job).status == "cancelling"
    found = wait(store, job, lambda j: not j.live, seconds=5)
    assert found.status == "cancelled"
    assert 0 < found.fraction < 1
    assert (store.root.parent / "uploads" / "step-0").exists()


def test_a_worker_that_ignores_cancel_is_stopped_by_signal(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "TERMINATE_AFTER", 0.3)
    job = store.submit("deaf", {}, "Deaf")
    wait(store, job, lambda j: j.message == "Starting" and j.started is not None)
    store.cancel(job)
    assert wait(store, job, lambda j: not j.live, seconds=10).status == "cancelled"


def test_a_killed_worker_fails_with_a_sentence(store: JobStore) -> None:
    job = store.submit("count", {"steps": 500, "seconds": 0.05}, "Count for long")
    wait(store, job, lambda j: j.fraction > 0)
    os.kill(json.loads((store.root / job / "proc.json").read_text())["pid"], signal.SIGKILL)
    found = wait(store, job, lambda j: not j.live)
    assert found.status == "failed"
    assert "ended unexpectedly (signal 9" in found.error
    assert (store.root.parent / "uploads" / "step-0").exists()
    store.pump()  # the worker may have gone between the last one and the look at it
    assert json.loads((store.root / job / "state.json").read_text())["status"] == "failed"  # pump wrote it down


def test_a_job_outlives_the_store_that_started_it(store: JobStore) -> None:
    job = store.submit("count", {"steps": 10, "seconds": 0.05}, "Count")
    later = JobStore(Workspace(store.root.parent), worker="tests.fake_worker")
    assert later.get(job).title == "Count"
    assert wait(later, job, lambda j: not j.live).result == {"counted": 10}


def test_one_job_at_a_time_in_the_order_of_submission(store: JobStore) -> None:
    names = [store.submit("count", {"steps": 3, "seconds": 0.1}, f"Job {n}") for n in range(3)]
    by_id = {job.id: job for job in store.list()}
    assert [by_id[name].status for name in names] == ["running", "queued", "queued"]
    assert [by_id[name].message for name in names[1:]] == [
        "Waiting: 1 job before this one",
        "Waiting: 2 jobs before this one",
    ]
    done = [wait(store, name, lambda j: not j.live) for name in names]
    starts = [job.started or 0 for job in done]
    assert starts == sorted(starts)
    assert all((before.ended or 0) <= (after.started or 0) for before, after in itertools.pairwise(done))


def test_a_waiting_job_is_cancelled_at_once(store: JobStore) -> None:
    first = store.submit("count", {"steps": 50, "seconds": 0.1}, "First")
    second = store.submit("count", {"steps": 1, "seconds": 0.1}, "Second")
    store.cancel(second)
    assert store.get(second).status == "cancelled"
    store.cancel(first)
    wait(store, first, lambda j: not j.live)
    store.pump()
    assert store.get(second).status == "cancelled"
    assert not (store.root / second / "proc.json").exists()


def test_a_users_error_is_shown_and_a_bug_only_in_the_log(store: JobStore) -> None:
    refused = wait(store, store.submit("refuse", {}, "Refuse"), lambda j: not j.live)
    assert (refused.status, refused.error) == (
        "failed",
        "x has 5 images and y has 4 labels; accepted are equal numbers.",
    )
    crashed = wait(store, store.submit("crash", {}, "Crash"), lambda j: not j.live)
    assert crashed.status == "failed"
    assert "stopped unexpectedly" in crashed.error
    assert "secret" not in crashed.error
    reference = crashed.error.split("reference ")[1].split(",")[0]
    log = crashed.log.read_text()
    assert reference in log
    assert "ZeroDivisionError: a secret path" in log


def test_an_unknown_kind_and_an_unknown_job_are_named(store: JobStore) -> None:
    found = wait(store, store.submit("dance", {}, "Dance"), lambda j: not j.live)
    assert found.error == "Unknown kind of job: received 'dance', accepted are count, deaf, announce, refuse, crash."
    with pytest.raises(JobError, match="nowhere is not in the workspace"):
        store.get("../nowhere")


def test_a_server_that_died_while_starting_a_worker_blocks_nothing(store: JobStore) -> None:
    running = store.submit("count", {"steps": 100, "seconds": 0.1}, "Running")
    orphan = store.submit("count", {"steps": 1, "seconds": 0}, "Claimed, never started")
    claim = store.root / orphan / "claim"
    claim.touch()
    os.utime(claim, (time.time() - 60,) * 2)
    assert store.get(orphan).status == "failed"
    store.cancel(running)
    wait(store, running, lambda j: not j.live)
    after = store.submit("count", {"steps": 1, "seconds": 0}, "After")
    assert wait(store, after, lambda j: not j.live).status == "done"
