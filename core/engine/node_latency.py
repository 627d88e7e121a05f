"""How long each layer of an ONNX file takes in ONNX Runtime, from the runtime's own profile: batch 1, one thread.

The runtime fuses and renames nodes: a convolution takes in the activation or the sum behind it and then carries the
name of that output, with `_nchwc` where it changed the memory layout. So each layer answers to the names of everything
that could be fused into it.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto

from core.engine import runtime
from core.engine.context import Report, silent
from core.engine.formats import onnx_names
from core.errors import ModelError

WARM_UP, RUNS = 5, 40
ADDED = re.compile(r"(_token_\d+)?(_nchwc)?(_kernel_time)?$")  # to a node's name, by the runtime
FUSED = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Add", "BatchNormalization"}


@dataclass(frozen=True)
class NodeLatency:
    """Medians over the runs. `layers` has no entry for a layer that the runtime's profile does not show."""

    latency_ms: float  # the whole file
    layers: dict[str, float]  # layer → latency_ms of its node, with what was fused into it


def measure_nodes(file: Path, input_shape: tuple[int, ...], report: Report = silent) -> NodeLatency:
    """Run one image of zeros (1, *input_shape) `RUNS` times. Raises ModelError when the file cannot be run."""
    runs = profile_runs(file, input_shape, report)
    whole = _time(file, input_shape)
    aliases = layer_aliases(onnx.load(file, load_external_data=False).graph)
    times: dict[str, list[float]] = {}
    for nodes in runs:
        sums: dict[str, float] = {}
        for name, micros in nodes:
            layer = aliases.get(plain_name(name))
            if layer is not None:
                sums[layer] = sums.get(layer, 0.0) + micros / 1000
        for layer, latency_ms in sums.items():
            times.setdefault(layer, []).append(latency_ms)
    return NodeLatency(whole, {layer: median(values) for layer, values in times.items()})


def layer_aliases(graph: GraphProto) -> dict[str, str]:
    """Every name under which the runtime may run a layer's node → the layer's path."""
    names = onnx_names.Names(graph.node)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in onnx_names.WEIGHTED:
            continue
        layer = names.of_layer(node)
        for alias in _fusable(node, readers):
            found.setdefault(alias, layer)
    return found


def _fusable(node: NodeProto, readers: dict[str, list[NodeProto]]) -> Iterator[str]:
    """The names of a node, of its output, and of what follows it alone and can be fused into it."""
    while True:
        yield node.name
        yield node.output[0]
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type not in FUSED:
            return
        node = following[0]


def plain_name(name: str) -> str:
    """'relu_3_nchwc_kernel_time' → 'relu_3', and 'conv_token_7_kernel_time', which computes in integers, → 'conv'."""
    return ADDED.sub("", name).removeprefix("fused ")


def _time(file: Path, input_shape: tuple[int, ...]) -> float:
    """Median of whole runs in milliseconds, without the profile, which itself takes time."""
    session, x, found = runtime.open_file(file, 1), np.zeros((1, *input_shape), np.float32), []
    for _ in range(WARM_UP + RUNS):
        began = time.perf_counter()
        runtime.run(session, x)
        found.append(1000 * (time.perf_counter() - began))
    return median(found[WARM_UP:])


def profile_runs(
    file: Path | bytes, input_shape: tuple[int, ...], report: Report = silent, count: int = RUNS
) -> list[list[tuple[str, float]]]:
    """(node, microseconds)… of each of `count` runs after the warm-up, in the order of computation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        source = file if isinstance(file, bytes) else str(file)
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises a different class for each way a file can be wrong
            name = "The model" if isinstance(file, bytes) else file.name
            raise ModelError(f"{name} cannot be run by ONNX Runtime: {str(error).splitlines()[0][:200]}.") from error
        x = np.zeros((1, *input_shape), np.float32)
        for n in range(WARM_UP + count):
            runtime.run(session, x)
            report((n + 1) / (WARM_UP + count), "Timing each layer")
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: list[list[tuple[str, float]]] = [[]]
    for event in events:
        if event["cat"] == "Node":
            runs[-1].append((event["name"], event["dur"]))
        elif event["name"] == "model_run":
            runs.append([])
    return runs[WARM_UP:-1]
