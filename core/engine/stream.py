"""A network run operator by operator over all images at once, so that one can look and change weights on the way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from core.errors import ModelError

IN_PLACE = (operator.iadd, operator.imul, operator.isub)


def trace(module: nn.Module) -> fx.Graph:
    """The module's operators in order of execution. Raises ModelError where its code depends on the images."""
    try:
        return fx.Tracer().trace(module)
    except (TraceError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"The network cannot be traced: {str(error).splitlines()[0]}") from error


class Stream:
    """Values of `module`'s operators for every batch, computed on demand and dropped after their last use.

    `holds` are read from outside, once each: `take` gives the value and lets go. `before(node)` is called when all that
    `node` reads is there, just before it runs; it may change weights and compute other nodes.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        batches: list[Tensor],
        holds: Iterable[fx.Node] = (),
        before: Callable[[fx.Node], None] = lambda _: None,
    ) -> None:
        self.module, self.batches, self.before = module, batches, before
        self.runner = fx.Interpreter(module, graph=graph)
        self.known: dict[fx.Node, list[Any]] = {}
        self.done: set[fx.Node] = set()
        self.uses = {node: len(node.users) for node in graph.nodes}
        for node in holds:
            self.uses[node] += 1

    def compute(self, node: fx.Node) -> list[Any]:
        """The value of `node` for every batch, after whatever it needs."""
        if node not in self.done:
            for source in node.all_input_nodes:
                self.compute(source)
            self.before(node)
            self.known[node] = [self._run(node, batch) for batch in range(len(self.batches))]
            self.done.add(node)
            for source in node.all_input_nodes:
                self._let_go(source)
        return self.known[node]

    def run(self) -> None:
        """Compute what was not asked for yet, in order."""
        for node in self.uses:
            if node not in self.done:
                self.compute(node)

    def take(self, node: fx.Node) -> list[Any]:
        value = self.compute(node)
        self._let_go(node)
        return value

    @property
    def nbytes(self) -> int:
        """Memory of the values that are still needed."""
        return sum(v.nbytes for values in self.known.values() for v in values if isinstance(v, Tensor))

    def _let_go(self, node: fx.Node) -> None:
        self.uses[node] -= 1
        if not self.uses[node]:
            del self.known[node]

    def _run(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            return self.batches[batch]
        args: Any = fx.node.map_arg(node.args, lambda source: self.known[source][batch])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda source: self.known[source][batch])
        if self._overwrites(node):  # values are read again later
            args = (args[0].clone(), *args[1:])
        return getattr(self.runner, node.op)(node.target, args, kwargs)

    def _overwrites(self, node: fx.Node) -> bool:
        """Whether an operator writes its result into its first input."""
        if node.op == "call_module":
            return bool(getattr(self.module.get_submodule(str(node.target)), "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_") and not str(node.target).endswith("__")
        return node.target in IN_PLACE or bool(node.kwargs.get("inplace"))
