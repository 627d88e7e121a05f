"""From which layer on a file is fastest in integers: proposed by the times of its nodes, decided by timing whole files.

Early layers have few channels on large maps: float kernels are good at those, and integer kernels at the many channels
that come later. Every change from one to the other costs a pass over the map, so one place to change is what is sought.
One profiled run of the file in float and one of the file in integers say what each place would take; the two best ones
are made and timed. The fastest of many runs counts: whatever else the machine does only ever adds time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from core.engine import runtime
from core.engine.context import Report
from core.engine.node_latency import plain_name, profile_runs

FURTHEST = 2 / 3  # of the layers: beyond that little is left to gain
APART = 1 / 10  # of the layers: how far from the best place the second one is
PROFILED = 40  # runs in which nodes are timed
ROUNDS, RUNS = 12, 3
WORTH = 0.97  # of the time: what leaving layers in float must save
SLOW = {"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Mish", "Softplus"}
Write = Callable[[int], ModelProto]


def is_mixed(model: ModelProto) -> bool:
    """Whether integers may cost more than they save: activations that are not straight lines, or depthwise layers."""
    return any(node.op_type in SLOW or _groups(node) > 1 for node in model.graph.node)


def _groups(node: NodeProto) -> int:
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "group"), 1)


def first_integer_layer(
    model: ModelProto, write: Write, layers: Sequence[str], input_shape: tuple[int, ...], report: Report
) -> int:
    """How many of the first layers are best left in float, for one image on one thread.

    `model` is the file in float, with the shapes of its values; `write(n)` makes the file that leaves n of `layers`.
    """
    report(0.0, "Timing the nodes of the file in float and in integers")
    whole = write(0)
    in_float, in_integers = (node_times(file, layers, input_shape) for file in (model, whole))
    entries = [_size_before(model, name) / prod(input_shape) for name in layers]
    places = best_places(in_float, in_integers, entries)
    files = [runtime.open_file(whole.SerializeToString(), 1)]
    for number, place in enumerate(places):
        report((1 + number) / (2 + len(places)), f"Timing the file with {place} of {len(layers)} layers in float")
        files.append(runtime.open_file(write(place).SerializeToString(), 1))
    first, *times = _time(files, input_shape)
    fastest = min(range(len(times)), key=lambda i: times[i], default=0)
    return places[fastest] if times and times[fastest] <= WORTH * first else 0


def node_times(model: ModelProto, layers: Sequence[str], input_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(1 + layers,) microseconds: what comes before the first layer, then each with what follows it up to the next.

    What the runtime added goes to the node that it ran before. A profile makes each node a little longer, so they are
    all shortened by as much as makes their sum the time of a run without one.
    """
    starts, places = 0, {}
    for node in model.graph.node:
        starts += node.name in layers
        for name in (node.name, *node.output):
            places[name] = starts
    content = model.SerializeToString()
    runs = profile_runs(content, input_shape, count=PROFILED)
    found, counts = np.zeros((len(runs), len(layers) + 1)), np.zeros(len(layers) + 1)
    for number, run in enumerate(runs):
        place = 0
        for name, micros in run:
            place = places.get(plain_name(name), place)
            found[number, place] += micros
            counts[place] += 1 / len(runs)
    times = found.min(0)
    (whole,) = _time([runtime.open_file(content, 1)], input_shape)
    longer = max(0.0, times.sum() - 1e6 * whole) / counts.sum()
    return np.asarray(np.maximum(times - longer * counts, 0.0))


def best_places(in_float: NDArray[np.float64], in_integers: NDArray[np.float64], entries: Sequence[float]) -> list[int]:
    """The numbers of first layers in float, above 0, whose files should be fastest: at most two, not side by side.

    Times are those of `node_times`; `entries` are the sizes of what each layer reads, as shares of the image's. Making
    integers of the image is what comes before the first layer, and takes as much longer as a later map is larger.
    """
    after = in_integers[1:].sum() - np.cumsum(in_integers[1:])
    changes = in_integers[0] * np.array([*entries[1:], 0.0])
    total = in_float[0] + np.cumsum(in_float[1:]) + after + changes  # with 1, 2, … layers in float
    total = total[: int(FURTHEST * len(total))]
    places: list[int] = []
    for index in np.argsort(total, kind="stable").tolist():
        if total[index] < in_integers.sum() and all(abs(index + 1 - p) > APART * len(entries) for p in places):
            places.append(index + 1)
    return places[:2]


def _size_before(model: ModelProto, layer: str) -> float:
    """Numbers in what a layer reads, for one image; 0 where the shape is not known."""
    (source,) = (node.input[0] for node in model.graph.node if node.name == layer)
    for value in (*model.graph.input, *model.graph.value_info):
        if value.name == source:
            return float(prod(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]))
    return 0.0


def _time(files: Sequence[runtime.Session], input_shape: tuple[int, ...]) -> list[float]:
    """The fastest run of each file in seconds, in turns whose order rotates."""
    x = np.random.default_rng(0).standard_normal((1, *input_shape)).astype(np.float32)
    best = [np.inf] * len(files)
    for number in range(ROUNDS * len(files)):
        index = (number + number // len(files)) % len(files)
        for _ in range(RUNS):
            began = time.perf_counter()
            runtime.run(files[index], x)
            best[index] = min(best[index], time.perf_counter() - began)
    return best
