"""Quantization of the exported file: calibrated int8, int8 with ranges found at run time, or 16-bit float.

Calibrated int8 has uint8 activations with one scale each and int8 weights with one scale per output channel.
Processors without VNNI add pairs of 8-bit products in 16 bits, which can overflow; there weights get 7 bits, which
cannot. Where integers may cost more time than they save, the first layers compute in float, as many as measured best;
their weights are stored in 8 bits all the same. Where an agreement is asked for, the layers that cost it stay in float.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018;
Integer Quantization for Deep Learning Inference, Wu et al. 2020.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, helper
from onnxruntime import quantization as ort
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from core.candidate import EIGHT_BITS, Skip
from core.engine import calibrated as ways
from core.engine.accurate import Answers, fewest, order_of_return
from core.engine.context import Context, Outcome, Report
from core.engine.data import to_input
from core.engine.fastest import first_integer_layer, is_mixed, node_times
from core.engine.formats import onnx_facts, onnx_int8, onnx_rewrites
from core.engine.formats.onnx_int8 import LAYERS, layers_of, left_in_float
from core.engine.progress import stages
from core.errors import DataError
from core.layers import dial_for
from core.options import Quantize


def apply(model: ModelProto, options: Quantize, layers: Mapping[str, int], context: Context) -> Outcome:
    """A quantized copy of `model`. Layers whose bits are 32 stay in float, and so does what lies between such layers.

    Raises DataError when calibration has no images.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    named = layers_of(source)
    chosen = {node.name for node in named if dial_for(layers, node.name, options.bits) != 32}
    if not chosen:
        return Outcome(source)
    with onnx_int8.quiet():
        result, reasons = MODES[options.mode](source, options, chosen, context)
    _finish(result, source, options)
    left = [node for node in named if node.name in chosen - quantized_layers(result)]
    why = {node.name: reasons.get(node.name) or _reason(node, options.mode) for node in left}
    if "compensate" in reasons:
        why["compensate"] = reasons["compensate"]
    if options.agreement > 0 and options.mode == "int8" and not len(context.validation):
        why["agreement"] = UNSEEN
    return Outcome(result, tuple(Skip("quantize", name, reason) for name, reason in why.items()))


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


Made = tuple[ModelProto, dict[str, str]]  # and why layers compute in float although they could do otherwise


def _int8(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Static: ranges of activations come from the calibration images."""
    x = to_input(context.calibration.x[: options.images], context.card)
    if not len(x):
        raise DataError("Quantization needs calibration images; received none. Choose data, or the dynamic mode.")
    onnx_rewrites.average_whole_maps(model)
    onnx_rewrites.drop_unused(model)
    shares = [2.0, 3.0 * options.compensate, 1.0, 2.0 * (options.agreement > 0), 1.0]
    calibrating, rounding, choosing, keeping, correcting = stages(context.report, shares)
    answers = Answers(model, context) if len(context.validation) else None
    nearest = ""
    plain = found = ways.calibrated(model, x, options, chosen, answers, calibrating)
    if options.compensate and answers:
        found, nearest = ways.compensated(plain, options, chosen, answers, replace(context, report=rounding))
    order = [node.name for node in model.graph.node if node.name in chosen]

    def write(integers: set[str], in_bytes: Collection[str] = (), per_channel: bool = True) -> ModelProto:
        leave = left_in_float(found.model, integers)
        file = onnx_int8.write(found, leave, options.activations, ways.weight_bits(options), per_channel)
        onnx_int8.store_in_bytes(file, in_bytes, found.codes)
        return file

    shape, first = context.card.input_shape, 0
    if options.nodes == "auto" and is_mixed(model):
        quick = partial(write, per_channel=False)
        first = first_integer_layer(found.model, lambda n: quick(set(order[n:])), order, shape, choosing)
    reasons = dict.fromkeys(order[:first], SLOWER)
    if options.agreement > 0 and answers:
        reasons |= _accurate(answers, write, order, first, shape, options.agreement, keeping)
    result = write(chosen - reasons.keys())
    if options.correct and answers:
        result = ways.corrected(result, answers, plain.model, x, correcting)
    onnx_int8.store_in_bytes(result, [name for name, reason in reasons.items() if reason == SLOWER], found.codes)
    return result, reasons | ({"compensate": nearest} if nearest else {})


def _accurate(
    answers: Answers,
    write: Callable[..., ModelProto],
    order: list[str],
    first: int,
    shape: tuple[int, ...],
    wanted: float,
    report: Report,
) -> dict[str, str]:
    """Layer → why it stays in float although integers are faster there, or although it could be stored in bytes."""

    def agreement(kept: Sequence[str]) -> float:
        return answers.agreement(write(set(order[first:]) - set(kept), set(order[:first]) - set(kept)))

    before = agreement(())
    if before >= wanted:
        return {}
    looking, counting = stages(report, [1.0, 1.0])
    times = [node_times(file, order, shape)[1:] for file in (answers.model, write(set(order)))]
    losses = {}
    for number, name in enumerate(order):
        looking(number / len(order), f"Looking at layer {number + 1} of {len(order)} alone in integers")
        losses[name] = answers.expected_loss(write({name}))
    ranked = order_of_return(losses, *(dict(zip(order, found.tolist(), strict=True)) for found in times))
    kept, after = fewest(ranked, agreement, wanted, counting)
    after = agreement(kept) if len(kept) == len(order) else after  # not asked for by halving, and told as counted
    return dict.fromkeys(kept, ACCURATE.format(count=len(kept), before=before, after=after))


def _int8_dynamic(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Ranges of activations are found at run time, per image batch; the kernels take unsigned weights."""
    stored = onnx_rewrites.stored_values(model)
    kept = [*left_in_float(model, chosen), *[x.name for x in model.graph.node if onnx_facts.copies(x, stored)]]
    split = [f"{name}_MatMul" for name in kept]  # a Gemm is written as a product and a sum first
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dynamic.onnx"
        ort.quantize_dynamic(model, file, weight_type=ort.QuantType.QUInt8, nodes_to_exclude=[*kept, *split])
        return onnx.load(file), {}


def _float16(model: ModelProto, options: Quantize, chosen: set[str], context: Context) -> Made:
    """Weights and arithmetic in 16 bits; what goes in and comes out stays in 32."""
    result = convert_float_to_float16(model, keep_io_types=True, node_block_list=left_in_float(model, chosen))
    assert isinstance(result, ModelProto)
    return result, {}


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
    bits = options.mode
    if options.mode == "int8":
        bits = EIGHT_BITS if ways.weight_bits(options) == 8 else "int8, 7-bit weights"
    helper.set_model_props(result, {**facts, "quantization": bits})
    result.producer_name, result.producer_version = source.producer_name, source.producer_version


SLOWER = "Computed in float, stored in 8 bits: up to here integers take longer on this machine."
UNSEEN = "Not looked at: there are no validation images whose answers could stay."
ACCURATE = (
    "Kept in float for its accuracy: {count} such layers bring agreement on validation images from {before:.1%} to "
    "{after:.1%}."
)


def _reason(node: NodeProto, mode: str) -> str:
    if mode == "int8_dynamic":
        return f"Kept in float: ONNX Runtime finds no ranges at run time for {node.op_type}."
    return f"Kept in float: ONNX Runtime has no smaller form of {node.op_type} whose weights are computed."
