"""Biases that make up for rounding: every output channel of an integer layer has the mean again that it has in float.

Rounded weights and inputs shift the mean of a channel, most where few weights add up, as in depthwise layers. Layers
are corrected in the order of computation, each on what the integer layers before it make, and the shift goes into the
32-bit bias, whose step is the input's scale times the weight's. So the file stays as large and as fast.

Data-Free Quantization Through Weight Equalization and Bias Correction, Nagel et al. 2019, section 4.2, with images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from core.engine import runtime
from core.engine.context import Report
from core.engine.formats import onnx_facts
from core.engine.formats.onnx_rewrites import stored_values

AT_ONCE = 8  # images whose values in float are held together
Values = dict[str, NDArray[Any]]


def correct_biases(model: ModelProto, original: ModelProto, x: NDArray[np.float32], report: Report) -> int:
    """Shift the integer biases of `model` in place, by the means that `original`, in float, has over the images x
    (n, c, h, w). Returns how many layers were corrected."""
    stream = _Stream(model, x)
    layers = stream.layers()
    expected = _means(original, [node.name for node in layers], x)
    for number, node in enumerate(layers):
        report(number / len(layers), f"Correcting bias {number + 1} of {len(layers)}")
        stream.correct(node, expected[node.name])
        stream.keep_for(layers[number + 1 :])
    for tensor in model.graph.initializer:
        if tensor.name in stream.changed:
            tensor.CopyFrom(numpy_helper.from_array(stream.stored[tensor.name], tensor.name))
    return len(layers)


def _means(model: ModelProto, layers: list[str], x: NDArray[np.float32]) -> Values:
    """Layer → the mean of each channel of its output, (c_out,)."""
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in layers}
    sums: dict[str, Any] = dict.fromkeys(layers, 0.0)
    for start in range(0, len(x) if layers else 0, AT_ONCE):
        batch = x[start : start + AT_ONCE]
        found = onnx_facts.run_for(model, list(outputs.values()), batch)
        for name, output in outputs.items():
            sums[name] = sums[name] + len(batch) * _mean(found[output])
    return {name: total / len(x) for name, total in sums.items()}


def _mean(y: NDArray[Any]) -> NDArray[np.float64]:
    """Over all axes but that of the channels: (n, c, …) → (c,)."""
    return np.asarray(y.mean(tuple(axis for axis in range(y.ndim) if axis != 1), dtype=np.float64))


class _Stream:
    """The integer file on the images, computed piece by piece from what is known so far."""

    def __init__(self, model: ModelProto, x: NDArray[np.float32]) -> None:
        self.model, self.stored = model, stored_values(model)
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.known: Values = {model.graph.input[0].name: x}
        self.changed: set[str] = set()

    def layers(self) -> list[NodeProto]:
        """Convolutions and linear layers with integer inputs, weights and bias, in the order of computation."""
        made = {name for name, node in self.makers.items() if node.op_type == "DequantizeLinear"}
        kinds = ("Conv", "Gemm")
        nodes = [
            n for n in self.model.graph.node if n.op_type in kinds and len(n.input) > 2 and made.issuperset(n.input)
        ]
        return [n for n in nodes if self.makers[n.input[2]].input[0] in self.stored]

    def correct(self, node: NodeProto, expected: NDArray[np.float64]) -> None:
        source, output = node.input[0], node.output[0]
        found = self._compute([source, output])
        name, scale = self.makers[node.input[2]].input[:2]
        bias, step = self.stored[name], self.stored[scale].astype(np.float64)
        limits = np.iinfo(np.int32)
        shifted = np.clip(bias + np.round((expected - _mean(found[output])) / step), limits.min, limits.max)
        shift = ((shifted - bias) * step).astype(np.float32)
        self.stored[name] = shifted.astype(np.int32)
        self.changed.add(name)
        self.known |= {
            source: found[source],
            output: found[output] + shift.reshape(-1, *[1] * (found[output].ndim - 2)),
        }

    def _compute(self, names: list[str]) -> Values:
        """The named values, by the nodes between them and what is known."""
        nodes, read = self._between(names)
        stored = [numpy_helper.from_array(self.stored[name], name) for name in read if name in self.stored]
        feeds = {name: self.known[name] for name in read if name in self.known}
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in feeds]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in feeds]
        graph = helper.make_graph(nodes, "piece", inputs, outputs, stored)
        piece = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        made = [value.name for value in outputs]
        found = runtime.open_file(piece.SerializeToString(), optimize=False).run(made, feeds)
        return {**{name: feeds[name] for name in names if name in feeds}, **dict(zip(made, found, strict=True))}

    def _between(self, names: list[str]) -> tuple[list[NodeProto], set[str]]:
        """The nodes in their order, and what they read."""
        wanted, read, inside = [name for name in names if name not in self.known], set[str](), set[str]()
        while wanted:
            node = self.makers[wanted.pop()]
            if node.output[0] not in inside:
                inside.add(node.output[0])
                read.update(name for name in node.input if name)
                wanted += [name for name in node.input if name in self.makers and name not in self.known]
        return [node for node in self.model.graph.node if node.output[0] in inside], read

    def keep_for(self, layers: list[NodeProto]) -> None:
        """Forget what none of the layers ahead needs, so that memory stays small."""
        _, read = self._between([node.output[0] for node in layers])
        self.known = {name: value for name, value in self.known.items() if name in read}
