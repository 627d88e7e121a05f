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
    goals = {_key(node): node for node in reference.nodes}
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
        if other is not None and total is not None and total.name in goals and goals[total.name] not in taken:
            goal = goals[total.name]
        elif twin in goals:
            goal, other = goals[twin], None
        else:
            continue
        units[node] = Unit(name, layer, norm, node, goal, other)
    return units


def touched_nodes(changed: nn.Module, graph: fx.Graph, original: nn.Module) -> set[fx.Node]:
    """The operators whose weights differ from the original's, and all that follow from them."""
    before = original.state_dict()
    differs = [
        key
        for key, value in changed.state_dict().items()
        if key not in before or before[key].shape != value.shape or not torch.equal(before[key], value)
    ]
    touched: set[fx.Node] = set()
    for node in graph.nodes:
        own = node.op in ("call_module", "get_attr") and any(f"{key}.".startswith(f"{node.target}.") for key in differs)
        if own or any(source in touched for source in node.all_input_nodes):
            touched.add(node)
    return touched


def _key(node: fx.Node) -> str:
    """What an operator is called in both networks."""
    return str(node.target) if node.op == "call_module" else node.name


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


def _other_summand(total: fx.Node | None, output: fx.Node) -> fx.Node | None:
    if total is None or total.target not in SUMS or total.kwargs or len(total.all_input_nodes) != 2:
        return None
    return next(node for node in total.all_input_nodes if node is not output)
