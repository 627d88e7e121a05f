"""From the click on Run to a verified result: channel pruning with repair, then int8, without training (goal: 30 s).

    python -m benchmarks.click_to_result MODEL.onnx DATA.npz [--runs 3]

The same job that the page submits, in a worker process of its own: it starts Python and torch, applies both steps,
exports, checks the file, scores it on the whole test part and times it beside the original. Each run has another seed,
so that none is answered from the workspace. The longest stages are printed as the job reports them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from core.jobs import Job, JobStore
from core.recipe import Recipe, Step
from core.workspace import Workspace

RESULTS = Path(__file__).parent / "results"
STEPS = (Step("prune_channels", {"ratio": 0.3}), Step("quantize"))


def wait(store: JobStore, name: str, stages: dict[str, float]) -> Job:
    """The job once it has ended; the seconds that each of its messages stood are added to `stages`."""
    seen, since = "", time.perf_counter()
    while (job := store.get(name)).live:
        store.pump()
        if job.message != seen:
            stages[seen] = stages.get(seen, 0.0) + time.perf_counter() - since
            seen, since = job.message, time.perf_counter()
        time.sleep(0.05)
    if job.status != "done":
        raise SystemExit(f"{job.title}: {job.error or job.message}")
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    sources = {"model": {"kind": "file", "path": str(asked.model)}, "data": {"kind": "file", "path": str(asked.data)}}
    with tempfile.TemporaryDirectory() as home:
        space = Workspace(Path(home))
        store = JobStore(space)
        opened = wait(store, store.submit("open", sources, "Open"), {}).result or {}
        seconds, stages = [], dict[str, float]()
        for seed in range(asked.runs):
            order = {**opened, "recipe": Recipe(STEPS, seed).to_yaml()}
            start = time.perf_counter()
            job = wait(store, store.submit("run", order, "Run"), stages)
            seconds.append(time.perf_counter() - start)
        scores = space.candidate(str((job.result or {})["candidate"])).scores
    print(f"median {statistics.median(seconds):.1f} s, from {min(seconds):.1f} to {max(seconds):.1f}")
    longest = sorted(stages.items(), key=lambda item: -item[1])[:10]
    for message, spent in longest:
        print(f"{spent / asked.runs:6.1f} s  {message}")
    found = {"seconds": seconds, "stages": {m: s / asked.runs for m, s in longest}, "agreement": scores.agreement.value}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "click_to_result.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
