"""Channels of similar range, in the same network: a layer puts out its small channels scaled up, and the layers that
read them scale them down again.

All channels of a value share one scale when it is quantized, so a channel whose values are all small is left with a few
steps. Everything between must keep factors above 0 as they are: ReLU, pooling and joining do, sums do not. The scale of
channel i is largest range / range of i / HEADROOM, from 1 to LARGEST: other images will reach further than those seen,
and a channel scaled up to the largest of all would be cut off there.

Data-Free Quantization Through Weight Equalization and Bias Correction, Nagel et al. 2019; by the ranges of activations
as in SmoothQuant, Xiao et al. 2023.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from core.engine.formats import onnx_facts
from core.engine.formats.onnx_rewrites import stored_values

PASS = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Dropout"}
HEADROOM, LARGEST = 1.5, 16.0
Readers = list[tuple[NodeProto, int]]  # layers that read a value, and at which of their input channels it begins


def equalize(model: ModelProto, x: NDArray[np.float32], layers: Collection[str]) -> int:
    """Scale channels by their ranges over the images x (n, c, h, w), in place. Returns how many layers were scaled.

    Only weights of `layers` change.
    """
    graph = _Graph(model, layers)
    found = {node.name: readers for node in model.graph.node if (readers := graph.readers_of(node))}
    peaks = onnx_facts.run_for(model, [graph.layers[name].output[0] for name in found], x) if found else {}
    for name, readers in found.items():
        layer = graph.layers[name]
        values = np.maximum(peaks[layer.output[0]], 0) if graph.rectified(layer) else np.abs(peaks[layer.output[0]])
        ranges = values.max(axis=(0, 2, 3))  # (c_out,)
        scale = np.clip(ranges.max() / np.maximum(ranges, 1e-9) / HEADROOM, 1, LARGEST).astype(np.float32)
        graph.multiply(layer, 1, scale, 0, axis=0)
        graph.multiply(layer, 2, scale, 0, axis=0)
        for reader, start in readers:
            graph.multiply(reader, 1, 1 / scale, start, axis=0 if _groups(reader) > 1 else 1)
    graph.store()
    return len(found)


def _groups(node: NodeProto) -> int:
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "group"), 1)


class _Graph:
    """Who reads what, and the weights while they change."""

    def __init__(self, model: ModelProto, layers: Collection[str]) -> None:
        self.free = set(layers)
        self.model, self.stored = model, stored_values(model)
        self.layers = {node.name: node for node in model.graph.node}
        self.results = {out.name for out in model.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        convolutions = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in self.stored]
        self.channels = {node.output[0]: len(self.stored[node.input[1]]) for node in convolutions}
        for node in model.graph.node:
            if node.op_type in PASS and node.input[0] in self.channels:
                self.channels[node.output[0]] = self.channels[node.input[0]]

    def readers_of(self, node: NodeProto) -> Readers:
        """The layers that read what `node` makes; none where something else reads it too, or its weights are shared."""
        if not self._is_layer(node):
            return []
        return self._follow(node.output[0], 0) or []

    def rectified(self, node: NodeProto) -> bool:
        return all(reader.op_type == "Relu" for reader in self.readers[node.output[0]])

    def multiply(self, node: NodeProto, place: int, scale: NDArray[np.float32], start: int, axis: int) -> None:
        """Scale a part of the weights or of the bias along an axis."""
        if place < len(node.input):
            weight = self.stored[node.input[place]].copy()
            part = [slice(None)] * weight.ndim
            part[axis] = slice(start, start + len(scale))
            weight[tuple(part)] *= scale.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
            self.stored[node.input[place]] = weight

    def store(self) -> None:
        for tensor in self.model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(self.stored[tensor.name], tensor.name))

    def _is_layer(self, node: NodeProto) -> bool:
        """A convolution with weights of its own, whose groups are none or one for each channel."""
        own = (
            node.op_type == "Conv"
            and node.name in self.free
            and all(name in self.stored and len(self.readers[name]) == 1 for name in node.input[1:])
        )
        return own and (_groups(node) == 1 or self.stored[node.input[1]].shape[1] == 1)

    def _follow(self, value: str, start: int) -> Readers | None:
        found: Readers = []
        if value in self.results:
            return None
        for reader in self.readers.get(value, []):
            if reader.op_type in PASS:
                more = self._follow(reader.output[0], start)
            elif reader.op_type == "Concat" and all(name in self.channels for name in reader.input):
                places = list(reader.input)
                before = sum(self.channels[name] for name in places[: places.index(value)])
                more = self._follow(reader.output[0], start + before) if places.count(value) == 1 else None
            else:
                more = [(reader, start)] if self._is_layer(reader) and reader.input[0] == value else None
            if more is None:
                return None
            found += more
        return found
