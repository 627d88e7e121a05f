"""What budgets buy: the exact plan beside the same share everywhere, and the single changes that pay best.

Losses add up only near the original, so the uniform plan always stands beside the allocated one, each with its own
prediction, and so does the best of the plans that were measured whole. All of these only build recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import inf

from core.calibration import CALIBRATION, Point
from core.catalog import CATALOG
from core.choices import Choices
from core.errors import RecipeError
from core.forecast import Forecast, Prediction
from core.layer_price import Costs
from core.plan import measured_as, plan_of, repaired, steps_of, with_level, with_plan
from core.recipe import Recipe
from core.sensitivity_table import Key, Plan, severity
from core.spending import KINDS, PEAK

SHARES = tuple(i / 20 for i in range(20))  # of the channels, that a uniform plan may remove
Z = 1.96  # standard errors of a 95 % interval
Limits = Mapping[str, float]  # what is limited, of KINDS or peak memory → share of the original's cost
LEAST_POINTS = 0.0005  # a gain below this share of the images is none


@dataclass(frozen=True)
class Offer:
    """A recipe that keeps within a budget."""

    recipe: Recipe
    plan: Plan
    costs: Costs  # in the order of KINDS
    prediction: Prediction
    measured: bool = False  # the accuracy is no prediction but was measured, with its 95 % interval
    peak_bytes: float = inf

    def cost(self, kind: str) -> float:
        return self.peak_bytes if kind == PEAK else self.costs[KINDS.index(kind)]


@dataclass(frozen=True)
class Gain:
    """One layer or group made gentler, and what that buys and costs."""

    key: Key
    level: float
    before: float
    points: float  # share of the images won
    costs: Costs  # what it adds, in the order of KINDS

    def taken(self, recipe: Recipe) -> Recipe:
        """The recipe with this change made."""
        return with_level(recipe, self.key, self.level)


def least_share(choices: Choices, kind: str) -> float:
    """What the smallest plan leaves of a cost, as a share of the original's."""
    k = 0 if kind == PEAK else KINDS.index(kind)  # what is narrowest takes least memory
    plan = {
        (x.name, x.technique): x.levels[min(range(len(x.levels)), key=lambda j: x.costs[j][k])]
        for x in choices.items(choices.locked)
    }
    return choices.of(kind, plan) / choices.of(kind, {})


def budgets_of(choices: Choices, limits: Limits) -> dict[str, float]:
    """Shares of the original's costs as the costs themselves."""
    return {kind: share * choices.of(kind, {}) for kind, share in limits.items()}


def allocated(forecast: Forecast, choices: Choices, recipe: Recipe, limits: Limits) -> Offer:
    """The plan of smallest summed KL within these shares of the original's costs. Raises StudioError if none fits."""
    found = choices.spend(budgets_of(choices, limits))
    made = with_plan(recipe, _own(choices, found.levels), {t: float(CATALOG[t].neutral) for t in choices.levels})
    return Offer(made, found.levels, found.costs, forecast.predict(made), peak_bytes=choices.peak_of(found.levels))


def _own(choices: Choices, plan: Plan) -> dict[Key, float]:
    """Of a plan what the techniques decide that the budget may use."""
    return {key: level for key, level in plan.items() if key[1] in choices.levels}


def uniform(forecast: Forecast, choices: Choices, recipe: Recipe, limits: Limits) -> Offer | None:
    """The same setting everywhere but where it is locked, of smallest summed KL; None if none fits."""
    budgets = budgets_of(choices, limits)
    dials = [t for t in choices.levels if t != "prune_channels"]
    best: tuple[float, Recipe, Plan] | None = None
    for picked in product(*((float(CATALOG[t].neutral), *choices.levels[t]) for t in dials)):
        found = _least_removed(choices, recipe, budgets, dict(zip(dials, picked, strict=True)))
        if found and (best is None or found[0] < best[0]):
            best = found
    if best is None:
        return None
    _, made, plan = best
    return Offer(made, plan, choices.cost_of(plan), forecast.predict(made), peak_bytes=choices.peak_of(plan))


def measured(forecast: Forecast, choices: Choices, recipe: Recipe, limits: Limits) -> Offer | None:
    """Of the plans that calibration measured whole, the one within the budget that lost least; None where none fits.

    Among them are uniform and weight-error plans, which are better where the sum of losses fails. A recipe that also
    does something else was not measured, nor was one with other levels held.
    """
    if any(measured_as(step.technique) not in choices.levels for step in recipe.active):
        return None
    budgets = budgets_of(choices, limits)
    found: list[tuple[Point, Recipe, Plan]] = []
    for point in forecast.points:
        plan = point.plan
        if plan is None or point.source != CALIBRATION or not {key[1] for key in plan} <= set(choices.levels):
            continue
        if any(plan.get(key, CATALOG[key[1]].neutral) != level for key, level in choices.locked.items()):
            continue
        with suppress(RecipeError):  # bits that only weights can have
            made = Recipe(steps_of(plan))
            if _keeps(choices, plan, budgets) and repaired(made) == point.repaired:
                found.append((point, made, plan))
    if not found:
        return None
    point, made, plan = min(found, key=lambda row: row[0].drop)
    value = forecast.baseline - point.drop
    low, high = (min(1.0, max(0.0, value + side * Z * point.error)) for side in (-1, 1))
    prediction = Prediction(value, low, high, point.kl, False)
    return Offer(made, plan, choices.cost_of(plan), prediction, measured=True, peak_bytes=choices.peak_of(plan))


def _keeps(choices: Choices, plan: Plan, budgets: Mapping[str, float]) -> bool:
    costs = choices.cost_of(plan)
    return all(choices.of(kind, plan, costs) <= budget * (1 + 1e-9) for kind, budget in budgets.items())


def _least_removed(
    choices: Choices, recipe: Recipe, budgets: Mapping[str, float], everywhere: dict[str, float]
) -> tuple[float, Recipe, Plan] | None:
    """(summed KL, recipe, plan) of the smallest share of channels whose removal fits; None if none does."""
    widths = "prune_channels" in choices.levels
    low, high, found = 0, len(SHARES) - 1 if widths else 0, None
    while low <= high:
        middle = (low + high) // 2
        dials = {**everywhere, "prune_channels": SHARES[middle]} if widths else everywhere
        made = with_plan(recipe, _own(choices, choices.locked), dials)
        plan, _ = plan_of(choices.profile, made)
        if _keeps(choices, plan, budgets):
            found, high = (choices.loss_of(plan), made, plan), middle - 1
        else:
            low = middle + 1
    return found


def gains(forecast: Forecast, choices: Choices, recipe: Recipe, kind: str, count: int = 3) -> list[Gain]:
    """The changes of one layer of `recipe` that win most for each unit of cost `kind`; free ones first."""
    plan, _ = plan_of(choices.profile, recipe)
    now, k, mended = forecast.predict(recipe), KINDS.index(kind), repaired(recipe)
    found: dict[str, tuple[float, Gain]] = {}
    sums, trait = forecast.sums(plan, mended), forecast.trait(plan, mended)
    for key, level in plan.items():
        if now.value is None:
            continue
        others = sums[key[1]] - forecast.term(key, level, mended)
        for gentler in choices.options(*key):
            if severity(key[1], gentler) >= severity(key[1], level):
                continue
            changed = {**sums, key[1]: others + forecast.term(key, gentler, mended)}
            after = forecast.predict_kl(forecast.total(changed, mended), mended, trait)
            costs = choices.change(plan, key, gentler)
            if after.value is None or after.value - now.value < LEAST_POINTS:
                continue
            gain = Gain(key, gentler, level, after.value - now.value, costs)
            price = gain.points / costs[k] if costs[k] > 0 else float("inf")
            if key[0] not in found or price > found[key[0]][0]:
                found[key[0]] = price, gain
    ranked = sorted(found.values(), key=lambda pair: (pair[0], pair[1].points), reverse=True)
    return [gain for _, gain in ranked[:count]]
