"""The choices that a budget is spent on: each group's width and each layer's rank and bits, with what they cost.

Costs are exact for any one plan. Between plans they are products (a layer's MACs are its input width times its output
width), so options are priced around the current plan (`core/spending.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.allocate import Allocation, Item, front
from core.catalog import CATALOG
from core.latency_table import LatencyTable
from core.layer_price import Costs, price
from core.layers import Layer, Profile, kept_channels
from core.meetings import neighbours, touched
from core.memory import peak_after
from core.moments import Moments, moments_of, network_of
from core.predict import shape_of
from core.ranks import refusal
from core.sensitivity_table import Key, Plan, SensitivityTable
from core.spending import KINDS, PEAK, spend

MOST = 20_000  # priced items that are remembered


@dataclass
class _Known:
    """What one solution asks for again and again."""

    costs: dict[tuple[int, int, int, float, float, bool], Costs] = field(default_factory=dict)
    alike: dict[str, int] = field(default_factory=dict)  # layer → a number that layers of equal costs share
    priced: dict[tuple[object, ...], Item] = field(default_factory=dict)
    neighbours: dict[Key, tuple[Key, ...]] = field(default_factory=dict)  # settings that a setting's costs depend on
    touched: dict[Key, list[Layer]] = field(default_factory=dict)
    losses: dict[tuple[str, str, float], float] = field(default_factory=dict)
    options: dict[Key, tuple[float, ...]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)  # group → its width
    moments: dict[object, Moments] = field(default_factory=dict)


@dataclass(frozen=True)
class Choices:
    """A profile, its table and the levels each technique may use; `plan` holds what is locked."""

    profile: Profile
    table: SensitivityTable
    levels: Mapping[str, Sequence[float]]  # technique → levels beside its neutral one
    locked: Plan = field(default_factory=dict)
    latency: LatencyTable | None = None
    multiple: int = 1  # widths are rounded to it
    integers: bool = True  # whether 8 bits are those of activations too
    _known: _Known = field(default_factory=lambda: _Known(), repr=False, compare=False)  # shared by `replace`

    def cost_of(self, plan: Plan) -> Costs:
        """The whole model's (MACs, bytes of weights, latency in ms) under a plan."""
        macs, size, time = self._sum(self.profile.weighing, plan)
        return macs, size, self.latency.whole(time) if self.latency else time

    def peak_of(self, plan: Plan) -> float:
        """Peak activation memory in bytes under a plan; infinite where the profile does not tell."""
        peak = peak_after(self.profile.operators, network_of(self.profile, plan, self.integers))
        return np.inf if peak is None else float(peak)

    def of(self, kind: str, plan: Plan, costs: Costs | None = None) -> float:
        """One cost of a plan, of KINDS or its peak memory; `costs` are those of the plan where they are known."""
        return self.peak_of(plan) if kind == PEAK else (costs or self.cost_of(plan))[KINDS.index(kind)]

    def change(self, plan: Plan, key: Key, level: float) -> Costs:
        """What changes of every cost when one setting of a plan becomes `level`, exactly."""
        layers, widths = self._touched(*key), self._widths(plan)
        before = self._sum(layers, plan, widths)
        if key[1] == "prune_channels":
            widths[key[0]] = self._width(key[0], level)
        pairs = zip(self._sum(layers, {**plan, key: level}, widths), before, strict=True)
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
        touched, tried, widths = self._touched(name, technique), dict(plan), self._widths(plan)
        rows = []
        for level in levels:
            tried[name, technique] = level
            if technique == "prune_channels":
                widths[name] = self._width(name, level)
            rows.append(self._sum(touched, tried, widths))
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
        return spend(self, budgets)

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

    def moments(self, plan: Plan) -> Moments:
        """Of the ranks and bits of a plan, before the open groups are cut."""
        held = {k: v for k, v in plan.items() if k[1] != "prune_channels" or k in self.locked}
        key = tuple(sorted(held.items())), self.integers
        if key not in self._known.moments:
            self._known.moments[key] = moments_of(self.profile, network_of(self.profile, held, self.integers))
        return self._known.moments[key]

    def floor(self, items: Sequence[Item], plan: Plan) -> Costs:
        """What the model costs with every item at its cheapest, as priced around `plan`."""
        current = np.array(self._sum(self.profile.weighing, plan))
        for x in items:
            level = plan.get((x.name, x.technique), float(CATALOG[x.technique].neutral))
            current = current - x.priced[x.levels.index(level)]
        return tuple(current.tolist())

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

    def _sum(self, layers: Sequence[Layer], plan: Plan, widths: Mapping[str, int] | None = None) -> Costs:
        """Of some layers; `widths` are those of the plan where they are known."""
        widths = self._widths(plan) if widths is None else widths
        macs = size = time = 0.0
        for layer in layers:
            a, b, c = self._layer(layer, plan, widths)
            macs, size, time = macs + a, size + b, time + c
        return macs, size, time

    def _widths(self, plan: Plan) -> dict[str, int]:
        """Group → channels that are left."""
        if not self._known.channels:
            self._known.channels.update((g.name, g.channels) for g in self.profile.groups)
        widths = dict(self._known.channels)
        for (name, technique), level in plan.items():
            if technique == "prune_channels" and name in widths:
                widths[name] = self._width(name, level)
        return widths

    def _width(self, group: str, ratio: float) -> int:
        return round(self._known.channels[group] * (1 - ratio))

    def _layer(self, layer: Layer, plan: Plan, widths: Mapping[str, int]) -> Costs:
        """(MACs, bytes, operator ms) of one layer: weights at their bits, biases as 32-bit numbers."""
        for end in self.profile.ends.get(layer.name, ()):
            if widths[end] == 0:
                return 0.0, 0.0, 0.0
        into = 0
        for feed in layer.inputs:
            into += widths[feed.group] * feed.repeat
        into = into or layer.in_channels
        out = widths[layer.group] if layer.group else layer.out_channels
        rank, bits = plan.get((layer.name, "factorize"), 1.0), plan.get((layer.name, "quantize"), 32.0)
        known = self._known
        if not known.alike:
            known.alike.update(_alike(self.profile))
        key = (known.alike[layer.name], into, out, rank, bits, self.latency is None)
        found = known.costs.get(key)
        if found is None:
            found = known.costs[key] = price(layer, into, out, rank, bits, self.latency)
        return found


def _alike(profile: Profile) -> dict[str, int]:
    """Layer → number; those that cost the same at the same widths, rank and bits share one."""
    numbers: dict[tuple[object, ...], int] = {}
    found = {}
    for x in profile.layers:
        own = {"shortcut": (x.in_channels, x.out_channels), "linear": (x.params, x.macs)}.get(x.kind, ())
        key = (x.kind, x.kernel, x.groups, x.bias, x.input_shape[-2:], x.output_shape[-2:], own)
        found[x.name] = numbers.setdefault(key, len(numbers))
    return found
