"""An ONNX file in integers: ranges of its values over images, then every operator between QuantizeLinear and
DequantizeLinear, which ONNX Runtime merges into integer kernels.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime import quantization as ort
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from core.engine.context import Report
from core.engine.formats import onnx_answers, onnx_facts, onnx_hard, onnx_packed
from core.engine.formats.onnx_rewrites import stored_values

OPERATORS = sorted({*QDQRegistry, *QLinearOpsRegistry, *onnx_hard.KINDS})
METHODS = {
    "minmax": (ort.CalibrationMethod.MinMax, {}),
    "percentile": (ort.CalibrationMethod.Percentile, {"percentile": 99.99}),
    "entropy": (ort.CalibrationMethod.Entropy, {}),
}
TYPES = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BATCH = 32
Codes = Mapping[
    str, tuple[NDArray[np.int8], NDArray[np.float32]]
]  # weight → itself, and a step for each output channel


@dataclass(frozen=True)
class Calibrated:
    """A file in float, the range of each of its values, and what weights are in integers, where that is known."""

    model: ModelProto
    ranges: TensorsData
    codes: Codes = field(default_factory=dict)


def layers_of(model: ModelProto) -> list[NodeProto]:
    """The nodes with weights that do more than copy."""
    stored = stored_values(model)
    return [x for x in model.graph.node if x.op_type in LAYERS and not onnx_facts.copies(x, stored)]


def left_in_float(model: ModelProto, chosen: set[str]) -> list[str]:
    """All nodes but the `chosen` layers and what, without weights, one of them feeds, directly or through others."""
    layers = {node.name for node in layers_of(model)}
    inside: set[str] = set()
    values: set[str] = set()
    for node in model.graph.node:
        if node.name in chosen or (node.name not in layers and values.intersection(node.input)):
            inside.add(node.name)
            values.update(node.output)
    return [node.name for node in model.graph.node if node.name not in inside]


def calibrate(model: ModelProto, x: NDArray[np.float32], method: str, report: Report) -> Calibrated:
    """The file with its ranges over the images x (n, c, h, w), a batch at a time so that memory stays small."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain = Path(folder) / "plain.onnx"
        onnx.save(model, plain)
        kind, extra = METHODS[method]
        augmented = str(plain.with_name("augmented.onnx"))
        calibrator = create_calibrator(plain, OPERATORS, augmented, kind, extra_options=extra)
        name = calibrator.infer_session.get_inputs()[0].name
        for start in range(0, len(x), BATCH):
            report(start / len(x), f"Calibrating on image {start + 1} of {len(x)}")
            calibrator.collect_data(_Batch(name, x[start : start + BATCH]))
        return Calibrated(onnx.shape_inference.infer_shapes(model), calibrator.compute_data())


class _Batch(ort.CalibrationDataReader):  # type: ignore[misc]  # comes without types
    """One batch, then the end: what ONNX Runtime asks a calibration to be."""

    def __init__(self, name: str, x: NDArray[np.float32]) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter([{name: x}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def write(
    calibrated: Calibrated,
    leave: Collection[str],
    activations: str = "uint8",
    bits: int = 8,
    per_channel: bool = True,
) -> ModelProto:
    """The file in integers, weights of 8 or 7 bits. Nodes named in `leave` stay in float.

    With one scale for all channels of a weight it is as fast, and twice as quickly written.
    """
    model = ModelProto()
    model.CopyFrom(calibrated.model)
    highest = {name: float(np.max(found.range_value[1])) for name, found in calibrated.ranges.items()}
    points = onnx_hard.find_points(model, highest, leave) if activations == "uint8" else {}
    hard = [n.name for n in model.graph.node if n.op_type in onnx_hard.KINDS and n.input[0] not in points]
    given = _take_codes(model, calibrated.codes, leave) if per_channel else {}
    with quiet():
        quantizer = ort.QDQQuantizer(
            model,
            per_channel=per_channel,
            reduce_range=bits == 7,
            weight_qType=ort.QuantType.QInt8,
            activation_qType=TYPES[activations],
            tensors_range=calibrated.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[*leave, *hard],
            op_types_to_quantize=OPERATORS,
            extra_options={"TensorQuantOverrides": points | given},
        )
        quantizer.quantize_model()
    result = quantizer.model.model
    assert isinstance(result, ModelProto)
    onnx_hard.read_twice(result, points)
    onnx_answers.leave_in_float(result)
    ONNXModel(result).topological_sort()  # in place; the quantizer does not leave its nodes in order
    return result


def _take_codes(model: ModelProto, codes: Codes, leave: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Put the values that codes stand for in the place of weights, but for what a node named in `leave` reads; returns
    what tells the quantizer their steps."""
    tensors, given = {tensor.name: tensor for tensor in model.graph.initializer}, {}
    read = {name for node in model.graph.node if node.name in leave for name in node.input}
    for node in model.graph.node:
        name = node.input[1] if node.op_type in LAYERS else ""
        if name in codes and name not in read:
            values, steps = codes[name][0].astype(np.float32), codes[name][1]
            axis = onnx_facts.outputs_axis(node)
            values = values * _along(steps, axis, values.ndim)
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            rows = [{"scale": step, "zero_point": np.int8(0)} for step in steps]
            given[name] = [rows[0] | {"axis": axis}, *rows[1:]]
    return given


def _along(steps: NDArray[np.float32], axis: int, rank: int) -> NDArray[np.float32]:
    return steps.reshape([-1 if each == axis else 1 for each in range(rank)])


def store_in_bytes(model: ModelProto, layers: Iterable[str], codes: Codes = MappingProxyType({})) -> None:
    """Weights of `layers`, which compute in float, become 8-bit integers that are made floats when the file is opened.

    They are those of `codes`, or else rounded to nearest with one step for each output channel; in place.
    """
    wanted, stored = set(layers), {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.name in wanted and node.input[1] in stored:
            weight, axis = numpy_helper.to_array(stored[node.input[1]]), onnx_facts.outputs_axis(node)
            others = tuple(each for each in range(weight.ndim) if each != axis)
            steps = np.maximum(np.abs(weight).max(others, keepdims=True) / 127, 1e-12).astype(np.float32)
            integers = np.round(weight / steps)
            if node.input[1] in codes:
                integers, steps = codes[node.input[1]][0], _along(codes[node.input[1]][1], axis, weight.ndim)
            made, tensors = onnx_packed.unpack(f"{node.name}.weight", integers, steps, 8)
            nodes += made
            model.graph.initializer.extend(tensors)
            node.input[1] = made[-1].output[0]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The quantizer prints and logs its progress and asks for a preparation that our exports do not need."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will be truncated to.*")
            yield
    finally:
        logging.root.setLevel(level)
