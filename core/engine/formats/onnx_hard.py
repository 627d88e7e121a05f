"""Hard-swish and hard-sigmoid on integers; ONNX Runtime has no kernels for them and would go back to float for each.

    hard_sigmoid(x) = clip(α x + β, 0, 1)          hard_swish(x) = x · hard_sigmoid(x), α = 1/6, β = 1/2

Neither looks at x below -β/α, so x may be stored with that as its lowest value, code 0. The same codes read with the
zero point 0 and α times the scale are then αx + β, clipped from below: a second reading of the integers, which costs
nothing. Clipping from above is a minimum with the code of 1. What is left of hard-swish is one integer product.

Searching for MobileNetV3, Howard et al. 2019, sections 5.2 and 6.1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from core.engine.formats.onnx_rewrites import stored_values

KINDS = ("HardSigmoid", "HardSwish")
TOP = 255  # the highest code
Points = dict[str, list[dict[str, Any]]]


def find_points(model: ModelProto, highest: Mapping[str, float], leave: Collection[str]) -> Points:
    """Value → the scale and zero point that store the lowest x that a hard activation looks at as 0.

    `highest` holds the largest of each value, `leave` the names of nodes that stay in float. The form is that of the
    overrides of ONNX Runtime's quantizer.
    """
    read = [name for node in model.graph.node for name in node.input] + [out.name for out in model.graph.output]
    found: Points = {}
    for node in model.graph.node:
        x = node.input[0] if node.op_type in KINDS and node.name not in leave else ""
        if x not in highest or read.count(x) != 1:
            continue
        slope, shift = _line(node)
        if slope <= 0 or not 0 < shift < 1:
            continue
        bound = shift / slope
        top = (1 - shift) / slope if node.op_type == "HardSigmoid" else max(highest[x], bound / TOP)
        zero = int(np.clip(round(TOP * bound / (bound + top)), 1, TOP - 1))
        found[x] = [{"scale": np.array(bound / zero, np.float32), "zero_point": np.array(zero, np.uint8)}]
    return found


def _line(node: NodeProto) -> tuple[float, float]:
    """α and β."""
    if node.op_type == "HardSwish":
        return 1 / 6, 0.5
    given = {a.name: float(a.f) for a in node.attribute}
    return given.get("alpha", 0.2), given.get("beta", 0.5)


def read_twice(model: ModelProto, points: Points) -> None:
    """Replace the hard activations of the values in `points`, in a file that is quantized around them, in place."""
    stored = stored_values(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    nodes: list[NodeProto] = []
    again: set[str] = set()  # outputs of the nodes that quantize a hard-sigmoid once more
    for node in model.graph.node:
        into = makers.get(node.input[0]) if node.op_type in KINDS else None
        coded = makers.get(into.input[0]) if into is not None else None
        if into is None or coded is None or coded.op_type != "QuantizeLinear" or coded.input[0] not in points:
            nodes.append(node)
            continue
        scale = float(stored[coded.input[1]]) * _line(node)[0]
        if node.op_type == "HardSwish":
            gate = f"{node.name}.gate"
            nodes += _gate(model, coded.output[0], gate, node.name, scale)
            nodes.append(helper.make_node("Mul", [node.input[0], gate], node.output, node.name))
        else:
            codes = readers[node.output[0]]
            floats = readers[codes.output[0]]
            again.update((*codes.output, *floats.output, *into.output))
            nodes += _gate(model, coded.output[0], floats.output[0], node.name, scale)
    del model.graph.node[:]
    model.graph.node.extend(n for n in nodes if n.output[0] not in again or n.name.endswith(".gate"))


def _gate(model: ModelProto, codes: str, output: str, label: str, scale: float) -> list[NodeProto]:
    """Nodes that read `codes` as numbers from 0 to 1 in steps of `scale`; what they need is stored in `model`."""
    points = [f"{label}.{part}" for part in ("scale", "zero", "one")]
    kinds = (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.UINT8)
    one = min(TOP, round(1 / scale))
    for name, kind, value in zip(points, kinds, (scale, 0, one), strict=True):
        model.graph.initializer.append(helper.make_tensor(name, kind, [], [value]))
    nodes = []
    if one < TOP:
        nodes.append(helper.make_node("Clip", [codes, "", points[2]], [f"{label}.codes"], f"{label}.clip"))
        codes = f"{label}.codes"
    return [*nodes, helper.make_node("DequantizeLinear", [codes, *points[:2]], [output], f"{label}.gate")]
