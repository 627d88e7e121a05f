"""Measure the latency table: each operator alone in ONNX Runtime, then whole models for the affine step.

An operator is a file of one convolution (or matrix product) with its activation, float or between uint8 tensors as in a
quantized model. The fastest of many runs counts: whatever else the machine does only ever adds time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from core.engine import runtime
from core.engine.context import Report, silent
from core.latency_table import FLOAT, INTEGER, LatencyTable, Operator, fit_affine
from core.layers import Layer, Profile
from core.predict import shape_of
from core.ranks import Shape

SECONDS = 0.15  # spent on each operator
FEWEST = 10  # runs, however slow
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the original widths
BLOCK = 8
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
    shape, integer = operator.shape, operator.type == INTEGER
    linear = shape.kind == "linear"
    groups = shape.out_channels if shape.kind == "depthwise" else shape.groups
    size = [batch, shape.in_channels] if linear else [batch, shape.in_channels, *shape.in_size]
    weight = [shape.out_channels, shape.in_channels // groups, *([] if linear else shape.kernel)]
    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    main = "Gemm" if linear else "Conv"
    options = {"transB": 1} if linear else {"group": groups, **_window(shape)}
    if integer:
        before, inputs, after, constants = _integer_ends(values)
    else:
        before, inputs, after = [], ["x", "w", "b"], [helper.make_node("Relu", ["y"], ["z"])]
        constants = {"w": values, "b": np.zeros(shape.out_channels, np.float32)}
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    graph = helper.make_graph(
        [*before, helper.make_node(main, inputs, ["y"], **options), *after],
        "operator",
        [helper.make_tensor_value_info("x", kind, size)],
        [helper.make_tensor_value_info("z", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return bytes(model.SerializeToString())


def _integer_ends(values: NDArray[np.float32]) -> tuple[list[NodeProto], list[str], list[NodeProto], dict[str, Any]]:
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
    before = [
        helper.make_node("DequantizeLinear", ["x", "step", "middle"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "steps", "none"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bias_steps", "no_bias"], ["bf"], axis=0),
    ]
    after = [
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "step", "least"], ["z"]),
    ]
    return before, ["xf", "wf", "bf"], after, constants


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
    """Fastest run in ms of one operator alone."""
    file = operator_file(operator, batch)
    dims = onnx.load_from_string(file).graph.input[0].type.tensor_type.shape.dim
    kind = np.uint8 if operator.type == INTEGER else np.float32
    return time_file(file, np.ones([d.dim_value for d in dims], kind), threads, seconds)


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
    return LatencyTable(times, threads=threads, batch=batch, block=BLOCK, machine=machine)


def with_affine(table: LatencyTable, sums: Sequence[float], whole_ms: Sequence[float]) -> LatencyTable:
    """The table with its affine step fitted to whole models whose operators sum to `sums`."""
    slope, intercept = fit_affine(np.array(sums), np.array(whole_ms))
    return replace(table, slope=slope, intercept=intercept)
