"""Weights alone in 3 to 8 bits, packed in the file; activations stay in float, so the gain is size and not speed.

Each layer is solved and rounded so that later layers make up for what earlier ones lost (`core/engine/rounded.py`). The
file holds the codes and one scale per output channel, of which ONNX Runtime makes floats once, when the file is opened
(`core/engine/formats/onnx_packed.py`).

GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, Frantar et al. 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from onnx import ModelProto, NodeProto, helper

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.formats.onnx_facts import outputs_axis
from core.engine.formats.onnx_packed import OPSET, unpack
from core.engine.formats.onnx_rewrites import drop_unused
from core.engine.rounded import KINDS, Rounded, as_network, round_layers, store_weights
from core.errors import RecipeError
from core.layers import dial_for
from core.options import QuantizeWeights

KEY = "quantize_weights"


def apply(model: ModelProto, options: QuantizeWeights, layers: Mapping[str, int], context: Context) -> Outcome:
    """A copy of `model` whose weights are integers. Layers with 32 bits stay in float, and make up for the others.

    Raises RecipeError when the file is quantized already.
    """
    if any(entry.key == "quantization" for entry in model.metadata_props):
        raise RecipeError(
            "quantize_weights needs a file in float; the file is quantized already, so use one of the two."
        )
    proto, rounded = copy.deepcopy(model), as_network(model)
    bits = {name: dial_for(layers, name, options.bits) for name in rounded.nodes_of(model)}
    if all(value == 32 for value in bits.values()):
        return Outcome(proto, tuple(_left(model, bits)))
    round_layers(rounded, bits, context)
    store_weights(proto, rounded)
    _pack(proto, rounded)
    skipped = [Skip(KEY, "repair", rounded.reason)] if rounded.reason else []
    return Outcome(proto, tuple(skipped + _left(model, bits)))


def _left(model: ModelProto, bits: Mapping[str, int]) -> list[Skip]:
    """Layers that have weights but cannot be quantized here."""
    kinds = (*KINDS, "ConvTranspose")
    stored = {tensor.name for tensor in model.graph.initializer}
    named = [n for n in model.graph.node if n.op_type in kinds and n.input[1] in stored and n.name not in bits]
    return [Skip(KEY, n.name, f"Kept in float: {n.op_type} weights of this form are not rounded.") for n in named]


def _pack(proto: ModelProto, rounded: Rounded) -> None:
    """Layers read integers and the nodes that make floats of them."""
    nodes: list[NodeProto] = []
    known: set[str] = set()
    for node in proto.graph.node:
        if node.name in rounded.codes and node.op_type in KINDS:
            codes, steps, bits = rounded.codes[node.name]
            integers, scales = codes.numpy(), steps.numpy().reshape(-1, *[1] * (codes.ndim - 1))
            if outputs_axis(node):
                integers, scales = integers.T, scales.T
            made, stored = unpack(f"{node.name}.weight", integers, scales, bits)
            proto.graph.initializer.extend(tensor for tensor in stored if tensor.name not in known)
            known.update(tensor.name for tensor in stored)
            node.input[1] = made[-1].output[0]
            nodes += made
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    drop_unused(proto)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, *(OPSET.get(bits, 13) for _, _, bits in rounded.codes.values()))
    proto.ir_version = max(proto.ir_version, 10)
    helper.set_model_props(proto, {**{e.key: e.value for e in proto.metadata_props}, "quantization": "weights only"})
