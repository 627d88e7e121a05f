"""Weights and biases that a file stores as integers, as the floats that they stand for, and back.

Two forms are known: codes behind a DequantizeLinear (`onnx_int8.py`) and packed codes that are multiplied by their
scales (`onnx_packed.py`). A file in which only codes and scales change is read, sized and run as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from core.engine.formats import onnx_packed

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Array = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """The numbers that a tensor may hold: scale × the whole numbers from `low` to `high`."""

    name: str  # of the tensor that holds the scale
    scale: Array  # as many axes as the tensor
    low: int
    high: int


@dataclass(frozen=True)
class Stored:
    """A layer's weight or bias: in which tensor of the file, on which grid (None: any float), transposed or not."""

    layer: str
    part: str  # "weight" or "bias"
    tensor: str
    grid: Grid | None
    transposed: bool = False


def in_floats(model: ModelProto) -> tuple[ModelProto, list[Stored]]:
    """A copy of `model` with floats for all stored codes, each under `<layer>.weight` or `.bias`; and where they were.

    Values that are rounded while the network runs stay so.
    """
    twin = ModelProto()
    twin.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    found: list[Stored] = []
    named: dict[str, str] = {}  # value → the float tensor in its place
    for node in twin.graph.node:
        for place, name in enumerate(node.input):
            known = _read(name, tensors, makers)
            if known is None or (name in tensors and node.op_type not in LAYERS):
                continue
            values, stored = known
            if name not in named:
                role = ("", "weight", "bias")[place] if node.op_type in LAYERS else ""
                named[name] = f"{node.name}.{role}" if role else name
                if role:
                    found.append(
                        replace(stored, layer=node.name, part=role, transposed=role == "weight" and _across(node))
                    )
                twin.graph.initializer.append(numpy_helper.from_array(values, named[name]))
            node.input[place] = named[name]
    _drop_dead(twin)
    return twin, found


def put(model: ModelProto, stored: Stored, values: Array, factor: Array | None = None) -> None:
    """Store the values of a layer's weight or bias, in torch's order of axes, in place. They have to be on the grid.

    With `factor` (c_out,) they are on the grid whose scale is that many times as large; the file then holds that one.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    if stored.transposed:
        values = values.T
    tensor, grid = tensors[stored.tensor], stored.grid
    if grid is None:
        made = numpy_helper.from_array(np.ascontiguousarray(values, np.float32))
    else:
        scale = grid.scale
        if factor is not None:
            factor = np.abs(factor) if grid.low == -grid.high or stored.part == "bias" else factor
            scale = scale * factor.reshape(-1, *[1] * (values.ndim - 1)).astype(np.float32)
            kept = numpy_helper.to_array(tensors[grid.name])
            tensors[grid.name].CopyFrom(numpy_helper.from_array(scale.reshape(kept.shape), grid.name))
        codes = np.round(values / scale).clip(grid.low, grid.high)
        if tensor.data_type == TensorProto.INT32:
            made = numpy_helper.from_array(codes.astype(np.int32))
        else:
            made = onnx_packed.pack(codes, int(grid.high - grid.low).bit_length())
    made.name = stored.tensor
    tensor.CopyFrom(made)


def _read(
    name: str, tensors: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]
) -> tuple[Array, Stored] | None:
    """A stored value in floats and how it is stored; None for what the network computes, and for what is no float."""
    if name in tensors:
        plain = tensors[name].data_type == TensorProto.FLOAT
        return (numpy_helper.to_array(tensors[name]), Stored("", "", name, None)) if plain else None
    node = makers.get(name)
    if node is not None and node.op_type == "DequantizeLinear" and node.input[0] in tensors:
        return _dequantized(node, tensors)
    if node is not None and f"{node.name}.codes" in tensors:
        return _unpacked(node, tensors, makers)
    return None


def _dequantized(node: NodeProto, tensors: Mapping[str, TensorProto]) -> tuple[Array, Stored]:
    codes, scale = (numpy_helper.to_array(tensors[name]) for name in node.input[:2])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.size > 1:
        scale = scale.reshape([-1 if at == axis else 1 for at in range(codes.ndim)])
    limits = np.iinfo(np.int32)
    if codes.dtype == np.int8:
        highest = 64 if np.abs(codes.astype(int)).max(initial=0) <= 64 else 127  # 7 bits where the quantizer chose them
        return codes * scale, Stored("", "", node.input[0], Grid(node.input[1], scale, -highest, highest))
    return (codes * scale).astype(np.float32), Stored(
        "", "", node.input[0], Grid(node.input[1], scale, int(limits.min), int(limits.max))
    )


def _unpacked(
    node: NodeProto, tensors: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]
) -> tuple[Array, Stored]:
    codes, scale = tensors[f"{node.name}.codes"], numpy_helper.to_array(tensors[f"{node.name}.scales"])
    above = makers[node.input[0]]
    shape = numpy_helper.to_array(tensors[above.input[1]]).tolist() if above.op_type == "Reshape" else None
    integers, bits = onnx_packed.read(codes, shape)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return integers * scale, Stored("", "", codes.name, Grid(f"{node.name}.scales", scale, low, high))


def _across(node: NodeProto) -> bool:
    """Whether the file stores the layer's weights the other way round than torch."""
    return node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    )


def _drop_dead(model: ModelProto) -> None:
    """Remove nodes and tensors that no output depends on, in place. What is stored need not be computed."""
    stored, kept = {tensor.name for tensor in model.graph.initializer}, []
    wanted = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if wanted.difference(stored).intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(tensors)
