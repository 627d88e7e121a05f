"""From which layer on a file is fastest in integers, by timing whole files beside each other.

Early layers have few channels on large maps: float kernels are good at those, and integer kernels at the many channels
that come later. Every change from one to the other costs a pass over the map, so one place to change is what is sought.
The fastest of many runs counts: whatever else the machine does only ever adds time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, helper

from core.engine import runtime
from core.engine.context import Report

LADDER = (1, 2, 4, 8, 16, 32, 64)  # first layers left in float
FURTHEST = 2 / 3  # of the layers: beyond that little is left to gain
MISSES = 2  # steps of the ladder that do not help, after which the search ends
ROUNDS, RUNS = 12, 3
WORTH = 0.97  # of the time: what leaving more layers in float must save
SLOW = {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Mish", "Softplus"}


def is_mixed(model: ModelProto) -> bool:
    """Whether integers may cost more than they save: activations that are not straight lines, or depthwise layers."""
    return any(node.op_type in SLOW or _groups(node) > 1 for node in model.graph.node)


def _groups(node: NodeProto) -> int:
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "group"), 1)


def first_integer_layer(
    write: Callable[[int], ModelProto], layers: int, input_shape: tuple[int, ...], report: Report
) -> int:
    """How many of the first layers are best left in float, for one image on one thread.

    `write(n)` makes the file that leaves n of the `layers`.
    """
    best, misses, steps = 0, 0, [n for n in LADDER if n <= FURTHEST * layers]
    fastest = runtime.open_file(write(0).SerializeToString(), 1)
    for number, n in enumerate(steps):
        report(number / len(steps), f"Timing the file with {n} of {layers} layers in float")
        file = runtime.open_file(write(n).SerializeToString(), 1)
        before, after = _time((fastest, file), input_shape)
        misses = 0 if after <= WORTH * before else misses + 1
        if not misses:
            best, fastest = n, file
        elif misses == MISSES:
            break
    return best


def _time(files: tuple[runtime.Session, runtime.Session], input_shape: tuple[int, ...]) -> list[float]:
    """The fastest run of each file in seconds, in turns whose order alternates."""
    x = np.random.default_rng(0).standard_normal((1, *input_shape)).astype(np.float32)
    best = [np.inf, np.inf]
    for number in range(2 * ROUNDS):
        index = (number + number // 2) % 2
        for _ in range(RUNS):
            began = time.perf_counter()
            runtime.run(files[index], x)
            best[index] = min(best[index], time.perf_counter() - began)
    return best
