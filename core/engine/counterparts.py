"""What each layer of a changed network should equal in the original: its own output, or the sum that it goes into.

A factor that carries a split layer's name (`a.conv.1`, the last in `a.conv`) answers for the whole of `a.conv`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Unit:
    """A layer of the changed network with the BatchNorm behind it."""

    name: str
    layer: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    node: fx.Node
    goal: fx.Node  # of the original
    other: fx.Node | None  # what the output is added to before it should equal the goal


def find_units(changed: nn.Module, graph: fx.Graph, original: nn.Module, reference: fx.Graph) -> dict[fx.Node, Unit]:
    """The convolutions and linear layers that run once and have a counterpart, by their node, in order of execution."""
    modules, known = dict(changed.named_modules()), dict(original.named_modules())
    goals = {str(node.target): node for node in reference.nodes if node.op == "call_module"}
    sums = {name: total for name, node in goals.items() if (total := _sum_of(node)) is not None}
    runs = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    units: dict[fx.Node, Unit] = {}
    for node in graph.nodes:
        name = str(node.target)
        layer = modules[name] if node.op == "call_module" and runs.count(name) == 1 else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or "weight" in layer._buffers:
            continue
        output, norm, twin = node, None, _twin(name, modules, known)
        after = _only_user(node)
        found = modules[str(after.target)] if after is not None and after.op == "call_module" else None
        if after is not None and isinstance(found, nn.BatchNorm1d | nn.BatchNorm2d) and found.running_var is not None:
            output, norm, twin = after, found, str(after.target)
        total = _only_user(output)
        other = _other_summand(total, output)
        taken = {unit.goal for unit in units.values()}
        if other is not None and twin in sums and sums[twin] not in taken:
            goal = sums[twin]
        elif twin in goals:
            goal, other = goals[twin], None
        else:
            continue
        units[node] = Unit(name, layer, norm, node, goal, other)
    return units


def touched_nodes(changed: nn.Module, graph: fx.Graph, original: nn.Module, reference: fx.Graph) -> set[fx.Node]:
    """The operators whose weights differ from the original's or that follow a module that is gone, and all that follow
    from them."""
    before = original.state_dict()
    differs = [
        key
        for key, value in changed.state_dict().items()
        if key not in before or before[key].shape != value.shape or not torch.equal(before[key], value)
    ]
    behind = _behind_gap(graph, reference)
    touched: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op in ("call_module", "get_attr") and any(f"{key}.".startswith(f"{node.target}.") for key in differs)
        if own or str(node.target) in behind or any(source in touched for source in node.all_input_nodes):
            touched.add(node)
    return touched


def _behind_gap(graph: fx.Graph, reference: fx.Graph) -> set[str]:
    """The modules that the original runs after the first of those that are no longer run."""
    still = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    order = [str(node.target) for node in reference.nodes if node.op == "call_module"]
    first = next((n for n, name in enumerate(order) if name not in still), len(order))
    return set(order[first:])


def _twin(name: str, modules: Mapping[str, nn.Module], known: Mapping[str, nn.Module]) -> str:
    """The layer of the original that this one stands for; "" when there is none."""
    if name in known:
        return name
    parent = name.rpartition(".")[0]
    if isinstance(known.get(parent), nn.Conv2d | nn.Linear) and list(modules[parent].children())[-1] is modules[name]:
        return parent
    return ""


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _sum_of(output: fx.Node) -> fx.Node | None:
    """The sum of two that is all that `output` is used for."""
    total = _only_user(output)
    return None if _other_summand(total, output) is None else total


def _other_summand(total: fx.Node | None, output: fx.Node) -> fx.Node | None:
    if total is None or total.target not in SUMS or total.kwargs or len(total.all_input_nodes) != 2:
        return None
    return next(node for node in total.all_input_nodes if node is not output)
