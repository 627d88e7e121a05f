"""The same computation in operators that have an integer kernel. Each rewrite is exact and names what it makes after
the node that it replaces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

OPEN_END = 2**30  # a slice that ends beyond this takes everything
Stored = Mapping[str, NDArray[Any]]


def stored_values(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Name → value of every stored tensor."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def drop_unused(model: ModelProto) -> None:
    """Remove stored tensors that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    stored = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)


def average_whole_maps(model: ModelProto) -> None:
    """A mean over height and width becomes the average pool that it is, flattened where the mean drops the axes."""
    stored, nodes = stored_values(model), []
    for node in model.graph.node:
        nodes.append(node)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = stored.get(node.input[1], ()) if len(node.input) > 1 else attributes.get("axes", ())
        if node.op_type != "ReduceMean" or sorted(map(int, axes)) not in ([2, 3], [-2, -1]):
            continue
        node.op_type = "GlobalAveragePool"
        del node.input[1:], node.attribute[:]
        if not attributes.get("keepdims", 1):
            pooled = f"{node.output[0]}.map"
            nodes.append(helper.make_node("Flatten", [pooled], node.output, f"{node.name}.flatten"))
            node.output[0] = pooled
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def convolve_shortcuts(model: ModelProto, leave: Collection[str] = ()) -> None:
    """Every n-th row and column with empty channels around them becomes a 1×1 convolution with an identity.

    That is the shortcut without parameters of He et al. 2016 (option A), which otherwise leaves integers for floats and
    comes back. Nodes named in `leave` stay.
    """
    shapes = _channels(model)
    stored, makers = stored_values(model), {name: node for node in model.graph.node for name in node.output}
    readers = [name for node in model.graph.node for name in node.input] + [out.name for out in model.graph.output]
    gone: list[str] = []
    for node in model.graph.node:
        around = None if node.name in leave else _empty_channels(node, stored)
        if around is None:
            continue
        source, strides, passed = node.input[0], [1, 1], []
        while (part := makers.get(source)) and (axis := _every_nth(part, stored)) and readers.count(source) == 1:
            strides[axis[0] - 2] *= axis[1]
            passed.append(part.name)
            source = part.input[0]
        if source not in shapes:
            continue
        gone += passed
        _make_convolution(model, node, source, np.eye(shapes[source], dtype=np.float32), around, strides)
    kept = [node for node in model.graph.node if node.name not in gone]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _channels(model: ModelProto) -> dict[str, int]:
    """Value → its number of channels, for images whose number is known."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    axes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.input, *inferred.value_info)}
    return {name: dims[1].dim_value for name, dims in axes.items() if len(dims) == 4 and dims[1].dim_value}


def _empty_channels(node: NodeProto, stored: Stored) -> tuple[int, int] | None:
    """How many channels of zeros a node puts before and after an image; None when it does anything else."""
    if node.op_type != "Pad" or len(node.input) < 2 or len(node.input) > 3 or node.input[1] not in stored:
        return None
    mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"constant")
    value = stored.get(node.input[2], np.ones(1)) if len(node.input) == 3 and node.input[2] else np.zeros(1)
    pads = [int(pad) for pad in stored[node.input[1]]]
    plain = mode == b"constant" and not value.any() and len(pads) == 8 and min(pads) >= 0
    return (pads[1], pads[5]) if plain and pads[1] + pads[5] == sum(pads) else None


def _every_nth(node: NodeProto, stored: Stored) -> tuple[int, int] | None:
    """(axis, n) of a slice that takes every n-th row or column from the first on; None for any other node."""
    if node.op_type != "Slice" or len(node.input) < 4 or any(name not in stored for name in node.input[1:] if name):
        return None
    starts, ends, axes = (stored[name].tolist() for name in node.input[1:4])
    steps = stored[node.input[4]].tolist() if len(node.input) > 4 and node.input[4] else [1]
    whole = starts == [0] and ends[0] > OPEN_END and axes[0] in (2, 3) and steps[0] > 0
    return (int(axes[0]), int(steps[0])) if len(axes) == 1 and whole else None


def _make_convolution(
    model: ModelProto,
    node: NodeProto,
    source: str,
    identity: NDArray[np.float32],
    around: tuple[int, int],
    strides: Any,
) -> None:
    """Turn `node` into the convolution, in its place."""
    weight = np.pad(identity, (around, (0, 0)))[:, :, None, None]  # (out, in, 1, 1)
    name = f"{node.name}.weight"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
    output = node.output[0]
    made = helper.make_node("Conv", [source, name], [output], node.name, kernel_shape=[1, 1], strides=strides)
    node.CopyFrom(made)
