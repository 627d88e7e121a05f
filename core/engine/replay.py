"""Run a network again after some layers' weights changed, recomputing only what lies downstream of them.

One pass over `torch.fx`'s graph keeps exactly the values that some suffix reads from its prefix. A module that cannot
be traced (control flow that depends on data) is run whole each time: same logits, more time; `reason` says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from core.engine.perturb import Weights, swapped


class Replay:
    """A private copy of `module` (in evaluation mode), its input `x` (n, c, h, w) and the values its suffixes read.

    `layers` are those whose weights `run` may change. `logits` and `features` are the unchanged network's.
    """

    def __init__(self, module: nn.Module, x: Tensor, layers: Iterable[str], *, cached: bool = True) -> None:
        self.module, self.x = copy.deepcopy(module).eval(), x
        self.graph, self.reason = _trace(self.module) if cached else (None, "the cache is switched off")
        self.kept: dict[fx.Node, Any] = {}
        with torch.inference_mode():
            if self.graph is not None and not torch.equal(self.run({})[0], self.module(x)):
                self.graph, self.reason = None, "it reads a value after overwriting it"
            if self.graph is not None:
                self._keep(layers)
        self.logits, self.features = self.run({})

    def run(self, weights: Weights, biases: Weights | None = None) -> tuple[Tensor, Tensor]:
        """Logits (n, classes), and what the last linear layer reads, with these weights and biases swapped in."""
        with torch.inference_mode(), swapped(self.module, weights, biases):
            if self.graph is None:
                logits = self.module(self.x)
                return logits, logits
            stale = self._downstream(weights)
            known = {node: self.kept.get(node) for node in self.graph.graph.nodes if node not in stale}
            logits, features = fx.Interpreter(self.graph).run(self.x, initial_env=known if weights else None)
            return logits, features

    @property
    def kept_bytes(self) -> int:
        return sum(value.nbytes for value in self.kept.values() if isinstance(value, Tensor))

    def _keep(self, layers: Iterable[str]) -> None:
        """Fill `kept` with the inputs that some layer's suffix reads from outside itself."""
        assert self.graph is not None
        wanted: set[fx.Node] = set()
        for layer in layers:
            stale = self._downstream((layer,))
            wanted.update(value for node in stale for value in node.all_input_nodes if value not in stale)
        kept = self.kept

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n in wanted:
                    kept[n] = value
                return value

        Recorder(self.graph).run(self.x)

    def _downstream(self, layers: Iterable[str]) -> set[fx.Node]:
        """The nodes that use these layers' weights and all that follows from them; the output is always among them."""
        assert self.graph is not None
        names = set(layers)
        stale: set[fx.Node] = set()
        for node in self.graph.graph.nodes:
            if node.op == "output" or _uses(node, names) or any(value in stale for value in node.all_input_nodes):
                stale.add(node)
        return stale


def _uses(node: fx.Node, layers: set[str]) -> bool:
    if node.op == "call_module":
        target = str(node.target)
        return target in layers or any(name.startswith(f"{target}.") for name in layers)
    return node.op == "get_attr" and str(node.target).rpartition(".")[0] in layers


def _trace(module: nn.Module) -> tuple[fx.GraphModule | None, str]:
    """The module's graph, whose methods leave their tensor as it was; its output is (logits, features)."""
    try:
        graph = fx.GraphModule(module, fx.Tracer().trace(module))
    except (TraceError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return None, str(error).splitlines()[0]
    linear = None
    for node in graph.graph.nodes:
        if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
            node.target = str(node.target)[:-1]
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Linear):
            linear = node
    output = graph.graph.output_node()
    if not isinstance(output.args[0], fx.Node):
        return None, "the network returns more than one tensor"
    output.args = ((output.args[0], output.args[0] if linear is None else linear.args[0]),)
    return graph, ""
