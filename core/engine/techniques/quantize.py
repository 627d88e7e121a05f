"""Quantization of the exported file: calibrated int8, int8 with ranges found at run time, or 16-bit float.

Calibrated int8 has uint8 activations with one scale each and int8 weights with one scale per output channel.
Processors without VNNI add pairs of 8-bit products in 16 bits, which can overflow; there weights get 7 bits, which
cannot. Where integers may cost more time than they save, the first layers compute in float, as many as measured best;
their weights are stored in 8 bits all the same.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018;
Integer Quantization for Deep Learning Inference, Wu et al. 2020.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper
from onnxruntime import quantization as ort
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from core.candidate import Skip
from core.engine import runtime
from core.engine.context import Context, Outcome, Report
from core.engine.data import to_input
from core.engine.fastest import first_integer_layer, is_mixed
from core.engine.formats import onnx_bias, onnx_equalize, onnx_int8, onnx_rewrites
from core.engine.formats.onnx_int8 import Calibrated
from core.engine.progress import stages
from core.errors import DataError
from core.layers import dial_for
from core.options import Quantize

AUTO = ["minmax", "percentile"]  # entropy takes three times as long and was never better
VALIDATED = 512  # validation images, at most
EQUALIZED = 64  # calibration images that show the ranges of channels
CORRECTED = 32  # and those that show their means
Inputs = NDArray[np.float32]  # (n, c, h, w)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
    with onnx_int8.quiet():
        result, slower = MODES[options.mode](source, options, chosen, context)
    _finish(result, source, options)
    left = chosen - quantized_layers(result)
    reasons = {node.name: SLOWER if node.name in slower else _reason(node, options.mode) for node in named}
    return Outcome(
        result, tuple(Skip("quantize", node.name, reasons[node.name]) for node in named if node.name in left)
    )


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


def _left(model: ModelProto, chosen: set[str]) -> list[str]:
    """All nodes but the `chosen` layers and what, without weights, one of them feeds, directly or through others."""
    inside: set[str] = set()
    values: set[str] = set()
    for node in model.graph.node:
        if node.name in chosen or (node.op_type not in LAYERS and values.intersection(node.input)):
            inside.add(node.name)
            values.update(node.output)
    return [node.name for node in model.graph.node if node.name not in inside]


Made = tuple[ModelProto, set[str]]  # and the layers that compute in float because that is faster


def _int8(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Static: ranges of activations come from the calibration images."""
    x = to_input(context.calibration.x[: options.images], context.card)
    if not len(x):
        raise DataError("Quantization needs calibration images; received none. Choose data, or the dynamic mode.")
    onnx_rewrites.average_whole_maps(model)
    onnx_rewrites.convolve_shortcuts(model, _left(model, chosen))
    onnx_rewrites.drop_unused(model)
    calibrating, choosing, correcting = stages(context.report, [2.0, 2.0, 1.0])
    calibrated = _calibrate(model, x, options, chosen, context, calibrating)
    order = [node.name for node in model.graph.node if node.name in chosen]

    def write(count: int, per_channel: bool = False) -> ModelProto:
        leave = _left(calibrated.model, chosen - set(order[:count]))
        return onnx_int8.write(calibrated, leave, options.activations, weight_bits(options), per_channel)

    first = 0
    if options.nodes == "auto" and is_mixed(model):
        first = first_integer_layer(calibrated.model, write, order, context.card.input_shape, choosing)
    result = write(first, per_channel=True)
    if options.correct and len(context.validation):
        result = _corrected(result, model, calibrated.model, x[:CORRECTED], replace(context, report=correcting))
    onnx_int8.store_in_bytes(result, order[:first])
    return result, set(order[:first])


def _calibrate(
    model: ModelProto, x: Inputs, options: Quantize, chosen: set[str], context: Context, report: Report
) -> Calibrated:
    """Of the ways that the options leave open, the one whose file agrees most with `model` on validation images."""
    known = len(context.validation) > 0
    methods = [options.calibration] if options.calibration != "auto" else AUTO if known else AUTO[:1]
    sources = [model]
    if options.equalize and known:
        even = onnx.ModelProto()
        even.CopyFrom(model)
        sources += [even] if onnx_equalize.equalize(even, x[:EQUALIZED], chosen) else []
    ways = [(source, method) for source in sources for method in methods]
    parts = stages(report, [1.0] * len(ways))
    found = [onnx_int8.calibrate(source, x, method, part) for (source, method), part in zip(ways, parts, strict=True)]
    if len(found) == 1:
        return found[0]
    expected = _answers(model, context)

    def agreement(calibrated: Calibrated) -> float:
        file = onnx_int8.write(calibrated, _left(model, chosen), options.activations, weight_bits(options))
        return float((_answers(file, context) == expected).mean())

    return max(found, key=agreement)  # the first of equals: nothing is done that does not help


def _corrected(file: ModelProto, model: ModelProto, source: ModelProto, x: Inputs, context: Context) -> ModelProto:
    """`file` with the biases that give channels the means of `source` again, where that agrees more with `model`."""
    better = onnx.ModelProto()
    better.CopyFrom(file)
    if not onnx_bias.correct_biases(better, source, x, context.report):
        return file
    expected = _answers(model, context)
    before, after = (float((_answers(f, context) == expected).mean()) for f in (file, better))
    return better if after > before else file


def _answers(model: ModelProto, context: Context) -> NDArray[np.int64]:
    """The largest logit of every validation image, a batch at a time so that memory stays small."""
    session, x = runtime.open_file(model.SerializeToString()), context.validation.x[:VALIDATED]
    starts = range(0, len(x), onnx_int8.BATCH)
    batches = (to_input(x[start : start + onnx_int8.BATCH], context.card) for start in starts)
    return np.concatenate([runtime.run(session, batch).argmax(1) for batch in batches])


def _int8_dynamic(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Ranges of activations are found at run time, per image batch; the kernels take unsigned weights."""
    kept = _left(model, chosen)
    split = [f"{name}_MatMul" for name in kept]  # a Gemm is written as a product and a sum first
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dynamic.onnx"
        ort.quantize_dynamic(model, file, weight_type=ort.QuantType.QUInt8, nodes_to_exclude=[*kept, *split])
        return onnx.load(file), set()


def _float16(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Weights and arithmetic in 16 bits; what goes in and comes out stays in 32."""
    result = convert_float_to_float16(model, keep_io_types=True, node_block_list=_left(model, chosen))
    assert isinstance(result, ModelProto)
    return result, set()


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


SLOWER = "Computed in float, stored in 8 bits: up to here integers take longer on this machine."


def _reason(node: NodeProto, mode: str) -> str:
    if mode == "int8_dynamic":
        return f"Kept in float: ONNX Runtime finds no ranges at run time for {node.op_type}."
    return f"Kept in float: ONNX Runtime has no smaller form of {node.op_type} whose weights are computed."
