"""Quantization of the exported file: calibrated int8, int8 with ranges found at run time, or 16-bit float.

Calibrated int8 surrounds every operator with QuantizeLinear and DequantizeLinear, which ONNX Runtime merges into
integer kernels: uint8 activations with one scale each, int8 weights with one scale per output channel. Processors
without VNNI add pairs of 8-bit products in 16 bits, which can overflow; there weights get 7 bits, which cannot.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018;
Integer Quantization for Deep Learning Inference, Wu et al. 2020.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnxruntime import quantization as ort
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.data import to_input
from core.engine.formats import onnx_rewrites
from core.errors import DataError
from core.layers import dial_for
from core.options import Quantize

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPERATORS = sorted({*QDQRegistry, *QLinearOpsRegistry})
METHODS = {
    "minmax": (ort.CalibrationMethod.MinMax, {}),
    "percentile": (ort.CalibrationMethod.Percentile, {"percentile": 99.99}),
    "entropy": (ort.CalibrationMethod.Entropy, {}),
}
TYPES = {"uint8": ort.QuantType.QUInt8, "int8": ort.QuantType.QInt8}
BATCH = 32


def apply(model: ModelProto, options: Quantize, layers: Mapping[str, int], context: Context) -> Outcome:
    """A quantized copy of `model`. Layers whose bits are 32 stay in float, and so does what lies between such layers.

    Raises DataError when calibration has no images.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    named = [node for node in source.graph.node if node.op_type in LAYERS]
    chosen = {node.name for node in named if dial_for(layers, node.name, options.bits) != 32}
    if not chosen:
        return Outcome(source)
    kept = [node.name for node in source.graph.node if node.name not in _reached(source, chosen)]
    with _quiet():
        result = MODES[options.mode](source, options, kept, context)
    _finish(result, source, options)
    left = chosen - quantized_layers(result)
    skipped = [Skip("quantize", node.name, _reason(node, options.mode)) for node in named if node.name in left]
    return Outcome(result, tuple(skipped))


def weight_bits(options: Quantize) -> int:
    """8, or 7 where this processor needs it."""
    return {"8": 8, "7": 7}.get(options.weights) or (8 if sums_are_exact() else 7)


def sums_are_exact(cpu: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor adds 8-bit products without overflow: VNNI, or not an x86 at all."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True
    flags = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    return "avx512_vnni" in flags or "avx_vnni" in flags


def quantized_layers(model: ModelProto) -> set[str]:
    """Names of the layers that compute or are stored in fewer bits."""
    makers = {out: node.op_type for node in model.graph.node for out in node.output}
    halves = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("ConvInteger", "MatMulInteger")
        or (node.op_type in LAYERS and all(makers.get(n) == "DequantizeLinear" for n in node.input[:2]))
        or (node.op_type in LAYERS and halves.intersection(node.input))
    }


def _reached(model: ModelProto, chosen: set[str]) -> set[str]:
    """`chosen` layers and every node without weights that one of them feeds, directly or through others."""
    inside: set[str] = set()
    values: set[str] = set()
    for node in model.graph.node:
        if node.name in chosen or (node.op_type not in LAYERS and values.intersection(node.input)):
            inside.add(node.name)
            values.update(node.output)
    return inside


def _int8(model: ModelProto, options: Quantize, kept: list[str], context: Context) -> ModelProto:
    """Static: ranges of activations come from the calibration images."""
    x = to_input(context.calibration.x[: options.images], context.card)
    if not len(x):
        raise DataError("Quantization needs calibration images; received none. Choose data, or the dynamic mode.")
    onnx_rewrites.average_whole_maps(model)
    onnx_rewrites.convolve_shortcuts(model, kept)
    onnx_rewrites.drop_unused(model)
    with tempfile.TemporaryDirectory() as folder:
        source, plain = Path(folder) / "source.onnx", Path(folder) / "plain.onnx"
        onnx.save(model, source)
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        ranges = _calibrate(plain, x, options, context)
        prepared = onnx.load(plain)
    quantizer = ort.QDQQuantizer(
        onnx.shape_inference.infer_shapes(prepared),
        per_channel=True,
        reduce_range=weight_bits(options) == 7,
        weight_qType=ort.QuantType.QInt8,
        activation_qType=TYPES[options.activations],
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=kept,
        op_types_to_quantize=OPERATORS,
        extra_options={},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _calibrate(plain: Path, x: NDArray[np.float32], options: Quantize, context: Context) -> TensorsData:
    """Value → its range over the images x (n, c, h, w), a batch at a time so that memory stays small."""
    method, extra = METHODS[options.calibration]
    augmented = str(plain.with_name("augmented.onnx"))
    calibrator = create_calibrator(plain, OPERATORS, augmented, method, extra_options=extra)
    name = calibrator.infer_session.get_inputs()[0].name
    for start in range(0, len(x), BATCH):
        context.report(0.8 * start / len(x), f"Calibrating on image {start + 1} of {len(x)}")
        calibrator.collect_data(_Batch(name, x[start : start + BATCH]))
    context.report(0.8, "Writing integer weights")
    return calibrator.compute_data()


class _Batch(ort.CalibrationDataReader):  # type: ignore[misc]  # comes without types
    """One batch, then the end: what ONNX Runtime asks a calibration to be."""

    def __init__(self, name: str, x: NDArray[np.float32]) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter([{name: x}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _int8_dynamic(model: ModelProto, options: Quantize, kept: list[str], context: Context) -> ModelProto:
    """Ranges of activations are found at run time, per image batch; the kernels take unsigned weights."""
    split = [f"{name}_MatMul" for name in kept]  # a Gemm is written as a product and a sum first
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dynamic.onnx"
        ort.quantize_dynamic(model, file, weight_type=ort.QuantType.QUInt8, nodes_to_exclude=[*kept, *split])
        return onnx.load(file)


def _float16(model: ModelProto, options: Quantize, kept: list[str], context: Context) -> ModelProto:
    """Weights and arithmetic in 16 bits; what goes in and comes out stays in 32."""
    result = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    assert isinstance(result, ModelProto)
    return result


MODES = {"int8": _int8, "int8_dynamic": _int8_dynamic, "float16": _float16}


def _finish(result: ModelProto, source: ModelProto, options: Quantize) -> None:
    """Layers get their names back, what only the tools needed goes, and the file says what it is."""
    ONNXModel(result).topological_sort()  # in place; neither tool leaves its nodes in order
    for node in result.graph.node:
        node.name = node.name.removesuffix("_quant").removesuffix("_MatMul")
        node.doc_string = ""
    del result.graph.value_info[:]
    onnx_rewrites.drop_unused(result)
    facts = {entry.key: entry.value for entry in source.metadata_props}
    del result.metadata_props[:]
    bits = f"int8, {weight_bits(options)}-bit weights" if options.mode == "int8" else options.mode
    helper.set_model_props(result, {**facts, "quantization": bits})
    result.producer_name, result.producer_version = source.producer_name, source.producer_version


def _reason(node: NodeProto, mode: str) -> str:
    if mode == "int8_dynamic":
        return f"Kept in float: ONNX Runtime finds no ranges at run time for {node.op_type}."
    return f"Kept in float: ONNX Runtime has no smaller form of {node.op_type} whose weights are computed."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer prints and logs its progress and asks for the preparation it has just had."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will be truncated to.*")
            yield
    finally:
        logging.root.setLevel(level)
