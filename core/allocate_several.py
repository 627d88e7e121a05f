"""Several budgets at once: the multiple-choice knapsack, from its linear relaxation by SciPy's HiGHS.

The relaxation splits no more items than there are budgets, so that trying the options of those few, and then changes of
two items at a time, gives a plan within a percent or two of its bound. Options whose reduced cost exceeds that distance
are in no better plan (Pisinger, A Minimal Algorithm for the Multiple-Choice Knapsack Problem, 1995); the few that
remain are walked through item by item, with bounds from the prices of the budgets; of many plans that have spent about
the same the best goes on, so that the end is within a percent of the least loss. Where that gets too wide, HiGHS's
integer programme decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.errors import StudioError

if TYPE_CHECKING:
    from core.allocate import Item

Array = NDArray[np.float64]
Places = NDArray[np.intp]
GAP = 1e-3  # a share of the least loss that is not worth looking for: tables are known far less exactly
SLACK = 1e-9  # of a budget
NEAR = {2: 1.3, 3: 1.1}  # budgets → plans within this of the bound are few enough to be followed
TRIED = 4096  # plans that are built from one relaxation
SPLIT = 1 - 1e-6  # an item whose largest share is below is split
FACTORS = np.array([0.85, 1.0, 1.15])  # of the relaxation's prices, that bounds are taken from
FEW, MOST, CELLS = 1000, 20_000, 192  # plans followed at once; beyond few, the best one of each cell of spent budgets
NONE = "No plan keeps within all budgets together; raise one of them."


@dataclass(frozen=True)
class Options:
    """All options in one row, those of one item side by side."""

    owner: Places  # the item that each is of
    losses: Array  # as shares of a loss that cannot be beaten: HiGHS's absolute tolerances become relative to it
    costs: Array  # (budgets, options), as shares of each budget's largest
    room: Array  # (budgets,)

    def take(self, at: NDArray[np.bool_] | Places) -> Options:
        return Options(self.owner[at], self.losses[at], self.costs[:, at], self.room)

    @property
    def parts(self) -> list[Places]:
        """The places of each item's options."""
        return np.split(np.arange(len(self.owner)), np.flatnonzero(np.diff(self.owner)) + 1)

    def loss(self, plan: Places) -> float:
        return float(self.losses[plan].sum())


def solve_several(items: Sequence[Item], ceiling: Array, scale: float, near: bool = False) -> list[int]:
    """One option for each item; `scale` is a loss that cannot be beaten. Raises StudioError where nothing fits.

    With `near` the plan is what the relaxation gives, which is mostly within a few percent of the best.
    """
    from scipy.optimize import linprog  # half a second: paid by those who need it

    options, levels = _that_fit(items, ceiling, scale)
    relaxed = linprog(
        options.losses,
        A_ub=options.costs,
        b_ub=options.room,
        A_eq=_one_each(options),
        b_eq=np.ones(len(items)),
        bounds=(0, None),
        method="highs",
        options={"presolve": False},  # takes longer than it saves
    )
    if relaxed.x is None:
        raise StudioError(NONE)
    best = _rounded(options, relaxed.x)
    if best is None:
        best = _exact(options)
        if best is None:
            raise StudioError(NONE)
    elif not near and options.loss(best) > relaxed.fun * (1 + GAP):
        best = _bettered(options, best, relaxed.fun, -relaxed.ineqlin.marginals, relaxed.eqlin.marginals)
    return [int(level) for level in levels[best]]


def _that_fit(items: Sequence[Item], ceiling: Array, scale: float) -> tuple[Options, Places]:
    """The options that fit beside the smallest of all others, and the place of each among its item's."""
    whole, levels = _options(items, ceiling, scale), np.concatenate([np.arange(len(x.levels)) for x in items])
    least = np.array([whole.costs[:, part].min(1) for part in whole.parts])
    spare = whole.room - least.sum(0)
    alive = np.all(whole.costs - least[whole.owner].T <= spare[:, None] + SLACK, axis=0)
    if len(np.unique(whole.owner[alive])) < len(items):
        raise StudioError(NONE)
    return whole.take(alive), levels[alive]


def _bettered(options: Options, best: Places, bound: float, prices: Array, of_items: Array) -> Places:
    """The best plan, given one, a bound on all, and the relaxation's prices of budgets and items."""
    above = options.losses + prices @ options.costs - of_items[options.owner]  # what an option adds to the bound
    alive = np.flatnonzero(bound + above <= options.loss(best) * (1 + SLACK))
    few, far = options.take(alive), options.loss(best) > bound * NEAR.get(len(prices), 1.0)
    found = _exact(few) if far else _walk(few, prices, options.loss(best) * (1 - GAP))
    return best if found is None else _swapped(options, alive[found])


def _options(items: Sequence[Item], ceiling: Array, scale: float) -> Options:
    finite = np.isfinite(ceiling)
    owner = np.repeat(np.arange(len(items)), [len(x.levels) for x in items])
    costs = np.concatenate([x.priced for x in items])[:, finite].T
    unit = np.where(costs.max(1) > 0, costs.max(1), 1.0)
    losses = np.concatenate([x.lost for x in items])
    scaled = losses / (scale or max(float(losses.max()), 1e-30))
    return Options(owner, scaled, costs / unit[:, None], ceiling[finite] / unit)


def _one_each(options: Options) -> object:
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(options.owner)), (options.owner, np.arange(len(options.owner)))))


def _rounded(options: Options, shares: Array) -> Places | None:
    """A plan within the room that differs from `shares` where an item is split, and by what betters it from there."""
    parts = options.parts
    plans = np.array([[part[shares[part].argmax()] for part in parts]])
    for item in np.flatnonzero(shares[plans[0]] < SPLIT):
        part = parts[item]
        if len(plans) * len(part) > TRIED:
            part = part[shares[part] > 1 - SPLIT]
        plans = np.repeat(plans, len(part), axis=0)[:TRIED]
        plans[:, item] = np.resize(part, len(plans))
    within = plans[np.all(options.costs[:, plans].sum(2) <= options.room[:, None] + SLACK, axis=0)]
    plan = within[options.losses[within].sum(1).argmin()] if len(within) else _mended(options, plans[0])
    return None if plan is None else _swapped(options, plan)


def _mended(options: Options, plan: Places) -> Places | None:
    """A plan that exceeds budgets, changed where that loses least for what it saves; None where that ends outside."""
    owner, losses, costs = options.owner, options.losses, options.costs
    plan = plan.copy()
    while True:
        beyond = costs[:, plan].sum(1) - options.room
        over = np.maximum(beyond, 0).sum()
        if over <= SLACK:
            return plan
        left = np.maximum(beyond[:, None] + costs - costs[:, plan[owner]], 0).sum(0)
        worse = np.maximum(losses - losses[plan[owner]], 1e-12)
        price = np.where(left < over - SLACK, worse / np.maximum(over - left, SLACK), np.inf)
        at = int(price.argmin())
        if np.isinf(price[at]):
            return None
        plan[owner[at]] = at


def _swapped(options: Options, plan: Places) -> Places:
    """Options changed two at a time while that loses less and there is room; one alone counts beside an unchanged."""
    owner, losses, costs = options.owner, options.losses, options.costs
    while True:
        gain, more = losses[plan[owner]] - losses, costs - costs[:, plan[owner]]  # of changing to each option
        left = options.room - costs[:, plan].sum(1)
        better = np.flatnonzero(gain > 0)  # one of any two that are worth it
        fits = owner[better, None] != owner
        for each, spare in zip(more, left, strict=True):  # one budget at a time: all of them would not fit in memory
            fits &= each[better, None] + each <= spare
        both = np.where(fits, gain[better, None] + gain, 0.0)
        if both.max(initial=0.0) <= 1e-12:
            return plan
        first, second = np.unravel_index(both.argmax(), both.shape)
        plan = plan.copy()
        plan[owner[[better[first], second]]] = better[first], second


def _walk(options: Options, prices: Array, best: float) -> Places | None:
    """The plan of least loss where that is below `best`; None where it is not.

    Plans so far that cannot end below are dropped: what the items to come lose at least follows from any prices of the
    budgets, and is nearly true for those near the relaxation's.
    """
    costs, losses, room = options.costs, options.losses, options.room
    parts = sorted(options.parts, key=lambda part: -np.ptp(losses[part] + prices @ costs[:, part]))
    grid = np.meshgrid(*[FACTORS] * len(prices)) if len(prices) < 4 else [FACTORS] * len(prices)
    several = np.stack([axis.ravel() for axis in grid], 1) * prices  # (p, budgets)
    ahead = _from_the_end([(losses[part] + several @ costs[:, part]).min(1) for part in parts])
    least = _from_the_end([costs[:, part].min(1) for part in parts])
    spent, lost = np.zeros((1, len(room))), np.zeros(1)
    steps: list[tuple[Places, Places]] = []  # of each plan: the plan before, the option taken
    for i, part in enumerate(parts):
        spent = (spent[:, None] + costs[:, part].T).reshape(-1, len(room))
        lost = (lost[:, None] + losses[part]).ravel()
        bound = lost + (ahead[i + 1] - (room - spent) @ several.T).max(1)
        keep = np.flatnonzero((bound < best) & np.all(spent + least[i + 1] <= room + SLACK, axis=1))
        keep = keep if len(keep) <= FEW else _thinned(keep, spent / np.maximum(room, SLACK), lost)
        if len(keep) > MOST:
            return _exact(options)
        if not len(keep):
            return None
        spent, lost = spent[keep], lost[keep]
        steps.append((keep // len(part), part[keep % len(part)]))
    state, plan = int(lost.argmin()), np.zeros(len(parts), np.intp)
    for before, option in reversed(steps):
        plan[options.owner[option[state]]] = option[state]
        state = int(before[state])
    return plan


def _from_the_end(rows: Sequence[Array]) -> Array:
    """Row i: the sum of those from i on; the last one is of zeros."""
    return np.vstack([np.cumsum(rows[::-1], axis=0)[::-1], np.zeros_like(rows[:1])])


def _thinned(keep: Places, spent: Array, lost: Array) -> Places:
    """Of plans that have spent about the same, the one that has lost least."""
    draw = np.random.default_rng(0).integers(1, 2**62, spent.shape[1])
    cells = np.floor(spent[keep] * CELLS).astype(np.int64) @ draw  # wraps around: as good as a number of its own
    order = np.lexsort((lost[keep], cells))
    best: Places = keep[order[np.append(True, np.diff(cells[order]) != 0)]]
    return best


def _exact(options: Options) -> Places | None:
    """By HiGHS's integer programme; None where it finds nothing that fits."""
    from scipy.optimize import LinearConstraint, milp

    result = milp(
        options.losses,
        integrality=np.ones(len(options.owner)),
        constraints=[
            LinearConstraint(_one_each(options), 1, 1),
            LinearConstraint(options.costs, -np.inf, options.room),
        ],
        options={"mip_rel_gap": GAP},
    )
    if result.x is None:
        return None
    chosen: Places = np.array([part[result.x[part].argmax()] for part in options.parts], np.intp)
    return chosen
