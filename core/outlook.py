"""Recipes that were not run, placed on the axes of the chart: what they cost, what accuracy is predicted, and the best
that each budget may buy.

MACs, parameters and, in float, memory are exact. A file's size is its weights, exact, and the graph around them, taken
from the original's file and from what exported int8 layers need. Latency is a share of the original's, from the table
of operator times. The front is one solve over channel groups and, where bits change what is spent, over 8-bit layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from core.choices import Choices
from core.errors import StudioError
from core.forecast import FEWEST, Forecast, Prediction
from core.latency_table import LatencyTable
from core.layers import Profile
from core.plan import steps_of
from core.predict import costs
from core.recipe import Recipe
from core.recipe_latency import predict_latency
from core.sensitivity_table import LEVELS, Plan
from core.spending import PEAK

INT8_LAYER_BYTES = 1500  # of nodes and scales around one int8 layer, seen in exported files
WIDTHS = LEVELS["prune_channels"]
SEARCHES = {  # axis → what is spent, and the levels it is spent on
    "macs": ("macs", {"prune_channels": WIDTHS}),
    "params": ("weight_bytes", {"prune_channels": WIDTHS}),
    "peak_bytes": (PEAK, {"prune_channels": WIDTHS}),
    "size_bytes": ("weight_bytes", {"prune_channels": WIDTHS, "quantize": (8.0,)}),
    "latency": ("latency_ms", {"prune_channels": WIDTHS, "quantize": (8.0,)}),
}
COUNT = 96  # plans asked of the solver
SHARES = tuple(x / 100 for x in range(20, 100, 8))  # of the original's memory, each a solve of its own
STEPS = 16  # a front is thinned to moves of at least one part in so many, of its cost or of its accuracy


@dataclass(frozen=True)
class Outlook:
    """A recipe, its cost in the axis's own unit (latency: a share of the original's) and its predicted accuracy."""

    recipe: Recipe
    cost: float
    prediction: Prediction


def cost_on(profile: Profile, recipe: Recipe, axis: str, latency: LatencyTable | None = None) -> float | None:
    """What a recipe costs on an axis of the chart; None where that is not known before it is run."""
    if axis == "latency":
        speed = predict_latency(profile, recipe, latency) if latency else None
        return 1 / speed.speedup if speed and speed.speedup else None
    cost = costs(profile, recipe)
    if axis != "size_bytes":
        found = getattr(cost, axis)
        return None if found is None else float(found)
    graph = profile.file_bytes - costs(profile, Recipe()).weight_bytes
    integer = any(step.technique == "quantize" and step.record.mode != "float16" for step in recipe.active)
    return float(cost.weight_bytes + graph + INT8_LAYER_BYTES * len(profile.tunable) * integer)


def front(forecast: Forecast, axis: str, multiple: int = 8, latency: LatencyTable | None = None) -> tuple[Outlook, ...]:
    """The best predicted plans by rising cost, the original last; () where nothing can be predicted.

    Widths are multiples of `multiple`, as the sliders' are.
    """
    kind, levels = SEARCHES[axis]
    if not any(len(forecast.calibration(repair).points) >= FEWEST for repair in (False, True)):
        return ()
    if axis == "latency" and latency is None:
        return ()
    choices = Choices(forecast.profile, forecast.table.repaired, levels, latency=latency, multiple=multiple)
    if not choices.items({}):  # nothing that could be spent on is measured yet
        return ()
    made = []
    for plan in _plans(choices, kind):
        recipe = Recipe(steps_of(plan))
        cost, prediction = cost_on(forecast.profile, recipe, axis, latency), forecast.predict(recipe)
        if cost is not None and prediction.value is not None:
            made.append(Outlook(recipe, cost, prediction))
    return thin(made)


def _plans(choices: Choices, kind: str) -> Iterator[Plan]:
    """By rising cost, the plan that changes nothing last."""
    if kind != PEAK:
        yield from (found.levels for found in choices.front(kind, COUNT))
        return
    full = choices.peak_of({})
    for share in SHARES if np.isfinite(full) else ():
        with suppress(StudioError):  # out of reach
            yield choices.spend({PEAK: share * full}).levels
    yield {}


def thin(made: Sequence[Outlook]) -> tuple[Outlook, ...]:
    """Both ends, and between them each plan that is a visible step from the one kept before it."""
    if len(made) < 3:
        return tuple(made)
    rows = np.array([(x.cost, x.prediction.value) for x in made], np.float64)
    least = np.maximum(np.ptp(rows, axis=0), 1e-30) / STEPS
    kept = [0]
    for i in range(1, len(made) - 1):
        if np.any(np.abs(rows[i] - rows[kept[-1]]) >= least):
            kept.append(i)
    return tuple(made[i] for i in (*kept, len(made) - 1))
