"""Exact plans against brute force over every combination; locks, fronts and cards by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import allocate_several
from core.allocate import Item, allocate, front, lock
from core.errors import StudioError


def item(name: str, *options: tuple[float, ...], technique: str = "quantize") -> Item:
    """Options as (level, loss, cost, …)."""
    levels, losses, costs = zip(*[(row[0], row[1], row[2:]) for row in options], strict=True)
    return Item(name, technique, levels, losses, costs)


NUMBER = st.one_of(st.integers(0, 6).map(float), st.floats(0.01, 10))
PROBLEMS = st.integers(1, 2).flatmap(
    lambda kinds: st.tuples(
        st.lists(st.lists(st.tuples(*[NUMBER] * (kinds + 1)), min_size=1, max_size=4), min_size=1, max_size=5),
        st.tuples(*[st.integers(0, 20).map(lambda n: n / 20)] * kinds),
    )
)


def every_plan(items: list[Item]) -> list[tuple[float, np.ndarray]]:
    """(loss, costs) of all combinations."""
    rows = itertools.product(*[range(len(x.levels)) for x in items])
    return [
        (
            sum(x.losses[j] for x, j in zip(items, row, strict=True)),
            np.sum([x.costs[j] for x, j in zip(items, row, strict=True)], axis=0),
        )
        for row in rows
    ]


@settings(max_examples=100, deadline=None)
@given(PROBLEMS)
def test_exact_against_brute_force(problem: tuple[list[list[tuple[float, ...]]], tuple[float, ...]]) -> None:
    items = [item(f"x{i}", *[(j, *row) for j, row in enumerate(rows)]) for i, rows in enumerate(problem[0])]
    plans = every_plan(items)
    costs = np.array([c for _, c in plans])
    budgets = costs.min(0) + np.array(problem[1]) * (costs.max(0) - costs.min(0))
    allowed = [loss for loss, cost in plans if np.all(cost <= budgets * (1 + 1e-9) + 1e-9)]
    if not allowed:  # each budget can be met, but not both together
        with pytest.raises(StudioError, match="together"):
            allocate(items, budgets)
        return
    found = allocate(items, tuple(budgets))
    assert np.all(np.array(found.costs) <= budgets * (1 + 1e-6) + 1e-6)
    assert found.loss == pytest.approx(min(allowed), abs=1e-6, rel=1e-3 if len(budgets) > 1 else 1e-9)


@settings(max_examples=60, deadline=None)
@given(PROBLEMS)
def test_the_front_holds_every_trade_up_to_its_grid(problem: tuple[list[list[tuple[float, ...]]], object]) -> None:
    items = [item(f"x{i}", *[(j, *row) for j, row in enumerate(rows)]) for i, rows in enumerate(problem[0])]
    plans, found = every_plan(items), front(items)
    slack = sum(max(c[0] for c in x.costs) - min(c[0] for c in x.costs) for x in items) / 2048 * len(items) + 1e-9
    for loss, cost in plans:
        assert any(p.loss <= loss + 1e-9 and p.costs[0] <= cost[0] + slack for p in found)
    assert all(a.costs[0] < b.costs[0] and a.loss > b.loss for a, b in itertools.pairwise(found))
    for plan in found:
        again = allocate(lock(items, plan.levels), (None,) * len(plan.costs))
        assert again.loss == pytest.approx(plan.loss)


def test_exact_where_greedy_is_not() -> None:
    """Eight items of three options without order, against all 6,561 plans at a time."""
    rng = np.random.default_rng(0)
    for _ in range(25):
        losses, costs = rng.uniform(size=(8, 3)), rng.uniform(size=(8, 3))
        items = [item(f"x{i}", *[(j, losses[i, j], costs[i, j]) for j in range(3)]) for i in range(8)]
        rows = np.array(list(itertools.product(range(3), repeat=8)))
        loss = sum(losses[i, rows[:, i]] for i in range(8))
        cost = sum(costs[i, rows[:, i]] for i in range(8))
        for budget in (2.5, 3.0, 3.5, 4.0):
            if (cost <= budget).any():
                assert allocate(items, (budget,)).loss == pytest.approx(loss[cost <= budget].min(), rel=1e-9)


TWO = [item("a", (32, 0.0, 8.0), (8, 0.1, 2.0), (4, 0.9, 1.0)), item("b", (32, 0.0, 4.0), (8, 0.3, 1.0))]


def test_by_hand() -> None:
    assert allocate(TWO, (6.0,)).levels == {("a", "quantize"): 8, ("b", "quantize"): 32}
    assert allocate(TWO, (3.0,)).loss == pytest.approx(0.4)
    assert allocate(TWO, (None,)).loss == 0.0
    assert [p.costs[0] for p in front(TWO)] == [2.0, 3.0, 6.0, 12.0]


def test_a_locked_item_holds_and_the_rest_makes_room() -> None:
    held = allocate(lock(TWO, {("b", "quantize"): 32}), (5.0,))
    assert held.levels == {("a", "quantize"): 4, ("b", "quantize"): 32}
    with pytest.raises(StudioError, match="b cannot be locked at 6; accepted are 32, 8"):
        lock(TWO, {("b", "quantize"): 6})


def test_an_impossible_budget_names_what_it_takes() -> None:
    with pytest.raises(StudioError, match="The budget 1 is out of reach: the smallest plan needs 2"):
        allocate(TWO, (1.0,))


def big(kinds: int) -> list[Item]:
    """60 layers × 12 options whose losses grow as their costs fall, of very different sizes."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(60):
        size, harm = rng.lognormal(10, 1.5, kinds), rng.lognormal(-3, 2)
        kept = np.sort(rng.uniform(0.1, 1, 12))[::-1]
        items.append(item(f"x{i}", *[(j, harm * (1 / k - 1) ** 2, *np.floor(size * k)) for j, k in enumerate(kept)]))
    return items


@pytest.mark.parametrize("kinds", [1, 2])
def test_sixty_layers_of_twelve_options(kinds: int) -> None:
    """Exact whatever the order of the items."""
    items = big(kinds)
    full = np.sum([x.costs[0] for x in items], axis=0)
    budget = tuple(full * 0.5)
    plan = allocate(items, budget)
    assert all(a <= b for a, b in zip(plan.costs, budget, strict=True))
    assert allocate(items[::-1], budget).loss == pytest.approx(plan.loss, rel=1e-9 if kinds == 1 else 1e-3)
    if kinds == 1:  # the second column can never bind: HiGHS must agree with dynamic programming
        twice = [Item(x.name, x.technique, x.levels, x.losses, tuple((c[0], c[0]) for c in x.costs)) for x in items]
        assert allocate(twice, (budget[0], budget[0] * 2)).loss == pytest.approx(plan.loss, rel=1e-3)


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (0.7, 0.4, 0.5), (0.3, 0.9, 0.6)])
def test_several_budgets_against_the_integer_programme(
    kinds: int, shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = big(kinds)
    budget = np.sum([x.costs[0] for x in items], axis=0) * shares[:kinds]
    plan = allocate(items, tuple(budget))
    assert np.all(np.array(plan.costs) <= budget)
    monkeypatch.setattr(allocate_several, "_rounded", lambda *_: None)  # then HiGHS decides alone
    assert plan.loss <= allocate(items, tuple(budget)).loss * 1.01


def test_budgets_that_fit_alone_but_not_together_are_refused() -> None:
    crossed = [item("a", (0, 0.0, 0.0, 4.0), (1, 0.0, 4.0, 0.0))]
    with pytest.raises(StudioError, match="No plan keeps within all budgets together"):
        allocate(crossed, (2.0, 2.0))
