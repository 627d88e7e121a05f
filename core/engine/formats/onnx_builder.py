"""Builds a torch.fx graph node by node, and the table of operators that fill it.

A value is an fx node, or a NumPy array when it is known while importing (weights, and all shape arithmetic). Every fx
node carries an example on torch's meta device, so each operator knows its shapes without computing anything. The batch
size is BATCH there, a prime that no real width is a multiple of, so it is recognized after any shape arithmetic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import mul
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.engine.formats.onnx_names import PATH, Names
from core.errors import ModelError

BATCH = 4099
LARGEST = 2**28  # elements of one activation, per image
Array = NDArray[Any]
Value = fx.Node | Array | None
Attributes = Mapping[str, Any]
Operator = Callable[..., Any]  # operator(build, attributes, *inputs) -> a Value, or a tuple of them

OPERATORS: dict[str, Operator] = {}
FOLDS: dict[str, int] = {}  # operators that may run while importing → how many of their inputs are data, not settings
ALL = 1_000_000


def operator(*names: str, folds: int | None = None) -> Callable[[Operator], Operator]:
    """Enter a function in the table under the ONNX operator's name."""

    def enter(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
            if folds is not None:
                FOLDS[name] = folds
        return function

    return enter


class Builder:
    """The graph so far. `node` is the ONNX node being read; `filed_batch` the batch size written in the file."""

    def __init__(
        self,
        opset: int,
        filed_batch: int,
        names: Names,
        uses: Mapping[str, int],
        device: str = "meta",
        scratch: bool = False,
    ) -> None:
        self.device, self.scratch = device, scratch
        self.opset, self.filed_batch, self.names, self.uses = opset, filed_batch, names, uses
        self.graph, self.root = fx.Graph(), nn.Module()
        self.node = NodeProto()
        self.frozen = False  # whether a reshape in the file holds for its own batch size only
        self.trained: dict[int, str] = {}  # id of an initializer's array → its name
        self._constants: dict[int, fx.Node] = {}
        self._kept: list[Array] = []  # arrays whose ids are keys above
        self._shared: dict[tuple[Any, ...], str] = {}
        self._batch: fx.Node | None = None

    def input(self, name: str, shape: Sequence[int]) -> fx.Node:
        self.placeholder = self.graph.placeholder(re.sub(r"\W", "_", name) or "x")
        self.placeholder.meta["example"] = torch.empty(tuple(shape), device=self.device)
        return self.placeholder

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self._known(self.graph.call_function(function, args, kwargs), function)

    def method(self, name: str, *args: Any) -> fx.Node:
        return self._known(self.graph.call_method(name, args), getattr(Tensor, name))

    def layer(self, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        """Run `module` on `inputs`. Two nodes that share a weight matrix become one layer that runs twice; vectors are
        equal by chance, and exporters store equal tensors once."""
        key = (self.node.op_type, tuple(self.node.input[1:]), tuple(a.SerializeToString() for a in self.node.attribute))
        path = self._shared.get(key, "") if any(p.ndim > 1 for p in module.parameters()) else ""
        if not path:
            path = self._shared[key] = self.names.of_layer(self.node)
            self._attach(path, module.eval())
        module = self.root.get_submodule(path)
        state = {k: v.to(self.device) for k, v in chain(module.named_parameters(), module.named_buffers())}
        return self._known(
            self.graph.call_module(path, inputs), lambda *args: torch.func.functional_call(module, state, args)
        )

    def tensor(self, value: Value) -> fx.Node:
        """A value as an fx node. Trained constants become parameters, others buffers."""
        if isinstance(value, fx.Node):
            return value
        if value is None:
            raise ModelError(f"{self.node.op_type} (node {self.node.name!r}) lacks an input.")
        if id(value) not in self._constants:
            name = self.trained.get(id(value), "")
            data = torch.from_numpy(np.array(value))
            trained = bool(name) and data.is_floating_point() and data.numel() > 1
            if not name and not self.scratch and _mentions_batch(value):
                raise ModelError(f"{self.node.op_type} (node {self.node.name!r}) computes with the batch size.")
            path = self.names.unique(name if PATH.fullmatch(name) else f"constant_{len(self._constants)}")
            self._attach(path, nn.Parameter(data) if trained else data)
            node = self.graph.get_attr(path)
            node.meta["example"] = data.to(self.device)
            self._constants[id(value)] = node
            self._kept.append(value)
        return self._constants[id(value)]

    def constant(self, value: Value, what: str) -> Array:
        """A value that has to be known now. Raises ModelError when the network computes it."""
        if not isinstance(value, np.ndarray):
            raise ModelError(
                f"{self.node.op_type} (node {self.node.name!r}) needs a constant {what}; received a computed one."
            )
        return value

    def shape(self, value: Value) -> tuple[int, ...]:
        """With BATCH where the batch is."""
        return tuple(value.meta["example"].shape) if isinstance(value, fx.Node) else np.shape(value)  # type: ignore[arg-type]

    def times(self, node: fx.Node) -> int:
        """How often the layer that makes `node` runs."""
        return sum(other.op == node.op and other.target == node.target for other in self.graph.nodes)

    def dims(self, values: Sequence[int] | Array) -> list[int | fx.Node]:
        """Sizes as arguments of a torch function, the batch size read from the input."""
        return [self._times(int(v)) if v and v % BATCH == 0 else int(v) for v in values]

    def batch(self) -> fx.Node:
        """The batch size, at run time."""
        if self._batch is None:
            with self.graph.inserting_after(self.placeholder):
                self._batch = self.method("size", self.placeholder, 0)
        return self._batch

    def _times(self, size: int) -> fx.Node:
        return self.batch() if size == BATCH else self.call(mul, self.batch(), size // BATCH)

    def _known(self, node: fx.Node, function: Callable[..., Any]) -> fx.Node:
        args = fx.node.map_arg(node.args, lambda n: n.meta["example"])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: n.meta["example"])
        with torch.no_grad(), torch.device(self.device):
            example = function(*args, **kwargs)  # type: ignore[misc]
        for part in example if isinstance(example, tuple | list) else (example,):
            size = math.prod(s // BATCH if s % BATCH == 0 else s for s in getattr(part, "shape", ()))
            if size > LARGEST:
                raise ModelError(
                    f"{self.node.op_type} (node {self.node.name!r}) makes {size:,} values for one image; "
                    f"accepted are up to {LARGEST:,}."
                )
        node.meta["example"] = example
        return node

    def _attach(self, path: str, value: nn.Module | Tensor) -> None:
        *parents, last = path.split(".")
        owner = self.root
        for name in parents:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(last, value)
        else:
            owner.register_buffer(last, value)


def _mentions_batch(value: Array) -> bool:
    """Whether shape arithmetic left the batch size among these numbers."""
    return bool(np.any((value != 0) & (value.astype(np.float64) % BATCH == 0)))


def batch_axis(shape: Sequence[int]) -> int | None:
    """The first axis whose size is a multiple of the batch size."""
    return next((axis for axis, size in enumerate(shape) if size and size % BATCH == 0), None)


def filled(module: nn.Module, **values: Array | None) -> nn.Module:
    """A module made on the meta device, with these arrays as its parameters and buffers."""
    for name, value in values.items():
        if value is None:
            continue
        data = torch.from_numpy(np.array(value))
        setattr(module, name, nn.Parameter(data) if name in module._parameters else data)
    if "num_batches_tracked" in module._buffers:
        module._buffers["num_batches_tracked"] = torch.tensor(0)
    return module


def bare(kind: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """`kind(*args)` without memory for its weights: `filled` brings them."""
    with torch.device("meta"):
        return kind(*args, **kwargs)
