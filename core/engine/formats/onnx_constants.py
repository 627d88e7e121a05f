"""Tensors stored in an ONNX file, and operators whose inputs are all known: shape arithmetic, mostly.

Those run while importing, by the same functions that build the graph: first on torch's meta device, so that a small
file cannot ask for a huge constant, then on real values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx

from core.engine.formats.onnx_builder import BATCH, FOLDS, OPERATORS, Array, Attributes, Builder, Value
from core.engine.formats.onnx_names import Names
from core.errors import ModelError


def to_array(tensor: TensorProto) -> Array:
    """A stored tensor; any float becomes float32. Raises ModelError when its values do not fit its shape."""
    known = TensorProto.DataType.values()
    kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in known else "unknown type"
    count = math.prod(tensor.dims)
    try:
        if min(tensor.dims, default=1) < 0 or (tensor.raw_data and 8 * len(tensor.raw_data) < count):
            raise ValueError("its values do not fit its shape")
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"Tensor {tensor.name!r} ({kind}, {list(tensor.dims)}) cannot be read: {reason}; the file may be damaged."
        ) from error
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        array = array.astype(np.float32)
    return np.asarray(array)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Attribute name → int, float, text, array or list of them."""
    values = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            value = to_array(value)
        elif isinstance(value, bytes):
            value = value.decode()
        values[attribute.name] = value
    return values


def constant_value(attributes: Attributes) -> Array:
    """The value of a Constant node."""
    ((name, value),) = attributes.items()
    kind = {"value_float": np.float32, "value_floats": np.float32}.get(name, None if name == "value" else np.int64)
    return np.asarray(value, kind)


def fold(b: Builder, attributes: Attributes, inputs: Sequence[Value]) -> tuple[Array, ...] | None:
    """The outputs of `b.node` when every input is known; None when it has to run. Raises ModelError for huge ones."""
    kind = b.node.op_type
    if kind not in FOLDS or not all(value is None or isinstance(value, np.ndarray) for value in inputs):
        return None
    if kind in ("ConstantOfShape", "Expand", "Tile") and _holds_batch(inputs[-1]):
        return None
    _run("meta", b, attributes, inputs)
    return tuple(value for value in _run("cpu", b, attributes, inputs) if isinstance(value, np.ndarray))


def _run(device: str, b: Builder, attributes: Attributes, inputs: Sequence[Value]) -> list[Array | Tensor]:
    """The outputs of `b.node` alone: arrays on the processor, shapes only on the meta device."""
    kind = b.node.op_type
    scratch = Builder(b.opset, b.filed_batch, Names(()), {}, device, scratch=True)
    scratch.node = b.node
    data = FOLDS[kind]
    made = OPERATORS[kind](scratch, attributes, *map(scratch.tensor, inputs[:data]), *inputs[data:])
    results = []
    for value in made if isinstance(made, tuple) else (made,):
        example = value.meta["example"] if isinstance(value, fx.Node) else value
        results.append(example.numpy() if isinstance(example, Tensor) and device == "cpu" else example)
    return results


def _holds_batch(value: Value) -> bool:
    return isinstance(value, np.ndarray) and any(size and size % BATCH == 0 for size in value.reshape(-1).tolist())
