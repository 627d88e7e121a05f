"""The choices that a budget is spent on: each group's width and each layer's rank and bits, with what they cost.

Costs are exact for any one plan. Between plans they are products (a layer's MACs are its input width times its output
width), so options are priced around the current plan, the knapsack is solved, and prices are taken anew until the plan
stands: exact at once where no two open groups meet in one layer. Elsewhere the few groups that meet many others
are then moved one level at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from core.allocate import Allocation, Item, allocate, front
from core.catalog import CATALOG
from core.errors import StudioError
from core.latency_table import LatencyTable
from core.layer_price import Costs, price
from core.layers import Layer, Profile, kept_channels
from core.meetings import hubs, neighbours, touched
from core.predict import shape_of
from core.ranks import refusal
from core.sensitivity_table import Key, Plan, SensitivityTable

KINDS = ("macs", "weight_bytes", "latency_ms")  # what a budget can limit
ROUNDS = 6  # of pricing
MOST = 20_000  # priced items that are remembered


@dataclass
class _Known:
    """What one solution asks for again and again."""

    costs: dict[tuple[str, int, int, float, float, bool], Costs] = field(default_factory=dict)
    priced: dict[tuple[object, ...], Item] = field(default_factory=dict)
    neighbours: dict[Key, tuple[Key, ...]] = field(default_factory=dict)  # settings that a setting's costs depend on
    touched: dict[Key, list[Layer]] = field(default_factory=dict)
    losses: dict[tuple[str, str, float], float] = field(default_factory=dict)
    options: dict[Key, tuple[float, ...]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)  # group → its width


@dataclass(frozen=True)
class Choices:
    """A profile, its table and the levels each technique may use; `plan` holds what is locked."""

    profile: Profile
    table: SensitivityTable
    levels: Mapping[str, Sequence[float]]  # technique → levels beside its neutral one
    locked: Plan = field(default_factory=dict)
    latency: LatencyTable | None = None
    multiple: int = 1  # widths are rounded to it
    _known: _Known = field(default_factory=lambda: _Known(), repr=False, compare=False)  # shared by `replace`

    def cost_of(self, plan: Plan) -> Costs:
        """The whole model's (MACs, bytes of weights, latency in ms) under a plan."""
        macs, size, time = self._sum(self.profile.weighing, plan)
        return macs, size, self.latency.whole(time) if self.latency else time

    def change(self, plan: Plan, key: Key, level: float) -> Costs:
        """What changes of every cost when one setting of a plan becomes `level`, exactly."""
        layers = self._touched(*key)
        pairs = zip(self._sum(layers, {**plan, key: level}), self._sum(layers, plan), strict=True)
        macs, size, time = (after - before for after, before in pairs)
        return macs, size, time * (self.latency.slope if self.latency else 1.0)

    def loss_of(self, plan: Plan) -> float:
        """Summed KL in nats of a plan whose settings are all in the table."""
        return sum(self.loss(*key, level) for key, level in plan.items())

    def items(self, plan: Plan) -> list[Item]:
        """One item per group or layer and technique; costs are the changes against `plan`, each at least 0."""
        found = []
        for name, technique in self.table.curves:
            levels = self.options(name, technique)
            if len(levels) < 2 and (name, technique) not in self.locked:
                continue
            around = tuple([plan.get(key) for key in self._neighbours(name, technique)])
            key = (name, technique, levels, around, self.latency is None)
            if key not in self._known.priced:
                if len(self._known.priced) >= MOST:
                    self._known.priced.clear()
                self._known.priced[key] = self._item(name, technique, levels, plan)
            found.append(self._known.priced[key])
        return found

    def _item(self, name: str, technique: str, levels: tuple[float, ...], plan: Plan) -> Item:
        touched, tried = self._touched(name, technique), dict(plan)
        rows = []
        for level in levels:
            tried[name, technique] = level
            rows.append(self._sum(touched, tried))
        costs = np.array(rows)
        losses = tuple(self.loss(name, technique, level) for level in levels)
        return Item(name, technique, levels, losses, tuple(map(tuple, (costs - costs.min(0)).tolist())))

    def _neighbours(self, name: str, technique: str) -> tuple[Key, ...]:
        key = (name, technique)
        if key not in self._known.neighbours:
            self._known.neighbours[key] = neighbours(self.profile, self._touched(*key), key)
        return self._known.neighbours[key]

    def spend(self, budgets: Mapping[str, float]) -> Allocation:
        """The plan of smallest summed KL whose exact costs keep within `budgets`. Raises StudioError if none does."""
        if self.latency and "latency_ms" not in budgets:  # operator times are the dearest to look up
            found = replace(self, latency=None).spend(budgets)
            return replace(found, costs=self.cost_of(found.levels))
        ceiling = tuple(budgets.get(kind, np.inf) for kind in KINDS)
        best = self._settle(self.locked, ceiling, self._cheapest(ceiling))
        for hub in self._hubs() if len(budgets) == 1 else []:  # HiGHS is too slow to be asked that often
            levels = self.options(*hub)
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

    def _hubs(self) -> list[Key]:
        key = "prune_channels"
        rows = [row for row in self.table.curves if row[1] == key and row not in self.locked]
        return [(hub, key) for hub in hubs(self.profile, {row[0] for row in rows if len(self.options(*row)) > 1})]

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

    def options(self, name: str, technique: str) -> tuple[float, ...]:
        """The levels that a layer or group may take, neutral first; one where it is locked."""
        key = (name, technique)
        if key in self.locked:
            return (self.locked[key],)
        if key not in self._known.options:
            self._known.options[key] = self._free(name, technique)
        return self._known.options[key]

    def _free(self, name: str, technique: str) -> tuple[float, ...]:
        neutral, wanted = float(CATALOG[technique].neutral), self.levels.get(technique, ())
        if technique == "prune_channels":
            channels = self.profile.group(name).channels
            kept = {kept_channels(channels, ratio, self.multiple) for ratio in wanted} - {channels}
            gone = (1.0,) if self.profile.group(name).branch and wanted else ()
            return (neutral, *[1 - k / channels for k in sorted(kept, reverse=True)], *gone)
        if technique == "factorize":
            layer = self.profile.layer(name)
            shape = shape_of(layer, layer.in_channels, layer.out_channels)
            wanted = [x for x in wanted if not refusal(shape, "spatial_svd", x)]
        return (neutral, *[float(x) for x in wanted if x != neutral])

    def loss(self, name: str, technique: str, level: float) -> float:
        """Nats that one setting costs; 0 where it is not in the table."""
        key = (name, technique, level)
        if key not in self._known.losses:
            self._known.losses[key] = self.table.kl(*key) or 0.0
        return self._known.losses[key]

    def _touched(self, name: str, technique: str) -> list[Layer]:
        key = (name, technique)
        if key not in self._known.touched:
            self._known.touched[key] = touched(self.profile, key)
        return self._known.touched[key]

    def _sum(self, layers: Sequence[Layer], plan: Plan) -> Costs:
        macs = size = time = 0.0
        for layer in layers:
            a, b, c = self._layer(layer, plan)
            macs, size, time = macs + a, size + b, time + c
        return macs, size, time

    def _width(self, group: str, plan: Plan) -> int:
        if not self._known.channels:
            self._known.channels.update((g.name, g.channels) for g in self.profile.groups)
        return round(self._known.channels[group] * (1 - plan.get((group, "prune_channels"), 0.0)))

    def _layer(self, layer: Layer, plan: Plan) -> Costs:
        """(MACs, bytes, operator ms) of one layer: weights at their bits, biases as 32-bit numbers."""
        for end in self.profile.ends.get(layer.name, ()):
            if self._width(end, plan) == 0:
                return 0.0, 0.0, 0.0
        into = 0
        for feed in layer.inputs:
            into += self._width(feed.group, plan) * feed.repeat
        into = into or layer.in_channels
        out = self._width(layer.group, plan) if layer.group else layer.out_channels
        rank, bits = plan.get((layer.name, "factorize"), 1.0), plan.get((layer.name, "quantize"), 32.0)
        key = (layer.name, into, out, rank, bits, self.latency is None)
        if key not in self._known.costs:
            self._known.costs[key] = price(layer, into, out, rank, bits, self.latency)
        return self._known.costs[key]


def _within(costs: Costs, ceiling: Costs) -> bool:
    return all(cost <= c * (1 + 1e-9) for cost, c in zip(costs, ceiling, strict=True))
