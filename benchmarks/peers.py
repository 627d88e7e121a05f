"""Beside the libraries that people would otherwise use: same model, images, threads and runtime.

    python -m benchmarks.peers MODEL DATA.npz [--share 0.5] [--seconds 200] [--unlabelled 500] [--architecture NAME]

MODEL is an ONNX file, or the weights of a torchvision architecture. Peers are optional: what is not installed, or fails
with this torch, is a row that says so. An environment of its own:

    python -m venv peers && peers/bin/pip install -e . nncf openvino neural-compressor tensorly

The methods are in benchmarks/peer_methods.py; structure keeps `--share` of the MACs, and with `--seconds` rows are
added that train for so long. The control that does nothing is the dense file, as it is and compressed. Accuracy is that
of the file on the whole test part. With `--unlabelled` so many test images without labels, fitted to the model's input,
tell how many answers stay the original's. Latency: ratios to the original in ONNX Runtime, batch 1, one thread (the
row of OpenVINO runs in OpenVINO). Times spent are processor seconds, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peer_methods import METHODS, TRAINED, Job, Make
from core.engine import runtime
from core.engine.data import Data, Images, make_data, to_input
from core.engine.data_sets import fit_to, open_data
from core.engine.formats import onnx_writer
from core.engine.models import Model, guess_normalization, open_model
from core.machine import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "torch-pruning", "nncf", "neural-compressor", "openvino", "tensorly")
FEWEST, MOST, SECONDS, RUNS, BATCH = 50, 400, 2.0, 10, 100
Run = Callable[[np.ndarray], np.ndarray]  # inputs (n, c, h, w) → answers (n, classes)


def opened(file: Path) -> Run:
    """On one thread, in the runtime that the file is for."""
    if file.suffix == ".onnx":
        session = runtime.open_file(file, 1)
        return lambda x: runtime.run(session, x)
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    return lambda x: np.asarray(request.infer([x], share_inputs=True)[0])


def speedup(first: Run, second: Run, shape: tuple[int, ...]) -> tuple[float, list[float]]:
    """(how many times faster `second` is by the fastest runs of both, 10th and 90th percentile of the ratios of pairs);
    whatever else the machine does only ever adds time. The order within pairs alternates."""
    x, pairs = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32), list[tuple[float, float]]()
    for run in (first, second):
        fastest(run, x)
    end = time.perf_counter() + SECONDS
    while len(pairs) < FEWEST or (time.perf_counter() < end and len(pairs) < MOST):
        if len(pairs) % 2:
            after, before = fastest(second, x), fastest(first, x)
        else:
            before, after = fastest(first, x), fastest(second, x)
        pairs.append((before, after))
    before, after = np.array(pairs).T
    return float(before.min() / after.min()), np.percentile(before / after, (10, 90)).tolist()


def fastest(run: Run, x: np.ndarray, times: int = RUNS) -> float:
    """Of some runs in a row, in seconds."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run(x)
        found.append(time.perf_counter() - began)
    return min(found)


def measured(make: Make, job: Job) -> dict[str, Any]:
    began = time.process_time()
    try:
        file = make(job)
        spent, run = time.process_time() - began, opened(file)
        answers = answers_of(run, job)
    except Exception as error:  # a peer may fail in any way: the row says so
        said = (str(error).splitlines() or [""])[0].partition(" (/")[0]  # without where it is installed here
        return {"failed": f"{type(error).__name__}: {said}"[:160]}
    labels = job.data.test.y
    wanted = answers_of(opened(job.original), job) if labels is None else labels
    times, spread = speedup(opened(job.original), run, job.model.card.input_shape)
    content = b"".join(f.read_bytes() for f in (file, *file.parent.glob(f"{file.stem}.bin")))
    return {
        "agreement" if labels is None else "accuracy": float((answers == wanted).mean()),
        "bytes": len(content), "xz_bytes": len(lzma.compress(content)), "zstd_bytes": zstd(content),
        "macs": job.macs(file) if file.suffix == ".onnx" else job.macs(job.original),
        "times_faster": times, "spread": spread, "seconds": spent,
    }  # fmt: skip


def answers_of(run: Run, job: Job) -> np.ndarray:
    """(n,) classes of the test images."""
    x = job.data.test.x
    parts = [run(to_input(x[i : i + BATCH], job.model.card)).argmax(1) for i in range(0, len(x), BATCH)]
    return np.concatenate(parts)


def zstd(content: bytes) -> int | None:
    """Bytes after Zstandard at level 19; None where the command is not installed."""
    if shutil.which("zstd") is None:
        return None
    return len(subprocess.run(["zstd", "-19", "-c"], input=content, capture_output=True, check=True).stdout)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    return f"{platform.machine()} {processor()}".strip()


def opened_pair(asked: argparse.Namespace) -> tuple[Model, Data]:
    """The model and its data, whose pixels are scaled as asked or as fits the labels best."""
    about = {"mean": asked.mean, "std": asked.std, "architecture": asked.architecture}
    model = open_model({"kind": "file", "path": str(asked.model), **{k: v for k, v in about.items() if v}})
    data = open_data({"kind": "file", "path": str(asked.data)})
    if asked.unlabelled:
        pool, test = (Images(part.x[: asked.unlabelled], None) for part in (data.train, data.test))
        data = fit_to(make_data(asked.data.stem, pool, test, (), flip=data.card.flip), model.card)
    if not asked.mean and not asked.architecture:
        model = replace(model, card=guess_normalization(model, data.validation))
    return model, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--architecture", help="torchvision's name of the network that weights belong to")
    parser.add_argument("--mean", type=float, nargs="+", help="of the training pixels in [0, 1]; else guessed")
    parser.add_argument("--std", type=float, nargs="+")
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that structure may keep")
    parser.add_argument("--seconds", type=float, default=0.0, help="of training; 0: none")
    parser.add_argument("--unlabelled", type=int, default=0, help="images without labels, as many of both parts")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, data = opened_pair(asked)
    rows: dict[str, Any] = {}
    found = {
        "model": asked.model.stem, "share": asked.share, "train_seconds": asked.seconds, "images": len(data.test),
        "versions": versions(), "machine": machine(), "cores": os.cpu_count(),
        "rows": rows,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original.onnx"
        if asked.model.suffix != ".onnx" or not onnx_writer.free_batch(asked.model, original):
            onnx_writer.export(model.module, model.card, original)
        job = Job(model, data, original, Path(folder), asked.share, asked.seconds)
        for name, make in (METHODS | (TRAINED if asked.seconds else {})).items():
            rows[name] = measured(make, job)
            print(f"{name:32}", json.dumps(rows[name]), flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"peers-{asked.model.stem}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
