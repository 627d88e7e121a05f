"""Budgets that few choices share: exact plans against brute force over every combination."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import allocate_tied as tied
from core.allocate import Item, allocate
from core.errors import StudioError
from tests.test_allocate import every_plan, item


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Item], list[float | None]]:
    """Up to six items, one budget of all or none of them, and up to four that a trunk and one item share."""
    count, moments = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    members = [{0, *rng.choice(count, 2)} for _ in range(moments)]
    items = []
    for i in range(count):
        rows = rng.uniform(0, 4, (rng.integers(1, 5), 2 + moments)).round(int(rng.integers(0, 3)))
        rows[:, 2:] *= [i in some for some in members]
        items.append(item(f"x{i}", *[(j, *row) for j, row in enumerate(rows.tolist())]))
    costs = np.array([cost for _, cost in every_plan(items)])
    shares = rng.uniform(0, 1, 1 + moments)
    budgets: list[float | None] = (costs.min(0) + shares * np.ptp(costs, axis=0)).tolist()
    return items, [budgets[0] if draw(st.booleans()) else None, *budgets[1:]]


@settings(max_examples=200, deadline=None)
@given(problems())
def test_exact_against_brute_force(problem: tuple[list[Item], list[float | None]]) -> None:
    items, budgets = problem
    ceiling = np.array([np.inf if b is None else b for b in budgets])
    allowed = [loss for loss, cost in every_plan(items) if np.all(cost <= ceiling + 1e-9)]
    if not allowed:
        with pytest.raises(StudioError):
            tied.allocate_tied(items, budgets)
        return
    found = tied.allocate_tied(items, budgets)
    assert np.all(np.array(found.costs) <= ceiling + 1e-6)
    assert found.loss == pytest.approx(min(allowed), abs=1e-6, rel=tied.GAP)
    assert {name for name, _ in found.levels} == {x.name for x in items}


def blocks(count: int = 20, seed: int = 0) -> tuple[list[Item], list[float | None]]:
    """A trunk and the blocks that it feeds: what is in memory while one runs is the trunk and that block."""
    rng = np.random.default_rng(seed)
    widths = np.arange(12, -1, -1)
    names = ["trunk", *[f"block{i}" for i in range(count)]]
    items = []
    for i, name in enumerate(names):
        hurt = (20.0 if i == 0 else 1.0) * rng.lognormal()
        at_once = np.ones(count) if i == 0 else np.eye(count)[i - 1]
        kept = widths[:-1] if i == 0 else widths
        items.append(item(name, *[(12 - w, hurt * (12 - w) ** 2, float(w), *(w * at_once)) for w in kept]))
    return items, [12.0 * len(names) * 0.6, *[15.0] * count]


def test_a_trunk_and_its_blocks_as_the_integer_programme_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    items, budgets = blocks()
    found = tied.allocate_tied(items, budgets)
    ties = tied._ties(items, np.array(budgets))
    assert ties is not None
    assert len(ties.budgets) == 20
    assert ties.shared == [0]  # the trunk
    monkeypatch.setattr(tied, "TRIED", 0)  # too many ways: linear programming then
    assert tied._ties(items, np.array(budgets)) is None
    assert tied.allocate_tied(items, budgets).loss >= found.loss * (1 - tied.GAP)
    assert allocate(items, budgets).loss == pytest.approx(found.loss, rel=0.1)


def test_no_width_of_the_trunk_is_better() -> None:
    """Nor is the one that promises most always the best: in this draw it loses 1 % more."""
    items, budgets = blocks(8, seed=10)
    found, alone = tied.allocate_tied(items, budgets), []
    for level in items[0].levels:
        with suppress(StudioError):
            alone.append(tied.allocate_tied([items[0].only(level), *items[1:]], budgets).loss)
    assert found.loss == pytest.approx(min(alone), rel=tied.GAP)
    assert tied.allocate_tied(items, budgets, near=True).loss > found.loss * 1.005


def test_near_looks_at_the_most_promising_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    items, budgets = blocks()
    solved = []

    def counted(*args: object) -> object:
        solved.append(args)
        return allocate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tied, "allocate", counted)
    near = tied.allocate_tied(items, budgets, near=True)
    assert len(solved) == 1
    assert tied.allocate_tied(items, budgets).loss <= near.loss


def test_what_cannot_fit_is_refused() -> None:
    items, budgets = blocks(3)
    with pytest.raises(StudioError, match="No plan keeps within all budgets together"):
        tied.allocate_tied(items, [budgets[0], 0.5, 15.0, 15.0])  # the trunk keeps one channel at least
