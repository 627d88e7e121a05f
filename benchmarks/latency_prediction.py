"""Latency of whole networks from times of single operators: leave-one-out over ResNet-20s of random widths.

    python -m benchmarks.latency_prediction [--variants 16] [--type float32]

Each variant is exported and timed in ONNX Runtime (batch 1, one thread, fastest of interleaved rounds, so that a busy
machine slows none of them alone); its operators are timed alone. The affine step is fitted to all variants but the one
that is predicted. Goals: mean error 2 %, worst 5 %. MACs alone, fitted the same way, stand beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from core.cards import ModelCard
from core.engine import runtime
from core.engine.formats import onnx_writer
from core.engine.latency_table import time_operator
from core.engine.surgery import calls
from core.latency_table import Operator, fit_affine
from core.ranks import Shape
from sample_models.cifar_resnet import Block, CifarResNet

RESULTS = Path(__file__).parent / "results"
ROUNDS = 12  # of timing every variant and every operator once more
CARD = ModelCard("variant", "ResNet-20 of random widths", (3, 32, 32), tuple("0123456789"))


def make_variant(rng: np.random.Generator) -> CifarResNet:
    """ResNet-20 whose stages and inner convolutions have random widths, in steps of 4."""
    net = CifarResNet(20)
    width = {16: _width(rng, 16), 32: _width(rng, 32), 64: _width(rng, 64), 3: 3, 10: 10}
    net.conv1, net.bn1 = nn.Conv2d(3, width[16], 3, 1, 1, bias=False), nn.BatchNorm2d(width[16])
    for stage in (net.layer1, net.layer2, net.layer3):
        for i, block in enumerate(stage):
            assert isinstance(block, Block)
            c_in, c_out = width[block.conv1.in_channels], width[block.conv1.out_channels]
            inner, stride = _width(rng, block.conv1.out_channels), block.conv1.stride[0]
            made = Block(c_in, c_out, stride)
            made.conv1, made.bn1 = nn.Conv2d(c_in, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
            made.conv2 = nn.Conv2d(inner, c_out, 3, 1, 1, bias=False)
            if isinstance(block.shortcut, nn.Identity):
                made.shortcut = nn.Identity()
            stage[i] = made
    net.linear = nn.Linear(width[64], 10)
    return net.eval()


def _width(rng: np.random.Generator, most: int) -> int:
    return int(rng.integers(1, most // 4 + 1)) * 4


def shapes(net: nn.Module) -> list[Shape]:
    """The operators that the exported file runs; BatchNorm is folded."""
    found = []
    for call in calls(net, torch.zeros(1, *CARD.input_shape)):
        layer = call.layer
        if isinstance(layer, nn.Conv2d):
            size = (call.input_shape[1], call.input_shape[2]), (call.output_shape[1], call.output_shape[2])
            kernel = (layer.kernel_size[0], layer.kernel_size[1])
            found.append(Shape("conv", layer.in_channels, layer.out_channels, kernel, 1, *size, True))
        elif isinstance(layer, nn.Linear):
            found.append(Shape("linear", layer.in_features, layer.out_features, bias=True))
    return found


def measure(nets: list[CifarResNet], folder: Path) -> tuple[np.ndarray, dict[Shape, float]]:
    """(fastest run of each network in ms, fastest run of each operator), in interleaved rounds."""
    x = np.zeros((1, *CARD.input_shape), np.float32)
    sessions = []
    for i, net in enumerate(nets):
        onnx_writer.export(net, CARD, folder / f"{i}.onnx")
        sessions.append(runtime.open_file(folder / f"{i}.onnx", 1))
    whole = np.full(len(nets), np.inf)
    times: dict[Shape, float] = {}
    for _ in range(ROUNDS):
        for i, session in enumerate(sessions):
            for _ in range(25):
                start = time.perf_counter()
                runtime.run(session, x)
                whole[i] = min(whole[i], (time.perf_counter() - start) * 1000)
        for shape in {s for net in nets for s in shapes(net)}:
            times[shape] = min(times.get(shape, np.inf), time_operator(Operator(shape), seconds=0.01))
    return whole, times


def leave_one_out(sums: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Relative errors, each network predicted by the affine step of the others."""
    errors = np.empty(len(whole))
    for i in range(len(whole)):
        rest = np.arange(len(whole)) != i
        slope, intercept = fit_affine(sums[rest], whole[rest])
        errors[i] = abs(slope * sums[i] + intercept - whole[i]) / whole[i]
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    nets = [make_variant(rng) for _ in range(args.variants)]
    with tempfile.TemporaryDirectory() as folder:
        whole, times = measure(nets, Path(folder))
    sums = np.array([sum(times[s] for s in shapes(net)) for net in nets])
    macs = np.array([sum(s.macs for s in shapes(net)) for net in nets], float)
    found = {
        name: {"mean_error": float(e.mean()), "worst_error": float(e.max()), "spearman": float(spearmanr(v, whole)[0])}
        for name, v, e in (
            ("operator table", sums, leave_one_out(sums, whole)),
            ("MACs", macs, leave_one_out(macs, whole)),
        )
    } | {
        "overshoot_of_raw_sums": [float((sums / whole).min()), float((sums / whole).max())],
        "latency_ms": [float(whole.min()), float(whole.max())],
        "operators": len(times),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latency_prediction.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
