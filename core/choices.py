"""The choices that a budget is spent on: each group's width and each layer's rank and bits, with what they cost.

Costs are exact for any one plan. Between plans they are products (a layer's MACs are its input width times its output
width), so options are priced around the current plan, the knapsack is solved, and prices are taken anew until the plan
stands: exact at once where no two open groups meet in one layer, a fixed point elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.allocate import Allocation, Item, allocate, front
from core.catalog import CATALOG
from core.errors import StudioError
from core.latency_table import LatencyTable
from core.layers import Layer, Profile, kept_channels
from core.predict import shape_of
from core.ranks import Shape, factors, refusal
from core.sensitivity_table import Key, Plan, SensitivityTable

KINDS = ("macs", "weight_bytes", "latency_ms")  # what a budget can limit
ROUNDS = 6  # of pricing; a plan that still overshoots then is cut by its overshoot
Costs = tuple[float, ...]


@dataclass(frozen=True)
class Choices:
    """A profile, its table and the levels each technique may use; `plan` holds what is locked."""

    profile: Profile
    table: SensitivityTable
    levels: Mapping[str, Sequence[float]]  # technique → levels beside its neutral one
    locked: Plan = field(default_factory=dict)
    latency: LatencyTable | None = None
    multiple: int = 1  # widths are rounded to it

    def cost_of(self, plan: Plan) -> Costs:
        """The whole model's (MACs, bytes of weights, latency in ms) under a plan."""
        rows = np.array([self._layer(layer, plan) for layer in self.profile.tunable])
        total = rows.sum(0)
        if self.latency:
            total[2] = self.latency.whole(total[2])
        return tuple(total.tolist())

    def loss_of(self, plan: Plan) -> float:
        """Summed KL in nats of a plan whose settings are all in the table."""
        return float(sum(self.table.kl(*key, level) or 0.0 for key, level in plan.items()))

    def items(self, plan: Plan) -> list[Item]:
        """One item per group or layer and technique; costs are the changes against `plan`, each at least 0."""
        found = []
        for name, technique in self.table.curves:
            levels = self._options(name, technique)
            if len(levels) < 2 and (name, technique) not in self.locked:
                continue
            touched = self._touched(name, technique)
            costs = np.array([self._sum(touched, {**plan, (name, technique): level}) for level in levels])
            losses = tuple(self.table.kl(name, technique, level) or 0.0 for level in levels)
            found.append(Item(name, technique, levels, losses, tuple(map(tuple, (costs - costs.min(0)).tolist()))))
        return found

    def spend(self, budgets: Mapping[str, float]) -> Allocation:
        """The plan of smallest summed KL whose exact costs keep within `budgets`. Raises StudioError if none does."""
        ceiling = [budgets.get(kind) for kind in KINDS]
        plan: Plan = dict(self.locked)
        best, aims = None, list(ceiling)
        for _ in range(ROUNDS):
            items = self.items(plan)
            base = self._floor(items, plan)
            rooms = [None if aim is None else self._raw(k, aim) - base[k] for k, aim in enumerate(aims)]
            plan = allocate(items, rooms).levels
            costs = self.cost_of(plan)
            over = [1.0 if c is None else cost / c for cost, c in zip(costs, ceiling, strict=True)]
            if max(over) <= 1 + 1e-9:
                found = Allocation(plan, self.loss_of(plan), costs)
                if best is not None and found.loss >= best.loss * (1 - 1e-9):
                    break
                best = found
            else:
                aims = [None if a is None else a / max(1.0, o) for a, o in zip(aims, over, strict=True)]
        if best is None:
            raise StudioError("No plan was found within the budgets; raise one of them or unlock a layer.")
        return best

    def front(self, kind: str, count: int = 64) -> list[Allocation]:
        """Plans of falling KL and rising exact cost, all from one solve."""
        k = KINDS.index(kind)
        plans = [a.levels for a in front(self.items(self.locked), k, count=count)]
        found, lowest = [], np.inf
        for plan in sorted((Allocation(p, self.loss_of(p), self.cost_of(p)) for p in plans), key=lambda a: a.costs[k]):
            if plan.loss < lowest:
                found.append(plan)
                lowest = plan.loss
        return found

    def _floor(self, items: Sequence[Item], plan: Plan) -> Costs:
        """What the model costs with every item at its cheapest, as priced around `plan`."""
        current = np.array([self._layer(layer, plan) for layer in self.profile.tunable]).sum(0)
        for x in items:
            level = plan.get((x.name, x.technique), float(CATALOG[x.technique].neutral))
            current = current - np.array(x.costs[x.levels.index(level)])
        return tuple(current.tolist())

    def _raw(self, kind: int, budget: float) -> float:
        """A budget for latency as a budget for the sum of operator times."""
        return self.latency.operators(budget) if kind == 2 and self.latency else budget

    def _options(self, name: str, technique: str) -> tuple[float, ...]:
        if (name, technique) in self.locked:
            return (self.locked[name, technique],)
        neutral, wanted = float(CATALOG[technique].neutral), self.levels.get(technique, ())
        if technique != "prune_channels":
            return (neutral, *[float(x) for x in wanted if x != neutral and self._allowed(name, technique, x)])
        channels = self.profile.group(name).channels
        kept = {kept_channels(channels, ratio, self.multiple) for ratio in wanted} - {channels}
        return (neutral, *[1 - k / channels for k in sorted(kept, reverse=True)])

    def _allowed(self, name: str, technique: str, level: float) -> bool:
        if technique != "factorize":
            return True
        layer = self.profile.layer(name)
        return not refusal(shape_of(layer, layer.in_channels, layer.out_channels), "spatial_svd", level)

    def _touched(self, name: str, technique: str) -> list[Layer]:
        if technique != "prune_channels":
            return [self.profile.layer(name)]
        return [x for x in self.profile.tunable if x.group == name or any(f.group == name for f in x.inputs)]

    def _sum(self, layers: Sequence[Layer], plan: Plan) -> Costs:
        return tuple(np.array([self._layer(layer, plan) for layer in layers]).sum(0).tolist())

    def _width(self, group: str, plan: Plan) -> int:
        channels = self.profile.group(group).channels
        return round(channels * (1 - plan.get((group, "prune_channels"), 0.0)))

    def _layer(self, layer: Layer, plan: Plan) -> Costs:
        """(MACs, bytes, operator ms) of one layer: weights at their bits, biases as 32-bit numbers."""
        into = sum(self._width(f.group, plan) * f.repeat for f in layer.inputs) or layer.in_channels
        out = self._width(layer.group, plan) if layer.group else layer.out_channels
        whole = shape_of(layer, into, out)
        rank = plan.get((layer.name, "factorize"), 1.0)
        split = rank < 1 and not refusal(whole, "spatial_svd", rank)
        parts: tuple[Shape, ...] = factors(whole, "spatial_svd", rank) if split else (whole,)
        bits = plan.get((layer.name, "quantize"), 32.0)
        biases = sum(p.bias * p.out_channels for p in parts)
        scales = out if bits < 32 else 0
        size = (sum(p.params for p in parts) - biases) * bits / 8 + 4 * (biases + scales)
        time = sum(self.latency.operator(p, bits) for p in parts) if self.latency else 0.0
        return float(sum(p.macs for p in parts)), size, time


def plan_rows(plan: Plan) -> list[list[object]]:
    """A plan as JSON: its settings that change something."""
    return [[*key, level] for key, level in sorted(plan.items()) if level != CATALOG[key[1]].neutral]


def key_levels(rows: Sequence[Sequence[object]]) -> dict[Key, float]:
    """`plan_rows` back as a plan."""
    return {(str(layer), str(technique)): float(str(level)) for layer, technique, level in rows}
