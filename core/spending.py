"""Budgets → the plan of `Choices` that loses least: priced around a plan, solved, priced anew until it stands.

Exact at once where no two open groups meet in one layer. Elsewhere the few groups that meet many others are then moved
one level at a time. Peak memory is a budget for every moment of execution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from core.allocate import Allocation
from core.allocate_tied import allocate_tied
from core.errors import StudioError
from core.layer_price import Costs
from core.meetings import hubs
from core.moments import limited
from core.sensitivity_table import Key, Plan

if TYPE_CHECKING:
    from core.choices import Choices

KINDS = ("macs", "weight_bytes", "latency_ms")  # what a budget can limit: sums over layers,
PEAK = "peak_bytes"  # and the most memory at any moment
ROUNDS = 6  # of pricing


def spend(choices: Choices, budgets: Mapping[str, float]) -> Allocation:
    """The plan of smallest summed KL whose exact costs keep within `budgets`. Raises StudioError if none does."""
    if choices.latency and "latency_ms" not in budgets:  # operator times are the dearest to look up
        found = spend(replace(choices, latency=None), budgets)
        return replace(found, costs=choices.cost_of(found.levels))
    ceiling = tuple(budgets.get(kind, np.inf) for kind in (*KINDS, PEAK))
    best = _settle(choices, choices.locked, ceiling, _cheapest(choices, ceiling))
    alone = len(budgets) == 1 and PEAK not in budgets  # several together are too slow to be asked that often
    for hub in _hubs(choices) if alone else []:
        levels = choices.options(*hub)
        at = levels.index(best.levels[hub])
        for level in (*levels[max(0, at - 1) : at], *levels[at + 1 : at + 2]):
            held = replace(choices, locked={**choices.locked, hub: level})
            best = _settle(held, {**best.levels, hub: level}, ceiling, best)
    return best


def _settle(choices: Choices, plan: Plan, ceiling: Costs, best: Allocation) -> Allocation:
    """Solve, price around the solution, solve again, until it gets no better; `best` where nothing beats it.

    Several budgets are solved nearly until prices stand, and then once to the end.
    """
    several = int(np.isfinite(ceiling).sum()) > 1 or bool(np.isfinite(ceiling[-1]))
    near = several
    for left in reversed(range(ROUNDS)):
        near = near and left > 0
        try:
            plan = _solved(choices, plan, ceiling, near, best.loss)
        except StudioError:  # priced around this plan nothing fits, which says nothing about others
            return best
        found = Allocation(plan, choices.loss_of(plan), choices.cost_of(plan))
        if not _within(choices, found, ceiling):
            continue
        better = found.loss < best.loss * (1 - 1e-9)
        best = found if better else best
        if not near and (not better or several):
            return best
        if not better:
            near, plan = False, best.levels
    return best


def _solved(choices: Choices, plan: Plan, ceiling: Costs, near: bool, beat: float) -> Plan:
    """The best plan where options cost what they cost around `plan`. Raises StudioError if none fits."""
    items = choices.items(plan)
    floor = choices.floor(items, plan)
    rooms = [None if np.isinf(c) else _raw(choices, k, c) - floor[k] for k, c in enumerate(ceiling[:-1])]
    if np.isfinite(ceiling[-1]):
        items, more = limited(items, choices.moments(plan), ceiling[-1])
        rooms += more
    return allocate_tied(items, rooms, near, beat).levels


def _cheapest(choices: Choices, ceiling: Costs) -> Allocation:
    """Every item at its smallest cost. Raises StudioError when even that exceeds a budget."""
    items = choices.items(choices.locked)
    kinds = [k for k, c in enumerate(ceiling[:-1]) if np.isfinite(c)] or [0]
    unit = np.maximum(np.array(choices.cost_of({})), 1e-30)
    relative = [(x.priced / unit)[:, kinds].sum(1) for x in items]
    plan = {(x.name, x.technique): x.levels[int(c.argmin())] for x, c in zip(items, relative, strict=True)}
    costs = choices.cost_of(plan)
    for k in kinds:
        if costs[k] > ceiling[k] * (1 + 1e-9):
            raise StudioError(
                f"The budget {ceiling[k]:g} of {KINDS[k]} is out of reach: the smallest plan needs {costs[k]:g}."
            )
    if np.isfinite(ceiling[-1]) and choices.peak_of(plan) > ceiling[-1]:
        raise StudioError(
            f"{ceiling[-1]:g} bytes at once are out of reach: the smallest plan needs {choices.peak_of(plan):g}."
        )
    return Allocation(plan, choices.loss_of(plan), costs)


def _hubs(choices: Choices) -> list[Key]:
    key = "prune_channels"
    rows = [row for row in choices.table.curves if row[1] == key and row not in choices.locked]
    return [(hub, key) for hub in hubs(choices.profile, {row[0] for row in rows if len(choices.options(*row)) > 1})]


def _within(choices: Choices, found: Allocation, ceiling: Costs) -> bool:
    """Exactly."""
    peak = choices.peak_of(found.levels) if np.isfinite(ceiling[-1]) else 0.0
    return all(cost <= c * (1 + 1e-9) for cost, c in zip((*found.costs, peak), ceiling, strict=True))


def _raw(choices: Choices, kind: int, budget: float) -> float:
    """A budget for latency as a budget for the sum of operator times."""
    return choices.latency.operators(budget) if kind == 2 and choices.latency else budget
