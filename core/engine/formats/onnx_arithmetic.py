"""Operators that compute element by element, and reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx, nn

from core.engine.formats.onnx_builder import ALL, BATCH, LARGEST, Array, Attributes, Builder, Value, filled, operator
from core.errors import ModelError

UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Erf": torch.erf,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Not": torch.logical_not,
}
BINARY: dict[str, Callable[..., Any]] = {
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": torch.prod,
    "ReduceL2": torch.linalg.vector_norm,
}
TYPES = {
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
}
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@operator(*UNARY, folds=1)
def unary(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return b.call(UNARY[b.node.op_type], b.tensor(x))


@operator(*BINARY, folds=ALL)
def binary(b: Builder, a: Attributes, x: Value, y: Value) -> fx.Node:
    return b.call(BINARY[b.node.op_type], *_operands(b, x, y))


@operator("Add", folds=ALL)
def add(b: Builder, a: Attributes, x: Value, y: Value) -> fx.Node:
    for i, (node, constant) in enumerate(((x, y), (y, x))):
        if isinstance(node, fx.Node) and isinstance(constant, np.ndarray) and _takes_bias(b, node, constant, i):
            filled(b.root.get_submodule(str(node.target)), bias=constant.reshape(-1))
            return node
    return b.call(torch.add, *_operands(b, x, y))


@operator("Div", folds=ALL)
def div(b: Builder, a: Attributes, x: Value, y: Value) -> fx.Node:
    left, right = _operands(b, x, y)
    whole = all(isinstance(v, int) or (isinstance(v, fx.Node) and _is_whole(v)) for v in (left, right))
    return b.call(torch.div, left, right, **({"rounding_mode": "trunc"} if whole else {}))


@operator("Sum", folds=ALL)
def sum_of(b: Builder, a: Attributes, *values: Value) -> fx.Node:
    return _chain(b, torch.add, values)


@operator("Max", folds=ALL)
def max_of(b: Builder, a: Attributes, *values: Value) -> fx.Node:
    return _chain(b, torch.maximum, values)


@operator("Min", folds=ALL)
def min_of(b: Builder, a: Attributes, *values: Value) -> fx.Node:
    return _chain(b, torch.minimum, values)


@operator("Where", folds=ALL)
def where(b: Builder, a: Attributes, condition: Value, x: Value, y: Value) -> fx.Node:
    return b.call(torch.where, b.tensor(condition), b.tensor(x), b.tensor(y))


@operator("Einsum")
def einsum(b: Builder, a: Attributes, *values: Value) -> fx.Node:
    return b.call(torch.einsum, a["equation"].replace(" ", ""), *(b.tensor(value) for value in values))


@operator("Range", folds=0)
def range_of(b: Builder, a: Attributes, start: Value, limit: Value, step: Value) -> Array:
    first, last, stride = (b.constant(value, "limit").item() for value in (start, limit, step))
    count = np.ceil((last - first) / stride)
    if count > LARGEST:
        raise ModelError(f"Range (node {b.node.name!r}) makes {count:,.0f} numbers; accepted are up to {LARGEST:,}.")
    return np.asarray(np.arange(first, last, stride), np.asarray(start).dtype)


@operator("Cast", folds=1)
def cast(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    kind = a["to"]
    if kind not in TYPES and kind not in FLOATS:
        raise ModelError(f"Cast (node {b.node.name!r}) makes type {kind}; accepted are floats, 8 to 64 bit and bool.")
    wanted = TYPES.get(kind, torch.float32)
    return x if x.meta["example"].dtype == wanted else b.method("to", x, wanted)


@operator("Dropout", "Identity")
def unchanged(b: Builder, a: Attributes, x: Value, *ratio: Value) -> Value:
    return x


@operator(*REDUCTIONS, folds=1)
def reduce(b: Builder, a: Attributes, x: fx.Node, axes: Value = None) -> fx.Node:
    kind, rank, keep = b.node.op_type, len(b.shape(x)), bool(a.get("keepdims", 1))
    given = b.constant(axes, "axes").tolist() if axes is not None else a.get("axes", [])
    if not given and a.get("noop_with_empty_axes", 0):
        return x
    over = sorted(axis % rank for axis in given) or list(range(rank))
    if any(b.shape(x)[axis] % BATCH == 0 for axis in over):
        raise ModelError(
            f"{kind} (node {b.node.name!r}) mixes the images of a batch; accepted is one answer per image."
        )
    if kind == "ReduceMean" and rank == 4 and over == [2, 3]:
        pooled = b.layer(nn.AdaptiveAvgPool2d(1), x)
        return pooled if keep else b.call(torch.flatten, pooled, 1)
    if kind == "ReduceProd":  # torch takes one axis at a time
        for axis in reversed(over):
            x = b.call(torch.prod, x, axis, keep)
        return x
    return b.call(REDUCTIONS[kind], x, dim=tuple(over), keepdim=keep)


def _operands(b: Builder, *values: Value) -> list[Any]:
    """fx nodes as they are, single numbers as Python numbers, other constants as tensors."""
    rank = max(len(b.shape(v)) for v in values)
    single = [isinstance(v, np.ndarray) and v.size == 1 and (v.ndim < rank or v.ndim == 0) for v in values]
    if all(single):
        single[0] = False
    return [v.item() if alone else b.tensor(v) for v, alone in zip(values, single, strict=True)]  # type: ignore[union-attr]


def _chain(b: Builder, function: Callable[..., Any], values: tuple[Value, ...]) -> fx.Node:
    total = b.tensor(values[0])
    for value in values[1:]:
        total = b.call(function, total, b.tensor(value))
    return total


def _takes_bias(b: Builder, node: fx.Node, constant: Array, i: int) -> bool:
    """Whether `constant` is the bias of the layer that makes `node`, left beside it by the exporter."""
    if node.op != "call_module" or b.uses.get(b.node.input[i], 0) != 1 or b.times(node) != 1:
        return False
    layer = b.root.get_submodule(str(node.target))
    if getattr(layer, "bias", 0) is not None:
        return False
    rank = len(b.shape(node))
    width, behind = (layer.out_features, 0) if isinstance(layer, nn.Linear) else (layer.out_channels, rank - 2)
    wanted = (width,) + (1,) * behind  # type: ignore[operator]
    return constant.shape[-len(wanted) :] == wanted and constant.size == width and constant.ndim <= rank


def _is_whole(node: fx.Node) -> bool:
    return not node.meta["example"].dtype.is_floating_point
