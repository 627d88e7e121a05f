"""The operators of an ONNX file with the memory that their values take, for one image.

Stored tensors do not count, nor what is computed from them alone. A float value that is quantized at once, or a
quantized one that is turned to float only for its reader, never exists in float.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto

from core.liveness import IMAGE, Operator

Values = Mapping[str, NDArray[Any]]


def read_operators(graph: GraphProto, values: Values) -> list[Operator]:
    """In the file's order, each named after its node. `values` holds every value of a run on one image."""
    stored = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    images = [value.name for value in graph.input if value.name not in stored]
    found = [Operator(IMAGE, (), values[name].nbytes) for name in images]
    made = {name: at for at, name in enumerate(images)}  # value → the operator that makes it
    fresh: set[str] = set()  # values that exist only if something else than a quantizer reads them
    for node in graph.node:
        reads = tuple(made[name] for name in node.input if name in made)
        if not reads:  # computed from stored tensors alone: ready before the first image
            continue
        if node.op_type == "DequantizeLinear":
            made[node.output[0]] = reads[0]
        elif node.op_type == "QuantizeLinear" and node.input[0] in fresh and uses[node.input[0]] == 1:
            found[reads[0]] = found[reads[0]]._replace(size=values[node.output[0]].nbytes, integer=True)
            made[node.output[0]] = reads[0]
        else:
            for name in filter(None, node.output):
                made[name] = len(found)
                found.append(Operator(node.op_type, reads, values[name].nbytes, node.name))
                fresh.add(name)
    for value in graph.output:
        if value.name in made:
            found[made[value.name]] = found[made[value.name]]._replace(answer=True)
    return found
