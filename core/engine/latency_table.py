"""Measure the latency table: each operator alone in ONNX Runtime, then whole models for the affine step.

An operator is one convolution (or matrix product) with its activation, float or between uint8 tensors as in a quantized
model. It is timed behind a small convolution that makes its input, whose own time is taken off: inside a network it
finds its input in the runtime's own memory layout and in warm caches, and alone it would pay for both. The fastest of
many runs counts: whatever else the machine does only ever adds time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from core.engine import runtime
from core.engine.context import Report, silent
from core.latency_table import BLOCK, FLOAT, INTEGER, Blocks, LatencyTable, Operator, fit_affine
from core.layers import Layer, Profile
from core.predict import shape_of
from core.ranks import Shape

SECONDS = 0.15  # spent on each operator
FEWEST = 10  # runs, however slow
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the original widths
WIDE = 16  # channels that some runtimes compute at once
ALIKE = 0.93  # of the time of a full block: what part of one takes at least if it is filled up
LEAST_ADDED = 0.02  # of the time that an operator and its maker take: noise may not make it free
OPSET, IR = 17, 8


def operators_of(profile: Profile, types: Sequence[str] = (FLOAT, INTEGER)) -> list[Operator]:
    """Every layer at a grid of widths, each shape once: what a table needs to know about a model."""
    found: dict[Operator, None] = {}
    for layer in profile.tunable:
        for shape in _grid(layer):
            found.update(dict.fromkeys(Operator(shape, kind) for kind in types if _supported(shape)))
    return list(found)


def _grid(layer: Layer) -> list[Shape]:
    """The layer at four widths of its inputs and outputs."""
    widths = [{_block(c * share, c) for share in SHARES} for c in (layer.in_channels, layer.out_channels)]
    if layer.kind == "depthwise":
        return [shape_of(layer, c, c) for c in sorted(widths[1])]
    if layer.groups > 1:
        return [shape_of(layer, layer.in_channels, layer.out_channels)]
    return [shape_of(layer, a, b) for a in sorted(widths[0]) for b in sorted(widths[1])]


def _block(wanted: float, most: int) -> int:
    return min(most, max(BLOCK, round(wanted / BLOCK) * BLOCK))


def _supported(shape: Shape) -> bool:
    return shape.kind in ("conv", "depthwise", "linear")


def operator_file(operator: Operator, batch: int = 1) -> bytes:
    """An ONNX file of this one operator followed by its activation; weights are noise."""
    return _file((operator,), batch)


def _file(operators: Sequence[Operator], batch: int) -> bytes:
    """An ONNX file of operators in a row, each followed by its activation."""
    first, kind = operators[0].shape, TensorProto.UINT8 if operators[0].type == INTEGER else TensorProto.FLOAT
    size = [batch, first.in_channels, *([] if first.kind == "linear" else first.in_size)]
    nodes: list[NodeProto] = []
    constants: dict[str, Any] = {}
    for number, operator in enumerate(operators):
        found, values = _nodes(operator, str(number), str(number + 1))
        nodes, constants = nodes + found, constants | values
    graph = helper.make_graph(
        nodes,
        "operator",
        [helper.make_tensor_value_info("0", kind, size)],
        [helper.make_tensor_value_info(str(len(operators)), kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString())


def _nodes(operator: Operator, x: str, z: str) -> tuple[list[NodeProto], dict[str, Any]]:
    """(the nodes from value `x` to value `z`, their constants)."""
    shape, linear = operator.shape, operator.shape.kind == "linear"
    groups = shape.out_channels if shape.kind == "depthwise" else shape.groups
    weight = [shape.out_channels, shape.in_channels // groups, *([] if linear else shape.kernel)]
    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    main = "Gemm" if linear else "Conv"
    options = {"transB": 1} if linear else {"group": groups, **_window(shape)}
    w, b, y = (f"{name}{z}" for name in "wby")
    if operator.type == INTEGER:
        before, inputs, after, constants = _integer_ends(values, x, z)
    else:
        before, inputs, after = [], [x, w, b], [helper.make_node("Relu", [y], [z])]
        constants = {w: values, b: np.zeros(shape.out_channels, np.float32)}
    return [*before, helper.make_node(main, inputs, [y], **options), *after], constants


def _integer_ends(
    values: NDArray[np.float32], x: str, z: str
) -> tuple[list[NodeProto], list[str], list[NodeProto], dict[str, Any]]:
    """(nodes before, the operator's inputs, nodes after, constants) that the runtime fuses into an integer one."""
    scales = np.full(len(values), 0.02, np.float32)
    constants = {
        "w": np.clip(np.round(values * 40), -63, 63).astype(np.int8),
        "b": np.zeros(len(values), np.int32),
        "step": np.float32(0.05),
        "steps": scales,
        "bias_steps": scales * np.float32(0.05),
        "middle": np.uint8(128),
        "least": np.uint8(0),
        "none": np.zeros(len(values), np.int8),
        "no_bias": np.zeros(len(values), np.int32),
    }
    rows = {
        "xf": [x, f"step{z}", f"middle{z}"],
        "wf": [f"w{z}", f"steps{z}", f"none{z}"],
        "bf": [f"b{z}", f"bias_steps{z}", f"no_bias{z}"],
    }
    before = [
        helper.make_node("DequantizeLinear", inputs, [f"{name}{z}"], axis=0 if name != "xf" else 1)
        for name, inputs in rows.items()
    ]
    after = [
        helper.make_node("Relu", [f"y{z}"], [f"r{z}"]),
        helper.make_node("QuantizeLinear", [f"r{z}", f"step{z}", f"least{z}"], [z]),
    ]
    return before, [f"{name}{z}" for name in rows], after, {f"{name}{z}": value for name, value in constants.items()}


def _window(shape: Shape) -> dict[str, list[int]]:
    """Stride and padding that lead from the input's size to the output's."""
    strides = [max(1, round(a / b)) for a, b in zip(shape.in_size, shape.out_size, strict=True)]
    rows = zip(shape.in_size, shape.out_size, shape.kernel, strides, strict=True)
    missing = [max(0, (after - 1) * stride + kernel - before) for before, after, kernel, stride in rows]
    return {"strides": strides, "pads": [m // 2 for m in missing] + [m - m // 2 for m in missing]}


def time_file(file: Path | bytes, x: NDArray[np.generic], threads: int = 1, seconds: float = SECONDS) -> float:
    """Fastest run in ms."""
    session = runtime.open_file(file, threads)
    name = session.get_inputs()[0].name
    for _ in range(3):
        session.run(None, {name: x})
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < FEWEST or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, {name: x})
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best * 1000


def time_operator(operator: Operator, threads: int = 1, batch: int = 1, seconds: float = SECONDS) -> float:
    """What one operator adds in ms to the one that makes its input; a linear one alone."""
    shape = operator.shape
    if shape.kind == "linear":
        return _fastest([operator_file(operator, batch)], threads, seconds)[0]
    maker = replace(operator, shape=Shape("conv", 1, shape.in_channels, (1, 1), 1, shape.in_size, shape.in_size))
    files = [_file(row, batch) for row in ((maker,), (maker, operator))]
    before, both = _fastest(files, threads, seconds)
    return max(both - before, LEAST_ADDED * both)


def _fastest(files: Sequence[bytes], threads: int, seconds: float) -> list[float]:
    """Fastest run in ms of every file, by turns."""
    calls = [_ready(file, threads) for file in files]
    best, runs, end = [float("inf")] * len(files), 0, time.perf_counter() + seconds
    while runs < FEWEST or time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
        runs += 1
    return [1000 * b for b in best]


def _ready(file: bytes, threads: int) -> Callable[[], object]:
    """A call that runs the file once, on ones; warmed up."""
    session = runtime.open_file(file, threads)
    source = session.get_inputs()[0]
    x = np.ones(source.shape, np.uint8 if source.type == "tensor(uint8)" else np.float32)
    for _ in range(3):
        session.run(None, {source.name: x})
    return lambda: session.run(None, {source.name: x})


def measure_table(
    operators: Iterable[Operator],
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float = SECONDS,
    report: Report = silent,
) -> LatencyTable:
    """Every operator timed; the affine step is still the identity."""
    todo, times = list(operators), {}
    for number, operator in enumerate(todo):
        report(number / len(todo), f"Timing operator {number + 1} of {len(todo)}")
        times[operator] = time_operator(operator, threads, batch, seconds)
    machine = f"{platform.machine()} {platform.processor()}".strip()
    blocks = {kind: measure_blocks(kind, threads, batch, seconds) for kind in sorted({key.type for key in todo})}
    return LatencyTable(times, threads=threads, batch=batch, blocks=blocks, machine=machine)


def measure_blocks(kind: str, threads: int = 1, batch: int = 1, seconds: float = SECONDS) -> Blocks:
    """By a convolution of two blocks of WIDE, of one and a half, which takes as long where blocks are filled up, and of
    two less one channel, which takes longer where that is out of step."""
    full = 2 * WIDE

    def time_of(into: int, out: int) -> float:
        shape = Shape("conv", into, out, (3, 3), 1, (16, 16), (16, 16), True)
        return time_operator(Operator(shape, kind), threads, batch, seconds)

    whole = time_of(full, full)
    into, out = (
        WIDE if time_of(*pair) > ALIKE * whole else BLOCK for pair in ((full - BLOCK, full), (full, full - BLOCK))
    )
    odd = [max(1.0, time_of(*pair) / whole) for pair in ((full - 1, full), (full, full - 1))]
    return Blocks(into, out, *odd)


def expected_seconds(profile: Profile, operators: Sequence[Operator], seconds: float) -> float:
    """How long timing these operators takes, each as fast per MAC as the model as a whole, behind one that feeds it."""
    if not profile.latency_ms:
        return float("inf")
    slowest = 2 * FEWEST * profile.latency_ms / 1000 / max(profile.macs, 1)
    return sum(max(seconds, slowest * operator.shape.macs) for operator in operators)


def with_affine(table: LatencyTable, sums: Sequence[float], whole_ms: Sequence[float]) -> LatencyTable:
    """The table with its affine step fitted to whole models whose operators sum to `sums`."""
    slope, intercept = fit_affine(np.array(sums), np.array(whole_ms))
    return replace(table, slope=slope, intercept=intercept)
