"""Budgets spent on a network: costs equal the prediction's, plans equal brute force where groups do not meet."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from core.choices import Choices
from core.errors import StudioError
from core.latency_table import LatencyTable
from core.layers import Feed, Group, Layer, Profile
from core.plan import key_levels, plan_rows, steps_of
from core.predict import costs
from core.recipe import Recipe, Step
from core.sensitivity_table import Cell, SensitivityTable
from tests.forecasts import make_table as full_table
from tests.profiles import resnet


def conv(name: str, c_in: int, c_out: int, group: str, feed: str) -> Layer:
    params = c_in * c_out * 9 + c_out
    macs = c_in * c_out * 9 * 64
    return Layer(
        name, "conv", params, macs, c_in, c_out, (3, 3), 1, True, (c_out, 8, 8), 0, group, (Feed(feed),), None,
        (c_in, 8, 8),
    )  # fmt: skip


def make_profile(open_trunk: bool) -> Profile:
    """Three blocks conv1 → conv2 whose trunk, fed by the stem, is one group; blocked, as with padded shortcuts."""
    layers, inner = [conv("stem", 3, 32, "stem", "input")], []
    for i in range(3):
        inner.append(f"{i}.conv1")
        layers += [conv(f"{i}.conv1", 32, 32, f"{i}.conv1", "stem"), conv(f"{i}.conv2", 32, 32, "stem", f"{i}.conv1")]
    trunk = ("stem", *[f"{i}.conv2" for i in range(3)])
    groups = (
        Group("input", 3, (), "The image."),
        Group("stem", 32, trunk, "" if open_trunk else "Padded."),
        *[Group(name, 32, (name,)) for name in inner],
    )
    return Profile(tuple(layers), groups, 0, sum(x.macs for x in layers), 0, 0, 0)


def make_table(profile: Profile) -> SensitivityTable:
    """Later layers are less sensitive; the trunk most."""
    cells = {}
    for i, group in enumerate(g for g in profile.groups if not g.blocked):
        for level in (0.25, 0.5, 0.75):
            kl = (8.0 if group.name == "stem" else 1.0) * level**2 / (i + 1) ** 2
            cells[group.name, "prune_channels", level] = Cell(group.name, "prune_channels", level, kl=kl)
    for i, layer in enumerate(profile.layers):
        for bits in (8.0, 4.0, 2.0):
            cells[layer.name, "quantize", bits] = Cell(layer.name, "quantize", bits, kl=4.0**-bits * (20 + i))
    return SensitivityTable({}, cells)


def choices(open_trunk: bool, levels: dict[str, tuple[float, ...]], **more: object) -> Choices:
    profile = make_profile(open_trunk)
    return Choices(profile, make_table(profile), levels, **more)  # type: ignore[arg-type]


INNER = tuple(f"{i}.conv1" for i in range(3))
WIDTHS = {"prune_channels": (0.25, 0.5, 0.75)}
BITS = {"quantize": (8.0, 4.0, 2.0)}


@pytest.mark.parametrize("open_trunk", [False, True])
def test_costs_equal_the_prediction(open_trunk: bool) -> None:
    """The same recipe through core.predict, which the techniques themselves are tested against."""
    made = choices(open_trunk, WIDTHS)
    steps = (Step("prune_channels", {"ratio": 0.5, "multiple": 1}), Step("factorize", {"rank": 0.2}), Step("quantize"))
    expected = costs(made.profile, Recipe(steps))
    plan = {(g.name, "prune_channels"): 0.5 for g in made.profile.groups if not g.blocked}
    plan |= {(x.name, "factorize"): 0.2 for x in made.profile.layers}
    plan |= {(x.name, "quantize"): 8.0 for x in made.profile.layers}
    macs, size, _ = made.cost_of(plan)
    assert macs == expected.macs
    assert size == pytest.approx(expected.weight_bytes, rel=0.05)  # scales of the inner factors are not counted here


def every_plan(made: Choices) -> list[dict[tuple[str, str], float]]:
    items = made.items({})
    names = [(x.name, x.technique) for x in items]
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*[x.levels for x in items])]


@pytest.mark.parametrize("share", [0.9, 0.7, 0.6, 0.5])
def test_best_plan_where_groups_do_not_meet(share: float) -> None:
    made = choices(False, WIDTHS)
    budget = share * made.cost_of({})[0]
    found = made.spend({"macs": budget})
    allowed = [made.loss_of(p) for p in every_plan(made) if made.cost_of(p)[0] <= budget]
    assert found.costs[0] <= budget
    assert found.loss == pytest.approx(min(allowed))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_good_plan_within_the_budget_where_they_do(share: float) -> None:
    """The trunk multiplies every other width: the fixed point is feasible and near the best of all 256 plans."""
    made = choices(True, WIDTHS)
    budget = share * made.cost_of({})[0]
    found = made.spend({"macs": budget})
    best = min(made.loss_of(p) for p in every_plan(made) if made.cost_of(p)[0] <= budget)
    assert found.costs[0] <= budget
    assert best <= found.loss + 1e-12
    assert found.loss <= 1.1 * best


def test_two_budgets_bind_together() -> None:
    made = choices(False, {**WIDTHS, **BITS})
    macs, size, _ = made.cost_of({})
    found = made.spend({"macs": 0.7 * macs, "weight_bytes": 0.15 * size})
    assert found.costs[0] <= 0.7 * macs
    assert found.costs[1] <= 0.15 * size
    alone = made.spend({"macs": 0.7 * macs})
    assert alone.loss < found.loss


def test_a_locked_layer_holds() -> None:
    free = choices(False, BITS)
    budget = {"weight_bytes": 0.15 * free.cost_of({})[1]}
    held = choices(False, BITS, locked={("2.conv2", "quantize"): 8.0})
    assert held.spend(budget).levels["2.conv2", "quantize"] == 8.0
    assert held.spend(budget).loss > free.spend(budget).loss


def test_out_of_reach() -> None:
    with pytest.raises(StudioError, match="out of reach"):
        choices(False, WIDTHS).spend({"macs": 1000.0})


def test_the_front_is_sorted_and_exact() -> None:
    made = choices(True, WIDTHS)
    path = made.front("macs")
    assert all(a.costs[0] < b.costs[0] and a.loss > b.loss for a, b in itertools.pairwise(path))
    assert path[-1].loss == 0
    for point in path:
        assert point.costs == made.cost_of(point.levels)


def test_latency_is_a_budget_with_a_table() -> None:
    """A runtime whose operators take 1 ms per million MACs, and whole models twice that plus 3 ms."""
    made = choices(False, WIDTHS)
    from core.latency_table import Operator
    from core.ranks import Shape

    known = Operator(Shape("linear", 1000, 1000))
    table = LatencyTable({known: 1.0}, slope=2.0, intercept=3.0)
    made = choices(False, WIDTHS, latency=table)
    whole = made.cost_of({})
    assert whole[2] == pytest.approx(3 + 2 * whole[0] / 1e6)
    found = made.spend({"latency_ms": 0.8 * whole[2]})
    assert found.costs[2] <= 0.8 * whole[2]
    assert found.costs[2] == pytest.approx(3 + 2 * found.costs[0] / 1e6)


def test_plans_travel_as_rows() -> None:
    plan = {("a", "quantize"): 4.0, ("b", "quantize"): 32.0, ("a", "prune_channels"): 0.5}
    assert key_levels(plan_rows(plan)) == {("a", "quantize"): 4.0, ("a", "prune_channels"): 0.5}


def test_a_budget_may_remove_a_whole_branch_and_counts_it_exactly() -> None:
    """Where the last block hardly matters it goes, at a cost equal to the prediction's; one that is locked stays."""
    profile = make_profile(False)
    groups = tuple(
        replace(g, branch=(g.name, g.name.replace("1", "2"))) if g.name in INNER else g for g in profile.groups
    )
    profile = replace(profile, groups=groups)
    cells = dict(make_table(profile).cells)
    for i, name in enumerate(INNER):
        cells[name, "prune_channels", 1.0] = Cell(name, "prune_channels", 1.0, kl=(10.0, 10.0, 0.01)[i])
    table = SensitivityTable({}, {k: replace(c, kl=c.kl if c.layer != INNER[2] else 0.01) for k, c in cells.items()})
    spender = Choices(profile, table, WIDTHS)
    plan = spender.spend({"macs": 0.75 * profile.macs})
    assert plan.levels[INNER[2], "prune_channels"] == 1.0
    recipe = Recipe(
        (Step("prune_channels", {"ratio": 0.0, "multiple": 1}, {n: v for (n, _), v in plan.levels.items()}),)
    )
    assert plan.costs[0] == costs(profile, recipe).macs
    held = replace(spender, locked={(INNER[2], "prune_channels"): 0.0}).spend({"macs": 0.75 * profile.macs})
    assert held.levels[INNER[2], "prune_channels"] == 0.0


def test_peak_memory_is_a_budget_of_every_moment() -> None:
    """One inner width a block, stem 16 of 32 x 32: the best plan of all that keep within, found by trying them all."""
    profile = resnet(1)
    made = Choices(profile, full_table(profile), {"prune_channels": (0.5,)})
    names = [g.name for g in profile.groups if (g.name, "prune_channels") in made.table.curves]
    full = made.peak_of({})
    for share in (0.9, 0.67, 0.5, 0.3):
        found = made.spend({"peak_bytes": share * full})
        plans = [
            {(name, "prune_channels"): level for name, level in zip(names, levels, strict=True)}
            for levels in itertools.product(*(made.options(name, "prune_channels") for name in names))
        ]
        best = min(made.loss_of(plan) for plan in plans if made.peak_of(plan) <= share * full)
        assert made.peak_of(found.levels) <= share * full
        assert found.loss == pytest.approx(best, rel=2e-3)


def test_a_branch_may_have_parts_that_are_no_rows_of_the_profile() -> None:
    """An activation that is a module of its own, as in files that were read from ONNX."""
    plain = resnet(1)
    groups = tuple(replace(g, branch=(*g.branch, f"{g.name}.relu")) if g.branch else g for g in plain.groups)
    found = []
    for profile in (plain, replace(plain, groups=groups)):
        made = Choices(profile, full_table(profile), {"prune_channels": (0.5,)})
        found.append(made.spend({"peak_bytes": 0.67 * made.peak_of({})}))
    assert found[0] == found[1]


def test_the_peak_of_a_plan_is_that_of_its_recipe() -> None:
    profile = resnet(3)
    made = Choices(profile, full_table(profile), {"prune_channels": (0.25, 0.5)})
    plan = {("conv1", "prune_channels"): 0.25, ("layer1.1.conv1", "prune_channels"): 1.0}
    plan |= {("layer2.0.conv2", "factorize"): 0.5, ("layer1.0.conv1", "quantize"): 8.0}
    assert made.peak_of(plan) == costs(profile, Recipe(steps_of(plan))).peak_bytes
    assert replace(made, integers=False).peak_of({("conv1", "quantize"): 8.0}) == made.peak_of({})


def test_memory_and_macs_at_once() -> None:
    profile = resnet(3)
    made = Choices(profile, full_table(profile), {"prune_channels": (0.25, 0.5, 0.75)})
    budgets = {"peak_bytes": 0.7 * made.peak_of({}), "macs": 0.4 * profile.macs}
    found = made.spend(budgets)
    assert found.costs[0] <= budgets["macs"]
    assert made.peak_of(found.levels) <= budgets["peak_bytes"]
    assert found.loss >= max(made.spend({kind: budget}).loss for kind, budget in budgets.items()) - 1e-9
    with pytest.raises(StudioError, match="out of reach"):
        made.spend({"peak_bytes": 1000.0})
