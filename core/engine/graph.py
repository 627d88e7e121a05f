"""Which channels can only be removed together, and which cannot be removed at all, with the reason.

DepGraph: Towards Any Structural Pruning, Fang et al. 2023. Coupling is read off the graph of `dependency.py`, layer by
layer in order of execution, into the plain records of `core/layers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from core.engine.branches import with_branches
from core.engine.dependency import Dependency, build_dependency
from core.engine.surgery import Call, calls, copy_model, evaluating, kind_of, remove_channels
from core.layers import Feed, Group

SOURCES = ("conv", "conv_transpose", "linear", "shortcut")  # kinds that make new channels
FROM_INPUT = "These are the channels of the model's input."


@dataclass(frozen=True)
class Structure:
    """What `trace` found. `dependency` is torch-pruning's graph of the same module, None where it failed."""

    groups: tuple[Group, ...]
    group_of: dict[str, str]  # layer → its output group; "" where several are joined
    inputs: dict[str, tuple[Feed, ...]]  # layer → where its input channels come from; adds up to their number
    dependency: Any = field(default=None, repr=False)

    @property
    def open(self) -> tuple[Group, ...]:
        """The groups whose channels can be removed."""
        return tuple(group for group in self.groups if not group.blocked)


def channel_groups(module: nn.Module, example: Tensor) -> tuple[Group, ...]:
    """Every channel group of `module`, in order of execution. `example` (n, c, h, w) is any input."""
    return trace(module, example).groups


def trace(module: nn.Module, example: Tensor) -> Structure:
    """Groups and feeds of every layer. Never fails: what cannot be followed is blocked, with the reason."""
    pair = torch.zeros(2, *example.shape[1:], dtype=example.dtype)
    found = _read(module, pair)
    broken = _broken(module, pair, found)
    groups = tuple(replace(g, blocked=broken.get(g.name, g.blocked)) for g in found.groups)
    return replace(found, groups=with_branches(module, groups))


def _read(module: nn.Module, example: Tensor) -> Structure:
    try:
        return _Reader(calls(module, example), build_dependency(module, example)).read()
    except Exception as error:  # torch-pruning raises whatever its recursion meets; the network stays usable
        rows = calls(module, example[:1])
        return _blocked(rows, f"torch-pruning cannot follow this network ({type(error).__name__}: {error}).")


def _broken(module: nn.Module, example: Tensor, found: Structure) -> dict[str, str]:
    """Groups that cannot be cut after all, found by cutting one channel of each in a copy and running it."""

    def fault(names: list[str]) -> str:
        twin = copy_model(module)
        with torch.no_grad(), evaluating(twin):
            shape = twin(example).shape
            dependency = build_dependency(twin, example)
            try:
                for name in names:
                    remove_channels(dependency, twin.get_submodule(name), [0])
                changed = twin(example).shape != shape
            except Exception as error:  # any of torch's or torch-pruning's; the sentence says which
                return f"Removing one of its channels breaks the network ({str(error).splitlines()[0]})."
        return "Removing one of its channels changes the shape of the answer." if changed else ""

    names = [group.name for group in found.open if group.channels > 1]
    if not names or not fault(names):
        return {}
    return {name: why for name in names if (why := fault([name]))}


class _Reader:
    """Reads groups and feeds off a dependency graph, layer by layer in order of execution."""

    def __init__(self, rows: tuple[Call, ...], dependency: Dependency) -> None:
        self.rows, self.graph = rows, dependency
        self.row_of = {row.layer: row for row in rows}
        self.groups: dict[str, Group] = {}
        self.group_of: dict[str, str] = {}
        self.parts: dict[str, list[tuple[int, Feed]]] = {row.path: [] for row in rows}  # with the first channel's index

    def read(self) -> Structure:
        for row in sorted(self.rows, key=lambda r: kind_of(r.layer) == "shortcut"):  # no group is named after one
            unfed = kind_of(row.layer) in ("depthwise", "norm") and not self.parts[row.path]
            if unfed or (_is_source(row) and row.path not in self.group_of):
                self._add_group(row)
        for row in self.rows:
            self._add_fixed_inputs(row)
        order = {row.path: n for n, row in enumerate(self.rows)}
        groups = sorted(self.groups.values(), key=lambda g: order.get(g.name, -1))
        inputs = {path: tuple(feed for _, feed in sorted(p, key=lambda x: x[0])) for path, p in self.parts.items()}
        for row in self.rows:  # a norm or depthwise layer belongs to the one group that feeds it
            feeds = inputs[row.path]
            alone = feeds[0].group if len(feeds) == 1 and feeds[0].repeat == 1 else ""
            self.group_of.setdefault(row.path, alone)
        members = {g.name: tuple(r.path for r in self.rows if _makes(r, g, self.group_of)) for g in groups}
        return Structure(tuple(replace(g, layers=members[g.name]) for g in groups), self.group_of, inputs, self.graph)

    def _add_group(self, root: Call) -> None:
        channels = width_of(root.layer)
        items, why = self._items(root.layer, channels)
        self.groups[root.path] = Group(root.path, channels, (root.path,))
        self.group_of[root.path] = root.path
        for node, consumes, own, of_root in items:
            row = self.row_of.get(node.module)
            whole = own == list(range(channels)) == of_root
            if row is None:
                pass
            elif consumes or not _is_source(row):
                if len(own) % channels == 0 and width_of(row.layer) > 1:  # one slope for all channels has no width
                    self.parts[row.path].append((min(own), Feed(root.path, len(own) // channels)))
            elif whole and width_of(row.layer) == channels:
                self.group_of[row.path] = root.path
            else:
                why = why or f"Its channels are only partly coupled to those of {row.path}."
            why = why or self._why(node, consumes, row)
        self.groups[root.path] = replace(self.groups[root.path], blocked=why)

    def _items(self, layer: nn.Module, channels: int) -> tuple[list[tuple[Any, bool, list[int], list[int]]], str]:
        """(node, whether it consumes the channels, its indices, the root's indices) for all that is coupled."""
        if layer not in self.graph.module2node:
            return [], "It does not contribute to the model's answer."
        pruner = self.graph.get_pruner_of_module(layer)
        group = self.graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(channels)))
        inward = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
        rows = []
        for item in group:
            pairs = sorted(zip(item.idxs, item.root_idxs, strict=True))
            consumes = item.dep.handler in inward
            rows.append((item.dep.target, consumes, [a for a, _ in pairs], [b for _, b in pairs]))
        return rows, ""

    def _why(self, node: Any, consumes: bool, row: Call | None) -> str:
        """Why a member of a group keeps the whole group as it is; "" when it does not."""
        layer = node.module
        if row is not None and row.times > 1:
            return f"{row.path} is run {row.times} times, so its channels have several neighbours."
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1 and kind_of(layer) != "depthwise":
            return f"{row.path if row else 'It'} is a grouped convolution ({layer.groups} groups of equal size)."
        if row is not None and not isinstance(
            layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.modules.batchnorm._BatchNorm | nn.PReLU
        ):
            return f"Its channels pass through {type(layer).__name__} ({row.path}), which mixes them."
        if consumes:
            return ""
        if row is not None and _is_source(row):  # what flows into it does not matter to what flows out
            return self.graph.above.get(node, "")
        return self.graph.above.get(node) or self.graph.below.get(node, "" if node.inputs else FROM_INPUT)

    def _add_fixed_inputs(self, row: Call) -> None:
        """Channels that no group accounts for come from the image or through an operator that fixes them."""
        missing = inputs_of(row) - sum(self.groups[f.group].channels * f.repeat for _, f in self.parts[row.path])
        if missing < 0:  # groups that overlap without being the same one
            for _, feed in self.parts[row.path]:
                why = f"Its channels are only partly coupled to others that {row.path} takes."
                self.groups[feed.group] = replace(self.groups[feed.group], blocked=why)
            self.parts[row.path], missing = [], inputs_of(row)
        if missing == 0:
            return
        why = self._fixed_by(row.layer)
        name = f"{row.path}.fixed" if why else "input"
        if name == "input" and self.groups.get(name, Group("", missing, ())).channels != missing:
            name = f"{row.path}.input"  # a flattened image has other channels than the image
        self.groups[name] = Group(name, missing, (), why or FROM_INPUT)
        self.parts[row.path].append((-1, Feed(name)))

    def _fixed_by(self, layer: nn.Module) -> str:
        stack, seen = [self.graph.module2node[layer]] if layer in self.graph.module2node else [], set()
        while stack:
            node = stack.pop()
            if node in self.graph.below:
                return self.graph.below[node]
            seen.add(node)
            stack += [n for n in node.inputs if n not in seen]
        return ""


def width_of(layer: nn.Module) -> int:
    """Output channels of a layer."""
    for name in ("out_channels", "out_features", "num_features", "num_channels", "num_parameters"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    return 0


def _is_source(row: Call) -> bool:
    """Whether a layer makes new channels, rather than passing on what it gets."""
    return kind_of(row.layer) in SOURCES


def inputs_of(row: Call) -> int:
    """Input channels that follow from other layers; 0 for a layer whose width nothing decides."""
    if kind_of(row.layer) in ("conv", "conv_transpose", "shortcut"):
        return int(row.layer.in_channels)  # type: ignore[arg-type]
    if isinstance(row.layer, nn.Linear):
        return row.layer.in_features
    return width_of(row.layer) if width_of(row.layer) > 1 else 0


def _makes(row: Call, group: Group, group_of: dict[str, str]) -> bool:
    return group_of[row.path] == group.name and kind_of(row.layer) not in ("norm", "other")


def _blocked(rows: tuple[Call, ...], why: str) -> Structure:
    """Every layer its own blocked group, its inputs one fixed source."""
    makers = [row for row in rows if kind_of(row.layer) in ("depthwise", *SOURCES)]
    groups = [Group(row.path, width_of(row.layer), (row.path,), why) for row in makers]
    sources = [Group(f"{row.path}.fixed", inputs_of(row), (), why) for row in rows if inputs_of(row)]
    group_of = {row.path: row.path if row in makers else "" for row in rows}
    inputs = {row.path: tuple(Feed(s.name) for s in sources if s.name == f"{row.path}.fixed") for row in rows}
    return Structure((*sources, *groups), group_of, inputs)
