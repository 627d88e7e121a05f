"""Budgets → one option per item, at the smallest summed loss: the multiple-choice knapsack problem.

One budget: dynamic programming over non-dominated (cost, loss) states (Nemhauser & Ullmann 1969), thinned by a
Lagrangian lower bound on what is left: exact, costs need no grid. Several budgets: from their linear relaxation, to one
part in a hundred; those that few items share, as moments of memory are, in `core/allocate_tied.py`. The whole front:
dynamic programming on a grid of costs, every budget in one pass; costs are rounded up, so each point keeps within its
budget and is at most one grid step per item from the best.

Losses add up only near the original: at extreme budgets measure uniform and weight-error plans beside the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.allocate_several import solve_several
from core.errors import StudioError

Array = NDArray[np.float64]
GRID = 2048  # cells of the front's cost axis


@dataclass(frozen=True)
class Item:
    """One layer or group and its options. Row j is option j: its level, its loss, its costs in the order of `kinds`."""

    name: str
    technique: str
    levels: tuple[float, ...]
    losses: tuple[float, ...]
    costs: tuple[tuple[float, ...], ...]

    @cached_property
    def priced(self) -> Array:
        """(options, kinds) The costs as an array: made once, since one item is part of many problems."""
        return np.array(self.costs, np.float64)

    @cached_property
    def lost(self) -> Array:
        """(options,) The losses as an array."""
        return np.array(self.losses, np.float64)

    def only(self, level: float) -> Item:
        """Locked at one level. Raises StudioError when it is not among the options."""
        if level not in self.levels:
            accepted = ", ".join(f"{x:g}" for x in self.levels)
            raise StudioError(f"{self.name} cannot be locked at {level:g}; accepted are {accepted}.")
        j = self.levels.index(level)
        return replace(self, levels=(level,), losses=(self.losses[j],), costs=(self.costs[j],))


@dataclass(frozen=True)
class Allocation:
    """One option per item, with the summed loss and costs."""

    levels: Mapping[tuple[str, str], float]  # (layer or group, technique) → level
    loss: float
    costs: tuple[float, ...]


def lock(items: Sequence[Item], levels: Mapping[tuple[str, str], float]) -> list[Item]:
    """The items, those named in `levels` held at theirs."""
    return [x.only(levels[x.name, x.technique]) if (x.name, x.technique) in levels else x for x in items]


def allocate(
    items: Sequence[Item], budgets: Sequence[float | None], near: bool = False, beat: float = np.inf
) -> Allocation:
    """The smallest summed loss within every budget (None: no limit). Raises StudioError when nothing fits.

    With `near` a few percent more may be lost to several budgets, for a fraction of the time. Where one budget leaves
    no plan of less loss than `beat`, the plan returned is just any that fits.
    """
    ceiling = np.array([np.inf if b is None else b for b in budgets], np.float64)
    bound = np.isfinite(ceiling)
    if not bound.any():
        return _gather(items, [int(np.argmin(x.losses)) for x in items])
    least = np.sum([x.priced.min(0) for x in items], axis=0)[bound]
    if np.any(least > ceiling[bound]):
        k = int(np.argmax(least / ceiling[bound]))
        raise StudioError(f"The budget {ceiling[bound][k]:g} is out of reach: the smallest plan needs {least[k]:g}.")
    if bound.sum() == 1:
        column = int(np.flatnonzero(bound)[0])
        return _gather(items, _solve_one(items, column, float(ceiling[column]), beat))
    most = np.sum([x.priced.max(0) for x in items], axis=0)
    tightest = max(np.flatnonzero(bound).tolist(), key=lambda k: most[k] / max(ceiling[k], 1e-30))
    prices, tails = _tails(*_column(items, tightest), float(ceiling[tightest]))
    lowest = float((tails[0] - prices * ceiling[tightest]).max())
    return _gather(items, solve_several(items, ceiling, lowest, near))


def _gather(items: Sequence[Item], choice: Sequence[int]) -> Allocation:
    levels = {(x.name, x.technique): x.levels[j] for x, j in zip(items, choice, strict=True)}
    loss = sum(x.losses[j] for x, j in zip(items, choice, strict=True))
    costs = np.array([x.costs[j] for x, j in zip(items, choice, strict=True)]).sum(0)
    return Allocation(levels, float(loss), tuple(map(float, costs)))


def _column(items: Sequence[Item], k: int) -> tuple[list[Array], list[Array]]:
    """(losses, costs of kind k), one array per item."""
    return [x.lost for x in items], [x.priced[:, k] for x in items]


def _solve_one(items: Sequence[Item], k: int, budget: float, beat: float = np.inf) -> list[int]:
    """Items of the widest costs first: the rest then fills any room, so bounds are tight and states few."""
    losses, costs = _column(items, k)
    order = np.argsort([-np.ptp(row) for row in costs], kind="stable").tolist()
    choice = _solve_in_order([losses[i] for i in order], [costs[i] for i in order], budget, beat)
    return [j for _, j in sorted(zip(order, choice, strict=True))]


def _solve_in_order(losses: Sequence[Array], costs: Sequence[Array], budget: float, beat: float) -> list[int]:
    prices, tails = _tails(losses, costs, budget)
    if float((tails[0] - prices * budget).max()) >= beat:
        return [int(c.argmin()) for c in costs]
    best, best_loss = _by_price(losses, costs, prices, budget)
    best_loss = min(best_loss, beat)
    room = budget * (1 + 1e-12)
    least = np.append(np.cumsum([c.min() for c in costs][::-1])[::-1], 0.0)
    cost, loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []  # of each state: the state before, the option taken
    for i in range(len(costs)):
        new_cost = (cost[:, None] + costs[i]).ravel()
        new_loss = (loss[:, None] + losses[i]).ravel()
        bound = new_loss + (tails[i + 1] - prices * (budget - new_cost)[:, None]).max(1)
        alive = np.flatnonzero((new_cost + least[i + 1] <= room) & (bound < best_loss))
        order = alive[np.lexsort((new_loss[alive], new_cost[alive]))]
        falling = np.minimum.accumulate(np.append(np.inf, new_loss[order]))[:-1] > new_loss[order]
        order = order[falling]
        if not len(order):
            return best  # nothing beats the priced plan
        cost, loss = new_cost[order], new_loss[order]
        steps.append((order // len(costs[i]), order % len(costs[i])))
    return _walk_back(steps, int(loss.argmin()))


def _walk_back(steps: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], state: int) -> list[int]:
    choice = []
    for before, option in reversed(steps):
        choice.append(int(option[state]))
        state = int(before[state])
    return choice[::-1]


def _tails(losses: Sequence[Array], costs: Sequence[Array], budget: float) -> tuple[Array, Array]:
    """Prices (p,) near the best one, and (items + 1, p): the least priced loss of the items from i on."""
    prices = _prices(losses, costs, budget)
    least = [(a[:, None] + b[:, None] * prices).min(0) for a, b in zip(losses, costs, strict=True)]
    return prices, np.vstack([np.cumsum(least[::-1], axis=0)[::-1], np.zeros(len(prices))])


def prices_near(items: Sequence[Item], k: int, budget: float) -> Array:
    """What a unit of cost k may be worth in loss: any such price gives a bound, the best one is among or between."""
    return _prices(*_column(items, k), budget)


def _prices(losses: Sequence[Array], costs: Sequence[Array], budget: float) -> Array:
    loss, cost = _padded(losses), _padded(costs)
    grid = np.geomspace(1e-30, 1e30, 13)
    for _ in range(5):  # between the last price that is too low and the first that is not, ever finer
        first = int(np.append(_priced_costs(loss, cost, grid[1:-1]) <= budget, True).argmax()) + 1
        grid = np.geomspace(grid[first - 1], grid[first], 12)
    return float(grid[-1]) * np.array([0.0, 0.5, 0.7, 0.85, 0.95, 1.0, 1.05, 1.15, 1.4, 2.0, 4.0])


def _padded(rows: Sequence[Array]) -> Array:
    """(items, most options); options that an item lacks are infinite."""
    filled = np.full((len(rows), max(map(len, rows))), np.inf)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return filled


def _priced_costs(losses: Array, costs: Array, prices: Array) -> Array:
    """What the plan of least priced loss costs at each price, the cheaper option where two are equal."""
    priced = losses + prices[:, None, None] * costs
    cheapest: Array = np.where(priced == priced.min(2, keepdims=True), costs, np.inf).min(2).sum(1)
    return cheapest


def _by_price(losses: Sequence[Array], costs: Sequence[Array], prices: Array, budget: float) -> tuple[list[int], float]:
    """A good plan to beat: the best priced one within the budget, then single swaps while there is room."""
    found: tuple[list[int], float] | None = None
    loss, cost = _padded(losses), _padded(costs)
    rows = np.arange(len(loss))
    for price in prices:
        priced = loss + price * np.where(np.isinf(cost), 0.0, cost)
        choice = np.where(priced == priced.min(1, keepdims=True), cost, np.inf).argmin(1)
        room = budget - cost[rows, choice].sum()
        while room >= 0:
            extra = cost - cost[rows, choice][:, None]
            gain = np.where(extra <= room, loss[rows, choice][:, None] - loss, 0.0)
            i, n = np.unravel_index(gain.argmax(), gain.shape)
            if gain[i, n] <= 0:
                break
            room -= extra[i, n]
            choice[i] = n
        total = float(loss[rows, choice].sum())
        if room >= 0 and (found is None or total < found[1]):
            found = choice.tolist(), total
    return found or ([int(b.argmin()) for b in costs], np.inf)


def front(items: Sequence[Item], kind: int = 0, cells: int = GRID, count: int = 256) -> list[Allocation]:
    """Trades of loss against cost `kind`, cheapest first, none dominated by another; at most `count`, evenly taken."""
    losses, costs = _column(items, kind)
    floors = [b.min() for b in costs]
    step = max(sum(float((b - f).max()) for b, f in zip(costs, floors, strict=True)) / cells, 1e-30)
    best = np.zeros(1)  # cell → least loss of the items so far that needs exactly this many grid steps
    taken: list[NDArray[np.intp]] = []
    steps = [np.ceil((b - f) / step - 1e-9).astype(np.intp) for b, f in zip(costs, floors, strict=True)]
    for loss, extra in zip(losses, steps, strict=True):
        grown = np.full((len(loss), len(best) + int(extra.max())), np.inf)
        for j, shift in enumerate(extra):
            grown[j, shift : shift + len(best)] = best + loss[j]
        taken.append(grown.argmin(0))
        best = grown.min(0)
    at = np.flatnonzero(best < np.append(np.inf, np.minimum.accumulate(best)[:-1]))
    choices = np.zeros((len(at), len(items)), np.intp)
    loss, cost = best[at], np.zeros(len(at))
    for i in reversed(range(len(items))):
        choices[:, i] = taken[i][at]
        cost += costs[i][choices[:, i]]
        at = at - steps[i][choices[:, i]]
    order = np.lexsort((loss, cost))
    falling = np.append(np.inf, np.minimum.accumulate(loss[order])[:-1]) > loss[order]
    order = order[falling]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]
    return [_gather(items, choices[row]) for row in chosen]
