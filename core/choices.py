"""The choices that a budget is spent on: each group's width and each layer's rank and bits, with what they cost.

Costs are exact for any one plan. Between plans they are products (a layer's MACs are its input width times its output
width), so options are priced around the current plan, the knapsack is solved, and prices are taken anew until the plan
stands: exact at once where no two open groups meet in one layer. Elsewhere it starts from several plans and then moves
the few groups that meet many others, one level at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
ROUNDS = 6  # of pricing
EVEN = (0.25, 0.5, 0.75)  # shares of the levels from which pricing starts as well, where groups meet
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
    known: dict[tuple[object, ...], Costs] = field(
        default_factory=dict, repr=False, compare=False
    )  # layer, as it is → costs

    def cost_of(self, plan: Plan) -> Costs:
        """The whole model's (MACs, bytes of weights, latency in ms) under a plan."""
        rows = np.array([self._layer(layer, plan) for layer in self.profile.weighing])
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
        ceiling = tuple(budgets.get(kind, np.inf) for kind in KINDS)
        best = self._cheapest(ceiling)
        hubs = self._hubs() if len(budgets) == 1 else []  # HiGHS is too slow to be asked that often
        for start in (self.locked, *[self._even(share) for share in EVEN if hubs]):
            best = self._settle(start, ceiling, best)
        for hub in hubs:
            levels = self._options(*hub)
            at = levels.index(best.levels[hub])
            for level in (*levels[max(0, at - 1) : at], *levels[at + 1 : at + 2]):
                held = replace(self, locked={**self.locked, hub: level})
                best = held._settle({**best.levels, hub: level}, ceiling, best)
        return best

    def _settle(self, plan: Plan, ceiling: Costs, best: Allocation) -> Allocation:
        """Solve, price around the solution, solve again, until it gets no better; `best` where nothing beats it."""
        for _ in range(ROUNDS):
            items = self.items(plan)
            floor = self._floor(items, plan)
            rooms = [None if np.isinf(c) else self._raw(k, c) - floor[k] for k, c in enumerate(ceiling)]
            try:
                plan = allocate(items, rooms).levels
            except StudioError:  # priced around this plan nothing fits, which says nothing about others
                return best
            found = Allocation(plan, self.loss_of(plan), self.cost_of(plan))
            if _within(found.costs, ceiling):
                if found.loss >= best.loss * (1 - 1e-9):
                    return best
                best = found
        return best

    def _cheapest(self, ceiling: Costs) -> Allocation:
        """Every item at its smallest cost. Raises StudioError when even that exceeds a budget."""
        items = self.items(self.locked)
        kinds = [k for k, c in enumerate(ceiling) if np.isfinite(c)] or [0]
        unit = np.maximum(np.array(self.cost_of({})), 1e-30)
        relative = [(np.array(x.costs) / unit)[:, kinds].sum(1) for x in items]
        plan = {(x.name, x.technique): x.levels[int(c.argmin())] for x, c in zip(items, relative, strict=True)}
        costs = self.cost_of(plan)
        for k in kinds:
            if costs[k] > ceiling[k] * (1 + 1e-9):
                raise StudioError(
                    f"The budget {ceiling[k]:g} of {KINDS[k]} is out of reach: the smallest plan needs {costs[k]:g}."
                )
        return Allocation(plan, self.loss_of(plan), costs)

    def _even(self, share: float) -> Plan:
        """Every option near the same share removed: a start for the pricing."""
        rows = self.items(self.locked)
        levels = {(x.name, x.technique): x.levels[round(share * (len(x.levels) - 1))] for x in rows}
        return {**levels, **self.locked}

    def _hubs(self) -> list[Key]:
        """Groups that meet others in a layer, fewest that cover all such meetings: held, the rest is exact."""
        key = "prune_channels"
        rows = [row for row in self.table.curves if row[1] == key and row not in self.locked]
        open_groups = {row[0] for row in rows if len(self._options(*row)) > 1}
        pairs = {
            frozenset((feed.group, layer.group))
            for layer in self.profile.tunable
            for feed in layer.inputs
            if feed.group != layer.group and {feed.group, layer.group} <= open_groups
        }
        hubs = []
        while pairs:
            hub = max(sorted({n for pair in pairs for n in pair}), key=lambda n: sum(n in pair for pair in pairs))
            hubs.append((hub, key))
            pairs = {pair for pair in pairs if hub not in pair}
        return hubs

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
        current = np.array([self._layer(layer, plan) for layer in self.profile.weighing]).sum(0)
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
        return [x for x in self.profile.weighing if x.group == name or any(f.group == name for f in x.inputs)]

    def _sum(self, layers: Sequence[Layer], plan: Plan) -> Costs:
        return tuple(map(sum, zip(*(self._layer(layer, plan) for layer in layers), strict=True)))

    def _width(self, group: str, plan: Plan) -> int:
        channels = self.profile.group(group).channels
        return round(channels * (1 - plan.get((group, "prune_channels"), 0.0)))

    def _layer(self, layer: Layer, plan: Plan) -> Costs:
        """(MACs, bytes, operator ms) of one layer: weights at their bits, biases as 32-bit numbers."""
        into = sum(self._width(f.group, plan) * f.repeat for f in layer.inputs) or layer.in_channels
        out = self._width(layer.group, plan) if layer.group else layer.out_channels
        rank, bits = plan.get((layer.name, "factorize"), 1.0), plan.get((layer.name, "quantize"), 32.0)
        key = (layer.name, into, out, rank, bits)
        if key not in self.known:
            shortcut = layer.kind == "shortcut"
            self.known[key] = (
                self._shortcut(layer, into, out) if shortcut else self._sized(layer, into, out, rank, bits)
            )
        return self.known[key]

    def _sized(self, layer: Layer, into: int, out: int, rank: float, bits: float) -> Costs:
        whole = shape_of(layer, into, out)
        split = rank < 1 and not refusal(whole, "spatial_svd", rank)
        parts: tuple[Shape, ...] = factors(whole, "spatial_svd", rank) if split else (whole,)
        biases = sum(p.bias * p.out_channels for p in parts)
        scales = out if bits < 32 else 0
        size = (sum(p.params for p in parts) - biases) * bits / 8 + 4 * (biases + scales)
        time = sum(self.latency.operator(p, bits) for p in parts) if self.latency else 0.0
        return float(sum(p.macs for p in parts)), size, time

    def _shortcut(self, layer: Layer, into: int, out: int) -> Costs:
        """Free as a copy; a 1×1 convolution once it is cut."""
        if (into, out) == (layer.in_channels, layer.out_channels):
            return 0.0, 0.0, 0.0
        sizes = layer.input_shape[-2:], layer.output_shape[-2:]
        shape = Shape("conv", into, out, (1, 1), 1, *sizes)  # type: ignore[arg-type]
        return float(shape.macs), 4.0 * shape.params, self.latency.operator(shape) if self.latency else 0.0


def _within(costs: Costs, ceiling: Costs) -> bool:
    return all(cost <= c * (1 + 1e-9) for cost, c in zip(costs, ceiling, strict=True))


def plan_rows(plan: Plan) -> list[list[object]]:
    """A plan as JSON: its settings that change something."""
    return [[*key, level] for key, level in sorted(plan.items()) if level != CATALOG[key[1]].neutral]


def key_levels(rows: Sequence[Sequence[object]]) -> dict[Key, float]:
    """`plan_rows` back as a plan."""
    return {(str(layer), str(technique)): float(str(level)) for layer, technique, level in rows}
