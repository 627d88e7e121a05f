"""Peak memory as a budget: the moments of execution, each a sum over channel groups that has to stay below it.

With ranks and bits held, what is in memory at a moment is linear in the widths of the groups, and a moment inside a
branch is none once that is emptied, so that every moment is one more budget of the same choices. Only moments that no
other one exceeds at every width are kept. Plans are checked exactly all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from core.allocate import Item
from core.layers import Profile
from core.liveness import Operator, alive, homes, readers_of
from core.memory import operators_after
from core.network import Network
from core.predict import split_layer
from core.sensitivity_table import Plan

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Bytes in memory at m moments: `fixed` (m,) + `each` (m, groups) @ widths."""

    groups: tuple[str, ...]
    fixed: Array
    each: Array
    ends: Array  # (m, groups): 1 where the moment is none once the group is empty
    widths: Array  # of groups that no choice decides
    channels: Array  # the original's


def network_of(profile: Profile, plan: Plan, integers: bool = True) -> Network:
    """The network that a plan leaves. Without `integers` its bits are those of the weights alone."""
    net = Network(profile)
    for (name, technique), level in plan.items():
        if technique == "prune_channels":
            group = net.groups[name]
            net.width[name] = round(group.channels * (1 - level))
            net.gone |= set(group.branch) if not net.width[name] else set()
    for (name, technique), level in plan.items():
        if technique == "factorize" and level < 1:
            net.parts[name] = split_layer(net, name, net.parts[name][0], "spatial_svd", level)
    bits = {name: level for (name, technique), level in plan.items() if technique == "quantize"}
    if integers and min(bits.values(), default=32) >= 8:  # below, weights alone have bits
        net.integer = {part.name for name, level in bits.items() if level == 8 for part in net.parts[name]}
    return net


def moments_of(profile: Profile, net: Network) -> Moments:
    """All that can be the peak as the groups get narrower than in `net`."""
    operators = operators_after(profile.operators, net)
    column = {group: at for at, group in enumerate(net.groups)}
    fixed, each = np.zeros(len(operators)), np.zeros((len(operators), len(column)))
    for at, operator in enumerate(operators):
        fixed[at] = operator.size - sum(per * net.width[group] for group, per in operator.channels)
        for group, per in operator.channels:
            each[at, column[group]] += per
    found = _by_branch(profile, net, operators)
    at_once, lasts = np.zeros((len(found), len(operators))), np.ones((len(found), len(column)))
    for row, (places, ends) in enumerate(found):
        at_once[row, sorted(places)] = 1
        lasts[row, [column[group] for group in ends]] = 0
    rows = np.unique(np.column_stack([at_once @ fixed, at_once @ each, lasts]), axis=0)
    within = np.all(rows[:, None] <= rows[None], axis=2)  # (m, m); they are unique, so that none is so both ways
    rows, split = rows[within.sum(1) == 1], 1 + len(column)
    widths = np.array([net.width[group] for group in column], np.float64)
    channels = np.array([group.channels for group in net.groups.values()], np.float64)
    return Moments(tuple(column), rows[:, 0], rows[:, 1:split], 1 - rows[:, split:], widths, channels)


def _by_branch(
    profile: Profile, net: Network, operators: Sequence[Operator]
) -> list[tuple[frozenset[int], frozenset[str]]]:
    """Every moment as what is in memory, and the groups each of which ends it by being empty. Where the branch that
    goes with one frees only some of what is in memory, the rest is a moment of its own."""
    home, found = homes(operators), []
    gone = {
        group.name: _gone_with({part.name for layer in group.branch for part in net.parts.get(layer, ())}, operators)
        for group in profile.groups
        if group.branch
    }
    written = {name: _first_written(home, lost) for name, lost in gone.items()}
    for at, places in enumerate(alive(operators)):
        now = [(frozenset(places), frozenset[str]())]
        for group, lost in gone.items():
            # an operator that stays may write where one goes
            freed = {place for place in lost.intersection(places) if written[group].get(place, at + 1) > at}
            split = [(kept - freed, ends) for kept, ends in now if at not in lost and kept & freed]
            now = [(kept, ends | {group} if at in lost or kept & freed else ends) for kept, ends in now] + split
        found += now
    return found


def _first_written(home: Sequence[int], lost: Collection[int]) -> dict[int, int]:
    """Place → the first operator beside those `lost` that writes there."""
    found: dict[int, int] = {}
    for at, place in enumerate(home):
        if at not in lost:
            found.setdefault(place, at)
    return found


def _gone_with(branch: Collection[str], operators: Sequence[Operator]) -> set[int]:
    """The operators that are not run once these layers are gone."""
    empty: set[int] = set()
    gone: set[int] = set()
    readers = readers_of(operators)
    for at, x in enumerate(operators):
        if x.layer in branch or (x.reads and empty.issuperset(x.reads)):
            empty.add(at)
        elif x.kind == "Add" and empty.intersection(x.reads):
            gone.add(at)  # the other summand stands for it
    gone |= empty
    for at in reversed(range(len(operators))):
        if readers[at] and empty.issuperset(readers[at]):
            empty.add(at)
    return gone | empty


def limited(items: Sequence[Item], moments: Moments, budget: float) -> tuple[list[Item], list[float]]:
    """The items with one more cost for each moment that may exceed the budget, and the room that each has."""
    least, most = moments.widths.copy(), moments.widths.copy()
    options: dict[str, Array] = {}
    column = {group: at for at, group in enumerate(moments.groups)}
    for item in items:
        if item.technique == "prune_channels":
            at = column[item.name]
            options[item.name] = np.round(moments.channels[at] * (1 - np.array(item.levels)))
            least[at], most[at] = options[item.name].min(), options[item.name].max()
    highest = moments.fixed + moments.each @ most
    binding = np.flatnonzero(highest > budget)
    room = budget - (moments.fixed + moments.each @ least)[binding]
    found = []
    for item in items:
        extra = np.zeros((len(item.levels), len(binding)))
        if item.technique == "prune_channels":
            at, widths = column[item.name], options[item.name]
            extra = np.outer(widths - least[at], moments.each[binding, at])
            if least[at] == 0:  # an empty group lifts the limit on what ends with it
                lifted = moments.ends[binding, at] * highest[binding]
                extra += np.outer(widths > 0, lifted)
                room = room + lifted
        costs = tuple((*row, *more) for row, more in zip(item.costs, extra.tolist(), strict=True))
        found.append(replace(item, costs=costs))
    return found, room.tolist()
