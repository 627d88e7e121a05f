"""Weights alone in 3 to 8 bits, packed in the file; activations stay in float, so the gain is size and not speed.

Each layer is solved for what the layers before it give now, then rounded with feedback (`core/engine/rounding.py`), so
later layers make up for what earlier ones lost. The file holds the codes and one scale per output channel, of which
ONNX Runtime makes floats once, when the file is opened (`core/engine/formats/onnx_packed.py`).

GPTQ, Frantar et al. 2023; the order of solving and rounding as in Up or Down?, Nagel et al. 2020: layer by layer.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.formats.onnx_packed import OPSET, unpack
from core.engine.formats.onnx_reader import read_onnx
from core.engine.least_squares import as_matrix, as_weight
from core.engine.reconstruct import repair
from core.engine.rounding import round_weights
from core.errors import RecipeError
from core.layers import dial_for
from core.options import QuantizeWeights

KEY = "quantize_weights"
KINDS = {"Conv": nn.Conv2d, "Gemm": nn.Linear, "MatMul": nn.Linear}
Codes = dict[str, tuple[Tensor, Tensor, int]]  # layer → codes in its weight's shape, scales (c_out,), bits


def apply(model: ModelProto, options: QuantizeWeights, layers: Mapping[str, int], context: Context) -> Outcome:
    """A copy of `model` whose weights are integers. Layers with 32 bits stay in float, and make up for the others.

    Raises RecipeError when the file is quantized already.
    """
    if any(entry.key == "quantization" for entry in model.metadata_props):
        raise RecipeError(
            "quantize_weights needs a file in float; the file is quantized already, so use one of the two."
        )
    proto, network = copy.deepcopy(model), _network(model)
    nodes = {n.name: n for n in proto.graph.node if n.op_type in KINDS and _fits(n, network)}
    bits = {name: dial_for(layers, name, options.bits) for name in nodes}
    if all(value == 32 for value in bits.values()):
        return Outcome(proto, tuple(_left(model, bits)))
    codes: Codes = {}

    def settle(name: str, layer: nn.Conv2d | nn.Linear, covariance: Tensor) -> None:
        if bits.get(name, 32) < 32:
            weight = as_matrix(layer, layer.weight.detach().double())
            found, scales = round_weights(weight, covariance, bits[name])
            codes[name] = as_weight(layer, found).to(torch.int8), scales.flatten().float(), bits[name]
            layer.weight.copy_(as_weight(layer, found * scales))

    original = copy.deepcopy(network)
    reason = repair(network, original, context.calibration, context.card, report=context.report, settle=settle)
    skipped = [Skip(KEY, "repair", reason)] if reason else []
    with torch.no_grad():
        for name in nodes.keys() - codes.keys():  # those that no image reached: rounded to nearest
            layer = network.get_submodule(name)
            width = as_matrix(layer, layer.weight).shape[:2]  # type: ignore[arg-type]
            settle(name, layer, torch.eye(width[1], dtype=torch.float64).repeat(width[0], 1, 1))  # type: ignore[arg-type]
    _write(proto, network, codes)
    return Outcome(proto, tuple(skipped + _left(model, bits)))


def _network(model: ModelProto) -> nn.Module:
    """The file as a network whose layers have the names of their nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return read_onnx(path)


def _fits(node: NodeProto, network: nn.Module) -> bool:
    """Whether the node is a layer of the network with weights of its own."""
    return isinstance(dict(network.named_modules()).get(node.name), KINDS[node.op_type])


def _left(model: ModelProto, bits: Mapping[str, int]) -> list[Skip]:
    """Layers that have weights but cannot be quantized here."""
    kinds = (*KINDS, "ConvTranspose")
    stored = {tensor.name for tensor in model.graph.initializer}
    named = [n for n in model.graph.node if n.op_type in kinds and n.input[1] in stored and n.name not in bits]
    return [Skip(KEY, n.name, f"Kept in float: {n.op_type} weights of this form are not rounded.") for n in named]


def _write(proto: ModelProto, network: nn.Module, codes: Codes) -> None:
    """Put the network's weights and biases into the file: integers where there are codes."""
    modules: dict[str, Any] = dict(network.named_modules())
    nodes: list[NodeProto] = []
    for node in proto.graph.node:
        kind: Any = KINDS.get(node.op_type, nn.modules.batchnorm._BatchNorm)
        layer = modules.get(node.name)
        if isinstance(layer, kind):
            if len(node.input) > 2 and layer.bias is not None:
                _store(proto, node, 2, f"{node.name}.bias", numpy_helper.from_array(layer.bias.detach().numpy()))
            if node.op_type in KINDS:
                across = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
                nodes += _weights(proto, node, layer, codes.get(node.name), across)
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(stored)
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, *(OPSET.get(bits, 13) for _, _, bits in codes.values()))
    proto.ir_version = max(proto.ir_version, 10)
    helper.set_model_props(proto, {**{e.key: e.value for e in proto.metadata_props}, "quantization": "weights only"})


def _weights(
    proto: ModelProto, node: NodeProto, layer: Any, codes: tuple[Tensor, Tensor, int] | None, across: bool
) -> list[NodeProto]:
    """Store a layer's weights; returns the nodes that make floats of them, if they are integers now."""
    if codes is None:
        weight = layer.weight.detach().numpy()
        _store(proto, node, 1, f"{node.name}.weight", numpy_helper.from_array(weight.T.copy() if across else weight))
        return []
    integers, bits = codes[0].numpy(), codes[2]
    scales = codes[1].numpy().reshape(-1, *[1] * (integers.ndim - 1))
    if across:
        integers, scales = integers.T, scales.T
    made, stored = unpack(f"{node.name}.weight", integers, scales, bits)
    known = {tensor.name for tensor in proto.graph.initializer}
    proto.graph.initializer.extend(tensor for tensor in stored if tensor.name not in known)
    node.input[1] = made[-1].output[0]
    return made


def _store(proto: ModelProto, node: NodeProto, place: int, name: str, tensor: TensorProto) -> None:
    """Make `tensor` an input of `node`, in the place of the one that was there if no other node reads that."""
    readers = sum(list(other.input).count(node.input[place]) for other in proto.graph.node)
    old = next((t for t in proto.graph.initializer if t.name == node.input[place] and readers == 1), None)
    tensor.name = old.name if old else name
    node.input[place] = tensor.name
    (old or proto.graph.initializer.add()).CopyFrom(tensor)


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), 0)
