"""Fewer channels without training or labels: accuracy at shares of the MACs over seeds, torch-pruning beside it.

    python -m benchmarks.untrained MODEL.onnx DATA.npz [--shares 0.75 0.62 0.5] [--seeds 0 1 2]

A seed draws other calibration images, from which widths are planned and what remains is solved again. Accuracy is that
of the exported file on the whole test part. torch-pruning removes the same share of every group, by each criterion.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.peer_methods import Job, ours, pruned_by_torch_pruning
from benchmarks.peers import machine, versions
from benchmarks.subjects import add_subject
from core.engine import evaluate
from core.engine.data import CALIBRATION, Data
from core.engine.data_sets import open_data
from core.engine.formats import onnx_writer
from core.engine.models import open_model

RESULTS = Path(__file__).parent / "results"
CRITERIA = ("MagnitudeImportance", "FPGMImportance", "LAMPImportance")


def drawn(data: Data, seed: int) -> Data:
    """The same data, calibrated on other training images, without their labels."""
    index = np.random.default_rng(seed).permutation(len(data.train))[:CALIBRATION]
    return replace(data, calibration=replace(data.train.take(index), y=None))


def accuracy(file: Path, job: Job) -> float:
    assert job.data.test.y is not None
    answers = evaluate.predict(file, job.data.test, job.model.card, threads=1).argmax(1)
    return float((answers == job.data.test.y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_subject(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=(0.75, 0.62, 0.5))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--criteria", nargs="*", default=CRITERIA, help="of torch-pruning")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model({"kind": "file", "path": str(args.model), "mean": args.mean, "std": args.std})
    data = open_data({"kind": "file", "path": str(args.data)})
    path = RESULTS / f"untrained-{args.model.stem}.json"
    rows: list[dict[str, object]] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            original = Path(folder) / "original.onnx"
            onnx_writer.export(model.module, model.card, original)
            for share in args.shares:
                job = Job(model, drawn(data, seed), original, Path(folder), share, 0.0)
                file = ours(plan=True)(job)
                left = job.macs(file) / job.macs(original)
                rows.append({"seed": seed, "share": share, "macs": left, "accuracy": accuracy(file, job)})
                print(json.dumps(rows[-1]), flush=True)
    spread = {
        f"{share:g}": {"mean": float(np.mean(found)), "spread": float(np.ptp(found)), "least": min(found)}
        for share in args.shares
        for found in [[float(str(row["accuracy"])) for row in rows if row["share"] == share]]
    }
    about = {"model": args.model.stem, "images": len(data.test), "versions": versions(), "machine": machine()}
    found = {**about, "ours": spread, "rows": rows, "torch_pruning": {}}
    path.write_text(json.dumps(found, indent=1))
    with tempfile.TemporaryDirectory() as folder:
        for share in args.shares:
            job = Job(model, data, original, Path(folder), share, 0.0)
            by_criterion = {name: peer(job, name) for name in args.criteria}
            found["torch_pruning"][f"{share:g}"] = by_criterion  # type: ignore[index]
            print(share, by_criterion, flush=True)
            path.write_text(json.dumps(found, indent=1))


def peer(job: Job, criterion: str) -> float:
    file = job.folder / f"{criterion}.onnx"
    onnx_writer.export(pruned_by_torch_pruning(job, criterion), job.model.card, file)
    return accuracy(file, job)


if __name__ == "__main__":
    main()
