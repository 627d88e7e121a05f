"""What a budget buys: both plans keep within it, locks hold, gains are true changes, recipes keep their other steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.budget import allocated, gains, least_share, measured, uniform
from core.calibration import Point
from core.choices import Choices
from core.forecast import Forecast
from core.plan import plan_of, with_level, with_plan
from core.predict import costs
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, severity
from core.spending import KINDS
from tests.forecasts import lost, make_table, make_times
from tests.profiles import resnet

PROFILE = resnet(3)
POINTS = tuple(
    Point(x, lost(x), "calibration", mended) for mended in (False, True) for x in (0.01, 0.03, 0.1, 0.3, 1, 3)
)
KNOWN = Forecast(PROFILE, make_table(PROFILE), POINTS, 0.9)
WIDTHS = {"prune_channels": LEVELS["prune_channels"]}
BOTH = WIDTHS | {"quantize": (8.0,)}
START = Recipe((Step("prune_channels", {"ratio": 0.3, "criterion": "l1"}), Step("distill", {"epochs": 3})))


def choices(levels: dict[str, tuple[float, ...]] = WIDTHS, **more: object) -> Choices:
    return Choices(PROFILE, KNOWN.table, levels, multiple=8, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["macs", "weight_bytes"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_both_plans_keep_within_the_budget_and_say_what_the_recipe_costs(kind: str, share: float) -> None:
    made = choices(BOTH if kind == "weight_bytes" else WIDTHS)
    full = getattr(costs(PROFILE, Recipe()), kind)
    first, second = (make(KNOWN, made, START, {kind: share}) for make in (allocated, uniform))
    assert second is not None
    for offer in (first, second):
        exact = costs(PROFILE, offer.recipe)
        assert exact.exact
        assert getattr(exact, kind) <= share * full
        assert offer.costs[KINDS.index(kind)] == pytest.approx(getattr(exact, kind), rel=0.01)
        assert [s.technique for s in offer.recipe.steps][:2] == ["prune_channels", "distill"] or kind == "weight_bytes"
        assert "distill" in [s.technique for s in offer.recipe.steps]
    assert first.prediction.kl <= second.prediction.kl
    wanted = {key: level for key, level in first.plan.items() if severity(key[1], level)}
    got = {key: level for key, level in plan_of(PROFILE, first.recipe)[0].items() if severity(key[1], level)}
    assert got == wanted


def test_a_plan_keeps_the_options_of_its_step() -> None:
    offer = allocated(KNOWN, choices(), START, {"macs": 0.5})
    step = offer.recipe.steps[0]
    assert (step.record.criterion, step.record.ratio, step.record.multiple) == ("l1", 0.0, 8)
    assert len(step.layers) > 3
    assert step.title.endswith("on average")


def test_a_lock_holds_in_both_plans_and_the_rest_makes_room() -> None:
    cut = allocated(KNOWN, choices(), Recipe(), {"macs": 0.4}).plan
    key = next(key for key, level in cut.items() if level > 0)
    held = choices(locked={key: 0.0})
    for offer in (allocated(KNOWN, held, Recipe(), {"macs": 0.4}), uniform(KNOWN, held, Recipe(), {"macs": 0.4})):
        assert offer is not None
        assert plan_of(PROFILE, offer.recipe)[0].get(key, 0.0) == 0.0
        assert costs(PROFILE, offer.recipe).macs <= 0.4 * PROFILE.macs


def test_the_uniform_plan_removes_no_more_than_it_must() -> None:
    offer = uniform(KNOWN, choices(), Recipe(), {"macs": 0.5})
    assert offer is not None
    step = offer.recipe.steps[0]
    assert not step.layers
    gentler = Recipe((Step("prune_channels", {"ratio": step.record.ratio - 0.05}),))
    assert costs(PROFILE, gentler).macs > 0.5 * PROFILE.macs


def test_the_least_share_is_what_the_smallest_plan_needs() -> None:
    made = choices()
    narrowest = Recipe((Step("prune_channels", {"ratio": 1.0, "multiple": 8}),))  # no branches, 8 channels
    assert least_share(made, "macs") == pytest.approx(costs(PROFILE, narrowest).macs / PROFILE.macs)
    assert uniform(KNOWN, made, Recipe(), {"macs": 0.5 * least_share(made, "macs")}) is None


def test_latency_is_bought_with_int8_where_that_is_free() -> None:
    """Each operator takes half its time in int8, which costs next to no accuracy."""
    made = choices({"quantize": (8.0,)}, latency=make_times(PROFILE))
    offer = allocated(KNOWN, made, Recipe(), {"latency_ms": 0.6})
    assert [s.technique for s in offer.recipe.steps] == ["quantize"]
    assert offer.costs[2] <= 0.6 * made.cost_of({})[2]


def test_bits_below_8_are_those_of_the_weights_alone() -> None:
    plan = {("conv1", "quantize"): 8.0, ("fc", "quantize"): 4.0}
    made = with_plan(Recipe((Step("distill"), Step("quantize"))), plan)
    assert [s.technique for s in made.steps] == ["distill", "quantize_weights"]
    assert dict(made.steps[1].layers) == {"conv1": 8, "fc": 4}
    assert plan_of(PROFILE, made)[0] == plan


def test_gains_are_what_changing_the_recipe_gives() -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5, "multiple": 8}), Step("quantize")))
    made = choices({**BOTH, "quantize": (8.0,)})
    found = gains(KNOWN, made, recipe, "macs")
    assert 1 <= len(found) <= 3
    before, plain = KNOWN.predict(recipe), costs(PROFILE, recipe)
    assert before.value is not None
    for gain in found:
        taken = gain.taken(recipe)
        after = KNOWN.predict(taken)
        assert after.value == pytest.approx(before.value + gain.points)
        assert gain.points > 0
        assert costs(PROFILE, taken).macs - plain.macs == pytest.approx(gain.costs[0])


def test_a_locked_layer_is_no_gain() -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5, "multiple": 8}),))
    made = choices()
    first = gains(KNOWN, made, recipe, "macs", count=1)[0]
    held = replace(made, locked={first.key: first.before})
    assert first.key not in [g.key for g in gains(KNOWN, held, recipe, "macs", count=99)]


def test_one_layer_is_made_gentler_in_every_step_that_had_it_lower() -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5}), Step("distill"), Step("prune_channels", {"ratio": 0.25})))
    made = with_level(recipe, ("conv1", "prune_channels"), 0.25)
    assert [dict(s.layers) for s in made.steps] == [{"conv1": 0.25}, {}, {}]


def test_the_best_measured_plan_is_offered_where_it_fits_and_nothing_else_is_done() -> None:
    """Of three measured plans one is too large and one lost more; by hand: 0.9 - 0.02 ± 1.96 × 0.005."""
    groups = [g.name for g in PROFILE.groups if not g.blocked]
    plans = {share: {(name, "prune_channels"): share for name in groups} for share in (0.0625, 0.5, 0.75)}
    points = tuple(Point(share, drop, "calibration", True, plans[share], 0.005) for share, drop in
                   ((0.0625, 0.001), (0.5, 0.02), (0.75, 0.3)))  # fmt: skip
    known = Forecast(PROFILE, KNOWN.table, POINTS + points, 0.9)
    offer = measured(known, choices(), Recipe(), {"macs": 0.5})
    assert offer is not None
    assert offer.measured
    assert (offer.prediction.value, offer.prediction.low) == pytest.approx((0.88, 0.88 - 0.0098))
    assert costs(PROFILE, offer.recipe).macs <= 0.5 * PROFILE.macs
    assert {key: level for key, level in plan_of(PROFILE, offer.recipe)[0].items() if level} == plans[0.5]
    assert measured(known, choices(), START, {"macs": 0.5}) is None  # it also distils
    assert measured(known, choices(locked={(groups[0], "prune_channels"): 0.0}), Recipe(), {"macs": 0.5}) is None
    assert measured(known, choices(), Recipe(), {"macs": 0.01}) is None
    unrepaired = replace(known, points=tuple(replace(p, repaired=False) for p in points))
    assert measured(unrepaired, choices(), Recipe(), {"macs": 0.5}) is None  # the steps of a plan repair


def test_a_budget_of_memory_and_macs_is_kept_by_all_plans_as_the_recipe_says() -> None:
    full, made = costs(PROFILE, Recipe()), choices()
    limits = {"peak_bytes": 0.7, "macs": 0.5}
    offers = [make(KNOWN, made, Recipe(), limits) for make in (allocated, uniform)]
    for offer in offers:
        assert offer is not None
        exact = costs(PROFILE, offer.recipe)
        assert exact.peak_bytes == offer.cost("peak_bytes")
        assert exact.peak_bytes <= 0.7 * full.peak_bytes
        assert exact.macs <= 0.5 * full.macs
    assert least_share(made, "peak_bytes") < 0.3
