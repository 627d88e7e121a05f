"""Whole networks that were measured → points of the forecast: calibration plans, and what the user ran.

A plan is measured on validation images. Where the network was probably trained on them, small losses are three times as
large on others, so that what is expected of unseen images stands in its place (`core/engine/judge.py`). That has no
noise of a count, and of 53 networks that lose a point or more 41 were within 15 % of it; repaired ones of ResNet-56,
which is right on 99.95 % of its validation images, lose up to a third less than expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import hypot, sqrt
from typing import Any

from core.calibration import CALIBRATION, Point
from core.candidate import Candidate, Scores
from core.errors import RecipeError
from core.layers import Profile
from core.plan import key_levels, plan_of, repaired
from core.recipe import Recipe
from core.sensitivity_table import SensitivityTable, sum_kl

DONE = "finished"  # in the first line of the calibration file, once nothing is left to measure
JUDGE = 3  # version of what is expected of margins: plans that another judged are measured anew
UNSEEN_BIAS = 0.15  # of what is expected of unseen images, that it may differ from their count


def calibration_point(table: SensitivityTable, row: Mapping[str, Any], measure: str) -> Point | None:
    """A line of the calibration file; None where the table lacks one of its settings."""
    plan, lost = key_levels(row["plan"]), row["drop"]
    kl, missing = sum_kl(table, plan)
    if missing or measure not in lost:
        return None
    made = partial(Point, kl, source=CALIBRATION, repaired=row.get("repaired", False), plan=plan)
    if f"unseen_{measure}" in lost:
        drop, images = lost[f"unseen_{measure}"], row["unseen"]
        error = hypot(_error(drop, lost["unseen_agreement"], images), UNSEEN_BIAS * drop)
        return made(drop, error=error, images=images)
    images = row.get("images", 0)
    error = _error(lost[measure], lost["agreement"], images or 1)
    return made(lost[measure], error=error, expected=lost.get(f"expected_{measure}"), images=images)


def _error(lost: float, changed: float, images: int) -> float:
    """Standard error of a loss counted over so many images, of whose answers a share changed."""
    return sqrt(max(changed - lost**2, 0.0) / images)


def run_point(
    table: SensitivityTable, profile: Profile, name: str, candidate: Candidate, baseline: Scores
) -> Point | None:
    """A candidate as a measurement; None where it was trained or ranked, which the table knows nothing about."""
    try:
        recipe = Recipe.from_yaml(candidate.recipe)
        plan, reasons = plan_of(profile, recipe)
    except RecipeError:  # made by another version of the studio
        return None
    kl, missing = sum_kl(table, plan)
    if reasons or missing or not plan:
        return None
    if baseline.accuracy and candidate.scores.accuracy:
        return Point(kl, baseline.accuracy.value - candidate.scores.accuracy.value, name, repaired(recipe), plan)
    return Point(kl, 1 - candidate.scores.agreement.value, name, repaired(recipe), plan)
