"""How time and memory of the forecast grow with depth: tiers 0, 1 and 2 on ResNets of 20, 56 and 110 layers.

    python -m benchmarks.growth [--depths 20,56,110]

Weights are random: how long it takes does not depend on them. Times are processor seconds on one thread. Tier 0 is run
whole; of tier 1 100 cells drawn at random and of tier 2 two plans are run and scaled to all cells and 16 plans of 2,000
images. Each depth has a process of its own, whose peak memory is kept. Tier 1 runs a suffix for every layer, on as many
fewer images as the network is deeper.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.cards import ModelCard
from core.engine.calibrate import measure_plan
from core.engine.data import Images
from core.engine.fisher import parcels, rank_cells
from core.engine.formats import onnx_writer
from core.engine.models import Model
from core.engine.perturb import describe
from core.engine.profile import profile
from core.engine.sensitivity import Control, draw_sample, foresee, measure_cell, settings, settings_of
from core.engine.telling import answers
from sample_models.cifar_resnet import CifarResNet

RESULTS = Path(__file__).parent / "results"
CELLS, PLANS, IMAGES = 100, 16, 2000
POOL = 512  # images that tier 1 picks from
FEW = 100  # images that a plan is run on


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def normalized(net: nn.Module) -> nn.Module:
    """With the statistics of random images, so that numbers neither vanish nor explode, which would take longer."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.inference_mode():
        net.train()(torch.randn(FEW, 3, 32, 32))
    return net.eval()


def measure(depth: int) -> dict[str, float]:
    torch.manual_seed(0)
    net = normalized(CifarResNet(depth))
    card = ModelCard(f"resnet{depth}", "Random weights", (3, 32, 32), tuple("0123456789"))
    with tempfile.TemporaryDirectory() as folder:
        onnx_writer.export(net, card, Path(folder) / "net.onnx")
        layers = profile(Model(net, card), Path(folder) / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3)).astype(np.uint8)
    network = describe(net, card, layers, Images(pixels, None))
    x = torch.randn(POOL, 3, 32, 32)
    cells = settings(layers)
    tier0 = seconds(lambda: rank_cells(network, x[:96], None, cells))
    some = [cells[i] for i in np.random.default_rng(0).choice(len(cells), CELLS, replace=False)]
    chosen = list(settings_of(network, some))
    start = time.process_time()
    sample, controls = draw_sample(network, x, None), list[Control | None]()
    for parcel in parcels(settings_of(network, cells)):
        controls += foresee(network, sample, [each for setting in parcel for each in setting.altered])
    drawn = time.process_time()
    for setting in chosen:
        measure_cell(sample, setting, iter(controls))
    tier1 = drawn - start + (time.process_time() - drawn) / CELLS * len(cells)
    x = x[:FEW]
    before, plan = answers(net, x), dict(some[:20])
    tier2 = min(seconds(lambda: measure_plan(network, plan, x, None, before)) for _ in range(2)) * PLANS * IMAGES / FEW
    return {
        "layers": len(layers.tunable), "cells": len(cells), "macs": layers.macs, "tier0_s": tier0, "tier1_s": tier1,
        "tier2_s": tier2, "kept_mb": sample.replay.kept_bytes / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="20,56,110")
    parser.add_argument("--one", type=int, help="measure this depth in this process and print it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    found = {}
    for depth in args.depths.split(","):
        command = [sys.executable, "-m", "benchmarks.growth", "--one", depth]
        found[depth] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(depth, found[depth], flush=True)
    first = next(iter(found.values()))
    for row in found.values():
        row |= {f"{k}_of_first": row[k] / first[k] for k in ("layers", "tier0_s", "tier1_s", "tier2_s", "peak_mb")}
    (RESULTS / "growth.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
