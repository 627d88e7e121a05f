"""Budgets that few choices share, as moments of memory are: of the stream that many blocks read, and one block.

Once the choices that such budgets have in common are made, each of them limits a single other choice: it strikes out
options. So the shared choices are tried one after the other, those first that promise the least loss (a Lagrangian
bound on the rest), and what remains is the knapsack of all other budgets. Exact where that is; linear programming alone
is far off here, since a branch frees its memory only when all of it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from core.allocate import Allocation, Item, allocate, prices_near
from core.allocate_several import GAP, NONE, SLACK
from core.errors import StudioError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FEW = 4  # choices that a budget depends on at most
TRIED = 2048  # ways to make the shared choices


@dataclass(frozen=True)
class Ties:
    """The budgets of few choices, the items that they share, and what is left of every item in each way to choose."""

    budgets: NDArray[np.intp]
    shared: Sequence[int]
    allowed: Sequence[Mask]  # of each item: (ways, options)

    def of_way(self, items: Sequence[Item], way: int) -> list[Item]:
        """The items with the options that are left."""
        return [_only(item, np.flatnonzero(mask[way])) for item, mask in zip(items, self.allowed, strict=True)]


def allocate_tied(
    items: Sequence[Item], budgets: Sequence[float | None], near: bool = False, beat: float = np.inf
) -> Allocation:
    """`core.allocate.allocate`, for budgets of which some depend on few items. Raises StudioError when nothing fits.

    With `near` the most promising way alone is looked at.
    """
    ties = _ties(items, np.array([np.inf if b is None else b for b in budgets], np.float64))
    if ties is None:
        return allocate(items, budgets, near, beat)
    rest = [None if k in ties.budgets else budget for k, budget in enumerate(budgets)]
    bounds = _bounds(items, rest, ties)
    best: Allocation | None = None
    for way in np.argsort(bounds, kind="stable"):
        if np.isinf(bounds[way]) or (best and (near or bounds[way] >= best.loss * (1 - GAP))):
            break
        try:
            found = allocate(ties.of_way(items, int(way)), rest, near)
        except StudioError:  # within the other budgets there is none of this way
            continue
        best = found if best is None or found.loss < best.loss else best
    if best is None:
        raise StudioError(NONE)
    return best


def _ties(items: Sequence[Item], ceiling: Array) -> Ties | None:
    """None where no budget depends on so few items, or there are too many ways to choose among those they share."""
    whole = [item.priced for item in items]
    costs = [c - c.min(0) for c in whole]
    depends = np.array([c.any(0) for c in costs])  # (items, budgets)
    few = np.flatnonzero(np.isfinite(ceiling) & (depends.sum(0) <= FEW))
    shared = _shared(depends[:, few])
    counts = [len(items[i].levels) for i in shared]
    if not len(few) or prod(counts) > TRIED:
        return None
    ways = np.indices(counts).reshape(len(shared), prod(counts))  # (shared items, ways): the option taken
    left = np.repeat((ceiling - np.sum([c.min(0) for c in whole], axis=0))[None, few], prod(counts), axis=0)
    for i, taken in zip(shared, ways, strict=True):
        left -= costs[i][taken][:, few]
    left += SLACK * np.maximum(np.abs(ceiling[few]), 1.0)
    fits: Mask = np.all(left >= 0, axis=1)
    allowed = []
    for i, cost in enumerate(costs):
        mask: Mask = np.repeat(fits[:, None], len(cost), axis=1)
        if i in shared:
            mask &= ways[shared.index(i), :, None] == np.arange(len(cost))
        else:
            for at in np.flatnonzero(depends[i, few]):
                mask &= cost[:, few[at]] <= left[:, at, None]
        allowed.append(mask)
    return Ties(few, shared, allowed)


def _shared(depends: Mask) -> list[int]:
    """Items without which each budget depends on one at most: the one that most are left to depend on comes first."""
    depends, found = depends.copy(), []
    while (crowded := depends[:, depends.sum(0) > 1]).any():
        found.append(int(crowded.sum(1).argmax()))
        depends[found[-1]] = False
    return found


def _bounds(items: Sequence[Item], budgets: Sequence[float | None], ties: Ties) -> Array:
    """(ways,) The least that each way loses; infinite where an item has no option left."""
    prices = [np.zeros(len(budgets))]
    for k, budget in enumerate(budgets):
        if budget is not None:
            prices += [price * np.eye(len(budgets))[k] for price in prices_near(items, k, budget)]
    several = np.array(prices)  # (p, budgets)
    ceiling = np.array([0.0 if budget is None else budget for budget in budgets])
    total = -(several @ ceiling)
    for item, mask in zip(items, ties.allowed, strict=True):
        priced = item.lost + several @ item.priced.T  # (p, options)
        total = total + np.where(mask[:, None], priced, np.inf).min(2)
    bounds: Array = total.max(1)
    return bounds


def _only(item: Item, at: NDArray[np.intp]) -> Item:
    if len(at) == len(item.levels):
        return item
    levels, losses = (tuple(row[j] for j in at) for row in (item.levels, item.losses))
    return replace(item, levels=levels, losses=losses, costs=tuple(item.costs[j] for j in at))
