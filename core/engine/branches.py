"""Residual branches: which of them a channel group empties once it is gone, and taking them out of the network.

A block y = x + f(x) whose branch f has no channels left is y = x. Its layers, its sum and the activation behind it
disappear, so such a network is not only smaller but shorter, which is what small layers cost time by. Depth pruning:
Shallowing Deep Networks, Chen and Zhao 2018; Revisiting Residual Networks, Veit et al. 2016 on why it loses so little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from core.engine.counterparts import SUMS
from core.engine.stream import trace
from core.errors import ModelError
from core.layers import Group

UNTRACED = (
    "No residual branch can disappear: the network's code depends on its images, so that its sums cannot be followed."
)
RELUS = (torch.relu, F.relu, "relu", "relu_")


@dataclass(frozen=True)
class Branch:
    """The summand `tail` of `total` with all that only it needs; `skip` is the other summand."""

    total: fx.Node
    skip: fx.Node
    tail: fx.Node
    nodes: frozenset[fx.Node]

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the modules in it, in order of execution."""
        return tuple(str(node.target) for node in self.total.graph.nodes if node in self.nodes and _is_module(node))

    def runs_without(self, layers: Iterable[str]) -> bool:
        """Whether its input still reaches its end when these layers give nothing."""
        stack = [self.tail]
        while stack:
            node = stack.pop()
            if node not in self.nodes:
                return True
            if not (_is_module(node) and str(node.target) in layers):
                stack += node.all_input_nodes
        return False


def branches(graph: fx.Graph) -> list[Branch]:
    """Every summand that can be left out of its sum, those with the fewest operators first."""
    found = []
    for total in graph.nodes:
        pair = total.all_input_nodes
        if total.target in SUMS and not total.kwargs and len(pair) == 2:
            for tail, skip in (pair, pair[::-1]):
                nodes = _needed_only(tail, total)
                if nodes and skip not in nodes:
                    found.append(Branch(total, skip, tail, nodes))
    return sorted(found, key=lambda branch: len(branch.nodes))


def _needed_only(tail: fx.Node, total: fx.Node) -> frozenset[fx.Node]:
    """The operators whose every use ends in `tail`, which itself is used by `total` alone."""
    gone: set[fx.Node] = set()
    for node in reversed(list(tail.graph.nodes)):
        users = set(node.users)
        if node.op != "placeholder" and (users == {total} if node is tail else users and users <= gone):
            gone.add(node)
    return frozenset(gone)


def with_branches(module: nn.Module, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups, each with the layers that disappear once it is empty, or why that is not known."""
    try:
        found = branches(trace(module))
    except ModelError:
        return tuple(g if g.blocked else replace(g, untraced=UNTRACED) for g in groups)
    return tuple(replace(g, branch=b.layers) if (b := _of_group(found, g)) else g for g in groups)


def _of_group(found: list[Branch], group: Group) -> Branch | None:
    """The smallest branch that nothing passes once the group is empty."""
    if group.blocked or not group.layers:
        return None
    inside = (b for b in found if set(group.layers) <= set(b.layers) and not b.runs_without(group.layers))
    return next(inside, None)


def remove_branches(module: nn.Module, groups: Iterable[Group]) -> nn.Module:
    """The network without the branches that these groups empty; layers that stay keep their paths and weights.

    `module` is not to be used afterwards. Raises ModelError where it cannot be traced.
    """
    graph = trace(module)
    for group in groups:
        branch = _of_group(branches(graph), group)
        if branch is not None:  # it may have gone with another group's
            _bypass(branch, dict(module.named_modules()))
    shorter = fx.GraphModule(module, graph)
    shorter.delete_all_unused_submodules()
    return shorter


def _bypass(branch: Branch, modules: Mapping[str, nn.Module]) -> None:
    """Let the skip stand for the sum, and for the activation behind it where that would change nothing."""
    users = list(branch.total.users)
    if len(users) == 1 and _is_relu(users[0], modules) and _is_relu(branch.skip, modules):
        users[0].replace_all_uses_with(branch.skip)
    branch.total.replace_all_uses_with(branch.skip)
    graph = branch.total.graph
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(modules[str(node.target)], nn.ReLU) if _is_module(node) else node.target in RELUS


def _is_module(node: fx.Node) -> bool:
    return node.op == "call_module"
