"""The same computation in operators that have an integer kernel. Each rewrite is exact and names what it makes after
the node that it replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

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
