"""torch-pruning's dependency graph, cut at every operator that does not keep each channel in its place.

DepGraph: Towards Any Structural Pruning, Fang et al. 2023. Its code reads autograd and takes every operator it does not
know for one that keeps channels where they are; a pad, split, shuffle or permute then couples the wrong channels, or
makes it divide by zero. Here such an operator becomes a cut, with a sentence for the layers on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from core.engine.surgery import NORMS, evaluating

KINDS = tp.ops.OPTYPE
LAYERS = (KINDS.CONV, KINDS.DEPTHWISE_CONV, KINDS.LINEAR, KINDS.BN, KINDS.PRELU)
# Operators that keep every channel in its place, as autograd names them.
KEEPING = frozenset(
    """Relu Hardtanh Clamp ClampMin ClampMax Sigmoid LogSigmoid Silu Hardswish Hardsigmoid Tanh Gelu Elu LeakyRelu
    Softplus Mish Threshold Neg Exp Log Sqrt Rsqrt Pow Abs Reciprocal Clone Alias ToCopy Softmax LogSoftmax
    Add Sub Mul Div Maximum Minimum Mean Sum Amax Amin MaxPool2DWithIndices AvgPool2D AdaptiveAvgPool2D
    MkldnnAdaptiveAvgPool2D AdaptiveMaxPool2D UpsampleNearest2D UpsampleNearestExact2D UpsampleBilinear2D
    UpsampleBicubic2D ConstantPadNd ReflectionPad2D ReplicationPad2D Slice Squeeze Unsqueeze Expand
    """.split()  # noqa: SIM905
)
RESHAPING = frozenset(("View", "UnsafeView", "ReshapeAlias", "Reshape"))
FRIENDLY = {
    "ConstantPadNd": "Pad",
    "Cat": "Concat",
    "Permute": "Transpose",
    "View": "Reshape",
    "UnsafeView": "Reshape",
    "Addmm": "MatMul",
}  # as ONNX names them


def build_dependency(module: nn.Module, example: Tensor) -> Dependency:
    """The cut graph of `module`; `example` (n, c, h, w) with n > 1, which tells the batch axis from constants."""
    dependency = Dependency()
    with torch.enable_grad(), _differentiable(module, example), evaluating(module):
        dependency.build_dependency(module, example, verbose=False)
    return dependency


@contextmanager
def _differentiable(module: nn.Module, example: Tensor) -> Iterator[None]:
    """Tracing reads autograd, so parameters, constants and the input need gradients meanwhile."""
    constants = [t for part in module.modules() if not isinstance(part, NORMS) for t in part.buffers(recurse=False)]
    tensors = [t for t in (*module.parameters(), *constants, example) if t.dtype.is_floating_point]
    before = [t.requires_grad for t in tensors]
    try:
        for t in tensors:
            t.requires_grad_(True)
        yield
    finally:
        for t, needed in zip(tensors, before, strict=True):
            t.requires_grad_(needed)


def _name(grad_fn: Any) -> str:
    """'ConstantPadNdBackward0' → 'ConstantPadNd'."""
    return str(grad_fn.name()).rpartition("::")[2].partition("Backward")[0]


class Dependency(tp.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph, cut at every operator that moves, mixes or fixes channels."""

    def __init__(self) -> None:
        super().__init__()
        self.above: dict[Any, str] = {}  # node → why what flows out of it is fixed
        self.below: dict[Any, str] = {}  # node → why what flows into it is fixed
        self.results: set[Any] = set()  # autograd functions whose output is the model's answer

    def _trace_computational_graph(self, nodes: Any, output: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.results.add(output.grad_fn)
        return super()._trace_computational_graph(nodes, output, *args, **kwargs)

    def _trace(self, *args: Any, **kwargs: Any) -> Any:
        nodes = super()._trace(*args, **kwargs)
        operators = [node for node in nodes.values() if node.type not in LAYERS]
        fans = {node: len(node.inputs) for node in operators}
        for node in nodes.values():
            if node.grad_fn in self.results:
                self.above[node] = "Its channels are the model's answer: one for each class."
        for node in operators:
            why = "" if _name(node.grad_fn) == "T" else _obstacle(node)  # T turns a linear layer's own weight
            if why or not node.inputs:
                self._cut(node, why)
            elif node.type not in (KINDS.CONCAT, KINDS.RESHAPE, KINDS.OUTPUT):
                node.type = KINDS.ELEMENTWISE  # channels pass in place: no index to map
        while starved := [n for n in operators if n in self.below and _is_starved(n, fans[n])]:
            for node in starved:
                self._cut(node, self.below.pop(node))
        return nodes

    def _cut(self, node: Any, why: str) -> None:
        if why:
            self.above.setdefault(node, why)
        for other in node.inputs:
            other.outputs = [n for n in other.outputs if n is not node]
            self.above.setdefault(other, why)
        for other in node.outputs:
            other.inputs = [n for n in other.inputs if n is not node]
            if why:
                self.below.setdefault(other, why)
        node.inputs, node.outputs = [], []


def _is_starved(node: Any, fan: int) -> bool:
    """Whether cuts above an operator leave its channels, or a concat's offsets, unknown."""
    return not node.inputs or (node.type == KINDS.CONCAT and len(node.inputs) < fan)


def _obstacle(node: Any) -> str:
    """Why channels cannot be followed through an operator, as a sentence; "" when they can."""
    function = node.grad_fn
    if node.type == KINDS.PARAMETER:
        return "Its channels meet a parameter of their own outside any layer."
    name, shape = _name(function), list(function._input_metadata[0].shape)
    shown = FRIENDLY.get(name, name)
    plain = f"Its channels pass through {shown}, which does not keep each one in its place."
    inputs = [f for f, _ in function.next_functions]
    kept = name in KEEPING or name in RESHAPING or name == "Cat"
    for source, (_, port) in zip(inputs, function.next_functions, strict=True):
        if source is None or "AccumulateGrad" in source.name():
            if kept and (name == "Cat" or (source is not None and _per_channel(source.variable, shape))):
                return f"Its channels meet constant ones or the model's input in {shown}, so their positions are fixed."
            continue
        size = list(source._input_metadata[port].shape)
        if name in RESHAPING:
            kept = kept and (size[:2] == shape[:2] or shape == [size[0], math.prod(size[1:])])
        elif name == "Cat":
            kept = kept and function._saved_dim % len(shape) == 1
        else:
            kept = kept and len(shape) > 1 and size[:2] == shape[:2]
    if kept and _axes_kept(function, name):
        return ""
    return (
        "Its channels are lengthened by constant ones (Pad), so their positions are fixed." if shown == "Pad" else plain
    )


def _axes_kept(function: Any, name: str) -> bool:
    """A mean, sum or pad that leaves the channel axis alone."""
    if name == "ConstantPadNd":
        return not any(function._saved_pad[2 * (len(function._input_metadata[0].shape) - 2) :])
    if name in ("Mean", "Sum", "Amax", "Amin"):
        axes, rank = getattr(function, "_saved_dim", (1,)), len(function._saved_self_sym_sizes)
        return all((axis if axis < 2**31 else axis - 2**64) % rank > 1 for axis in axes)
    return True


def _per_channel(constant: Tensor, shape: list[int]) -> bool:
    """Whether a constant that is broadcast to `shape` (n, c, …) has a value for each channel."""
    axis = constant.ndim - (len(shape) - 1)
    return axis >= 0 and constant.shape[axis] > 1
