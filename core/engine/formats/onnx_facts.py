"""What an ONNX file costs, counted from the file itself: parameters, multiply-adds, peak activation memory.

Shapes are those of a real run on one image, so every operator counts as it runs, and quantized files count like float
ones: a parameter is an element of a weight or bias whatever its type, scales and zero points are not. One multiply-add
is one MAC. A convolution that only copies its input (`core/engine/shortcut.py`) has neither. Peak memory is by liveness
(`core/liveness.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper

from core.engine import runtime
from core.engine.formats.onnx_memory import read_operators
from core.engine.shortcut import empty_around
from core.errors import ModelError
from core.liveness import peak_bytes

Shape = tuple[int, ...]

# Which inputs of an operator hold trained numbers, where they are stored in the file.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "Add": (0, 1), "Mul": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2), "PRelu": (1,), "ConvInteger": (1,), "MatMulInteger": (1,), "QLinearConv": (3, 8),
    "QLinearMatMul": (3,), "QGemm": (3, 6),
}  # fmt: skip
PASSED = frozenset(("DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"))


@dataclass(frozen=True)
class Facts:
    """Of one file, for one image."""

    params: int
    macs: int
    peak_bytes: int
    node_macs: dict[str, int]  # node name → MACs, of those that have any


def file_facts(file: Path, input_shape: Shape | None = None) -> Facts:
    """Counted from `file`, with one run of it; `input_shape` (channels, height, width) fills sizes it leaves open.

    Raises ModelError when it cannot be run.
    """
    proto = onnx.load(file)
    values = run_blank(proto, input_shape)
    ahead = _known_ahead(proto.graph)
    nodes = [node for node in proto.graph.node if not ahead.issuperset(node.output) and not copies(node, values)]
    macs = {node.name or node.output[0]: count for node in nodes if (count := _macs(node, values))}
    return Facts(
        _params(proto.graph, values), sum(macs.values()), peak_bytes(read_operators(proto.graph, values)), macs
    )


def run_blank(proto: ModelProto, input_shape: Shape | None = None) -> dict[str, NDArray[np.generic]]:
    """Every value of the graph in a run on one image of zeros. Raises ModelError when it cannot be run."""
    return run_all(proto, _blank(proto, input_shape))


def _blank(proto: ModelProto, input_shape: Shape | None) -> NDArray[np.generic]:
    """One image of zeros."""
    source = _input_of(proto.graph).type.tensor_type
    filed = [d.dim_value for d in source.shape.dim]
    shape = [size or open_ for size, open_ in zip(filed, (1, *(input_shape or [1] * len(filed))), strict=False)]
    return np.zeros(shape, helper.tensor_dtype_to_np_dtype(source.elem_type))


def _input_of(graph: GraphProto) -> onnx.ValueInfoProto:
    stored = {tensor.name for tensor in graph.initializer}
    return next(value for value in graph.input if value.name not in stored)


def run_all(proto: ModelProto, x: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Every value of the graph, weights included, in a run on x (n, c, h, w)."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    names = list(dict.fromkeys(name for node in proto.graph.node for name in node.output if name))
    return {**weights, _input_of(proto.graph).name: x, **run_for(proto, names, x)}


def run_for(proto: ModelProto, names: list[str], x: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """The named values of the graph in a run on `x`, whether or not they are its outputs."""
    open_graph = onnx.ModelProto()
    open_graph.CopyFrom(proto)
    del open_graph.graph.output[:]
    open_graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = runtime.open_file(open_graph.SerializeToString(), optimize=False)
    try:
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))
    except Exception as error:  # the runtime raises a different class for each way a file can be wrong
        raise ModelError(f"The model cannot be run on one image: {str(error).splitlines()[0][:200]}") from error


def _known_ahead(graph: GraphProto) -> set[str]:
    """Stored values and those computed from them alone, which the runtime computes when it opens the file."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if any(node.input) and all(name in known for name in node.input if name):
            known.update(node.output)
    return known


def _params(graph: GraphProto, values: dict[str, NDArray[np.generic]]) -> int:
    """Elements of all weights and biases that are stored or computed from stored numbers, each counted once."""
    sizes = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    ahead, found = _known_ahead(graph), set[str]()
    for node in graph.node:
        if ahead.issuperset(node.output):
            sizes |= {name: values[name].size for name in node.output if node.op_type not in PASSED}
            continue
        if copies(node, values):
            continue
        for index in WEIGHTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            while name in makers and makers[name].op_type in PASSED:
                name = makers[name].input[0]
            if sizes.get(name, 0) > 1 or (name in sizes and node.op_type not in ("Add", "Mul")):
                found.add(name)
    return sum(sizes[name] for name in found)


def copies(node: NodeProto, values: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a node is a convolution that only copies its input; `values` holds its weight, where that is known."""
    weight = values.get(node.input[1]) if node.op_type == "Conv" and len(node.input) == 2 else None
    return weight is not None and empty_around(weight) is not None


def _macs(node: NodeProto, values: dict[str, NDArray[np.generic]]) -> int:
    """Multiply-adds of one node; 0 for what is not a convolution or a matrix product."""
    shapes = [values[name].shape if name in values else () for name in node.input]
    out = prod(values[node.output[0]].shape) if node.output[0] in values else 0
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Conv" | "ConvInteger":
            return out * prod(shapes[1][1:])  # weight (out, in / groups, height, width)
        case "QLinearConv":
            return out * prod(shapes[3][1:])
        case "ConvTranspose":
            return prod(shapes[0]) * prod(shapes[1][1:])  # weight (in, out / groups, height, width)
        case "Gemm":
            return out * int(shapes[0][0 if attributes.get("transA") else 1])
        case "MatMul" | "MatMulInteger" | "QLinearMatMul" | "QGemm":
            return out * int(shapes[0][-1])
    return 0


def outputs_axis(node: NodeProto) -> int:
    """The axis of a layer's weight along which its outputs lie."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return int(node.op_type == "MatMul" or (node.op_type == "Gemm" and not turned))
