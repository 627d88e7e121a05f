"""The weights of a file on grids of few levels, rounded with feedback (`core/engine/rounding.py`).

On coarse grids each layer is solved first for what the layers before it give by then, so that later layers make up for
what earlier ones lost. On fine ones, where little is lost, each is rounded for the inputs that it has in float: that
gains nine tenths of as much for a SqueezeNet in int8, in a quarter of the time.

GPTQ, Frantar et al. 2023; the order of solving and rounding as in Up or Down?, Nagel et al. 2020: layer by layer.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from core.engine.context import Context
from core.engine.data import to_tensor
from core.engine.formats.onnx_facts import outputs_axis
from core.engine.formats.onnx_reader import read_onnx
from core.engine.least_squares import as_matrix, as_weight, observe
from core.engine.progress import stages
from core.engine.reconstruct import repair
from core.engine.rounding import round_weights

APART, BATCH = 128, 16  # images that show what layers read, and how many at once
KINDS = {"Conv": nn.Conv2d, "Gemm": nn.Linear, "MatMul": nn.Linear}


@dataclass
class Rounded:
    """A file as a network whose layers have the names of their nodes, and what its weights were rounded to."""

    network: nn.Module
    codes: dict[str, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    # layer → codes in its weight's shape, scales (c_out,), bits; the network's weights are codes × scales
    reason: str = ""  # why no layer could make up for those before it

    def nodes_of(self, model: ModelProto) -> dict[str, NodeProto]:
        """The nodes that are layers of the network with weights of their own."""
        modules = dict(self.network.named_modules())
        found = [n for n in model.graph.node if n.op_type in KINDS]
        return {n.name: n for n in found if isinstance(modules.get(n.name), KINDS[n.op_type])}


def as_network(model: ModelProto) -> Rounded:
    """Nothing is rounded yet. Raises ModelError for what `read_onnx` does not take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        return Rounded(read_onnx(path))


def round_layers(rounded: Rounded, bits: Mapping[str, int], context: Context) -> None:
    """Round the layers whose bits are below 32, in place, on the calibration images; all others make up for them."""

    def settle(name: str, layer: nn.Conv2d | nn.Linear, covariance: Tensor) -> None:
        if bits.get(name, 32) < 32:
            _settle(rounded, name, layer, covariance, bits[name])

    network = rounded.network
    images, original = context.calibration, copy.deepcopy(network)
    rounded.reason = repair(network, original, images, context.card, report=context.report, settle=settle)
    for name in bits.keys() - rounded.codes.keys():  # those that no image reached: rounded to nearest
        layer: Any = network.get_submodule(name)
        width = as_matrix(layer, layer.weight).shape[:2]
        settle(name, layer, torch.eye(width[1], dtype=torch.float64).repeat(width[0], 1, 1))


def round_apart(rounded: Rounded, names: Collection[str], bits: int, context: Context) -> None:
    """Round these layers in place, each for the inputs that it has in float; layers in groups and very wide ones are
    left as they are."""
    seeing, rounding = stages(context.report, [3.0, 1.0])
    images = context.calibration.x[:APART]
    batches = [to_tensor(images[i : i + BATCH], context.card) for i in range(0, len(images), BATCH)]
    seen = observe(rounded.network, names, batches, seeing)
    for number, (name, normal) in enumerate(seen.items()):
        rounding(number / len(seen), f"Rounding {name}")
        layer: Any = rounded.network.get_submodule(name)
        _settle(rounded, name, layer, normal.centred()[0], bits)


@torch.no_grad()
def _settle(rounded: Rounded, name: str, layer: nn.Conv2d | nn.Linear, covariance: Tensor, bits: int) -> None:
    weight = as_matrix(layer, layer.weight.detach().double())
    found, scales = round_weights(weight, covariance, bits)
    rounded.codes[name] = as_weight(layer, found).to(torch.int8), scales.flatten().float(), bits
    layer.weight.copy_(as_weight(layer, found * scales))


def store_weights(model: ModelProto, rounded: Rounded) -> None:
    """Weights, biases and norms of the network become those of the file, in floats and in place."""
    modules: dict[str, Any] = dict(rounded.network.named_modules())
    kind: Any
    for node in model.graph.node:
        layer, kind = modules.get(node.name), KINDS.get(node.op_type, nn.modules.batchnorm._BatchNorm)
        if isinstance(layer, kind):
            if len(node.input) > 2 and layer.bias is not None:
                store(model, node, 2, f"{node.name}.bias", numpy_helper.from_array(layer.bias.detach().numpy()))
            if node.op_type in KINDS:
                weight = layer.weight.detach().numpy()
                tensor = numpy_helper.from_array(weight.T.copy() if outputs_axis(node) else weight)
                store(model, node, 1, f"{node.name}.weight", tensor)


def store(model: ModelProto, node: NodeProto, place: int, name: str, tensor: TensorProto) -> None:
    """Make `tensor` an input of `node`, in the place of the one that was there if no other node reads that."""
    readers = sum(list(other.input).count(node.input[place]) for other in model.graph.node)
    old = next((t for t in model.graph.initializer if t.name == node.input[place] and readers == 1), None)
    tensor.name = old.name if old else name
    node.input[place] = tensor.name
    (old or model.graph.initializer.add()).CopyFrom(tensor)
