"""Recipe → accuracy with an interval, before anything is run. NumPy only.

The KL divergences of a recipe's settings, each measured alone, add up (`core/nats.py`), and `core/calibration.py` turns
nats into points. Channels removed from many layers of a deep network lose more together than the sum of each alone, so
that it is more nearly the roots that add up, repaired or not: of ResNet-56 with an eighth of the channels of every
layer gone and repaired, 92.3 % are left, and a plain sum foretold 90.1 to 91.1. Plans that repair what remains have a
map of their own: they lose far less at the same KL, and how much less depends on the technique. Both are what makes the
measured plans predict each other best. Everything the user runs joins the measurements, and tells most of what is like
it (`core/alike.py`). Beyond the largest it says so.

    models/<id>/calibration-<data id>.jsonl    one line per measured plan: its settings and what it lost
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.calibration import CALIBRATION, Array, Calibration, Point
from core.errors import RecipeError
from core.layers import Profile
from core.measured_plans import DONE, JUDGE, calibration_point, run_point
from core.nats import WAYS, Nats, Way, Ways, total
from core.plan import plan_of, repaired
from core.recipe import Recipe
from core.sensitivity_table import Key, Plan, SensitivityTable, read_lines, read_table, sum_kl
from core.workspace import Workspace

FEWEST = 6  # measurements below which no number is shown
ROUNDS = 2  # over the techniques, one after the other: all combinations would take five times as long
NOTED = 0.02  # losses that are small against this are alike


@dataclass(frozen=True)
class Prediction:
    """A predicted accuracy (or agreement without labels), a share; None where nothing honest can be said."""

    value: float | None
    low: float | None
    high: float | None
    kl: float
    extrapolating: bool  # beyond the largest measured KL
    reason: str = ""  # why there is no value, or what it leaves out


@dataclass(frozen=True)
class Check:
    """One measurement beside what the others predict for it."""

    point: Point
    predicted: float  # loss
    half_width: float


@dataclass(frozen=True)
class Track:
    """How right the forecast has been: each measurement predicted from all others."""

    error: float  # mean absolute
    rank_correlation: float
    coverage: float  # share within the interval
    count: int


@dataclass(frozen=True)
class Forecast:
    """`baseline` is the original's own verified accuracy, or 1 where `measure` is agreement."""

    profile: Profile
    table: SensitivityTable
    points: tuple[Point, ...]
    baseline: float
    measure: str = "accuracy"
    finished: bool = True  # False while plans are still to be measured
    images: int = 0  # of the test part, over which a predicted accuracy will be counted; 0: not known
    remembered: float | None = None  # accuracy on validation images that the network was probably trained on

    def predict(self, recipe: Recipe) -> Prediction:
        """Under 5 ms for 60 layers."""
        try:
            plan, reasons = plan_of(self.profile, recipe)
        except RecipeError as error:
            return Prediction(None, None, None, 0.0, False, str(error))
        return self.predict_plan(plan, repaired(recipe), "; ".join(reasons))

    def predict_plan(self, plan: Plan, repair: bool = False, reason: str = "") -> Prediction:
        kl, missing = sum_kl(self.table, plan)
        if missing:
            return Prediction(None, None, None, kl, False, f"{missing[0][0]} is not measured yet ({missing[0][1]})")
        return self.predict_kl(self.total(self.sums(plan, repair), repair), repair, self.trait(plan, repair), reason)

    def predict_kl(self, kl: float, repair: bool = False, trait: Array | None = None, reason: str = "") -> Prediction:
        """Of any plan whose settings sum up to `kl` nats, spent as `trait` says."""
        if kl == 0:
            return Prediction(self.baseline, self.baseline, self.baseline, 0.0, False, reason)
        known = self.calibration(repair)
        if len(known.points) < FEWEST:
            few = f"rank only: {len(known.points)} of at least {FEWEST} whole-network measurements are done"
            return Prediction(None, None, None, kl, False, few)
        drop, wide = known.at(kl, trait)
        best = min(1.0, self.baseline + known.width(0.0))  # no damage makes a network better, but for the count's noise
        low, high = (min(best, max(0.0, self.baseline - drop + side * wide)) for side in (-1, 1))
        return Prediction(max(0.0, self.baseline - drop), low, high, kl, kl > known.kl.max(), reason)

    def calibration(self, repair: bool) -> Calibration:
        return self._calibrations[repair]

    @cached_property
    def _calibrations(self) -> tuple[Calibration, Calibration]:
        plain, mended = (self._with(repair, self.ways(repair)) for repair in (False, True))
        return plain, mended

    def _with(self, repair: bool, ways: Ways) -> Calibration:
        nats, rows = self._nats[repair], self._rows[repair]
        found = (p for p in self.points if p.repaired == repair)
        kls = zip(found, nats.totals(rows, ways).tolist(), strict=True)
        points = tuple(replace(p, kl=kl) if p.plan else p for p, kl in kls)
        return Calibration(points, self.images, nats.traits(rows, ways))

    @cached_property
    def _nats(self) -> tuple[Nats, Nats]:
        return Nats(self.table), Nats(self.table.repaired)

    @cached_property
    def _rows(self) -> tuple[Array, Array]:
        """(points, d) what the settings of the measured plans cost alone: without repair, and with it."""
        plain, mended = (
            nats.rows([p.plan or {} for p in self.points if p.repaired == repair])
            for repair, nats in enumerate(self._nats)
        )
        return plain, mended

    def total(self, sums: Mapping[str, float], repair: bool) -> float:
        """Nats, from what `sums` gave."""
        return total(sums, self.ways(repair))

    def sums(self, plan: Plan, repair: bool) -> dict[str, float]:
        """Technique → sum over its settings, each as `term` has it."""
        return self._nats[repair].sums(plan, self.ways(repair))

    def term(self, key: Key, level: float, repair: bool) -> float:
        """What one setting adds to the sum of its technique."""
        return self.sums({key: level}, repair)[key[1]]

    def trait(self, plan: Plan, repair: bool) -> Array:
        """(d,) where a plan spends its KL."""
        nats = self._nats[repair]
        trait: Array = nats.traits(nats.rows([plan]), self.ways(repair))[0]
        return trait

    def ways(self, repair: bool) -> dict[str, Way]:
        """Technique → how its KLs add up: so that measured plans predict each other best."""
        return self._ways[repair]

    @cached_property
    def _ways(self) -> tuple[dict[str, Way], dict[str, Way]]:
        return self._best_ways(False), self._best_ways(True)

    def _best_ways(self, repair: bool) -> dict[str, Way]:
        best = {technique: ways[0] for technique, ways in WAYS[repair].items()}
        if sum(p.repaired == repair and p.plan is not None for p in self.points) < FEWEST:
            return best

        def error(ways: Ways) -> float:
            known = self._with(repair, ways)
            off, size = np.abs(known.left_out - known.estimate), known.left_out + np.abs(known.estimate)
            return round(float(np.mean(off / (size + NOTED))), 3)  # of ways that are as good, the plainest

        for technique, ways in list(WAYS[repair].items()) * ROUNDS:
            best = min(({**best, technique: way} for way in ways), key=error)
        return best

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Predicted against measured, each point by all others of its kind: for the chart."""
        return tuple(
            Check(point, drop, known.width(drop, 0 if point.source == CALIBRATION else None))
            for known in self._calibrations
            if len(known.points) >= FEWEST
            for point, drop in zip(known.points, known.left_out.tolist(), strict=True)
        )

    def track(self) -> Track | None:
        """None before there is anything to judge by."""
        if not self.checks:
            return None
        rows = np.array([(c.predicted, c.point.drop, c.half_width) for c in self.checks])
        predicted, measured, wide = rows.T
        errors = np.abs(predicted - measured)
        ranks = np.corrcoef(rank(predicted), rank(measured))[0, 1] if np.ptp(predicted) and np.ptp(measured) else 0.0
        return Track(float(errors.mean()), float(ranks), float((errors <= wide).mean()), len(errors))


def rank(values: Array) -> Array:
    """1 for the smallest; equal values share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[group]
    return ranks


def load(workspace: Workspace, model: str, data: str) -> Forecast | None:
    """The forecast of a model on a data set from what is on disk; None before the first sensitivity was measured."""
    folder = workspace.folder("models", model)
    table = read_table(folder / f"sensitivity-{Path(data).name}.jsonl")
    baseline = workspace.baseline(model, data)
    if table is None or baseline is None:
        return None
    profile = workspace.profile(model)
    measure = "accuracy" if baseline.accuracy else "agreement"
    rows = read_lines(folder / f"calibration-{Path(data).name}.jsonl")
    points = [p for row in rows[1:] if (p := calibration_point(table, row, measure))]
    runs = workspace.candidates(model, data).items()
    points += [p for name, found in runs if (p := run_point(table, profile, name, found, baseline))]
    original, images = baseline.accuracy.value if baseline.accuracy else 1.0, baseline.agreement.count
    head = rows[0] if rows else {"about": {}}
    finished = head["about"].get("judge") == JUDGE and DONE in head
    return Forecast(profile, table, tuple(points), original, measure, finished, images, head.get("remembered"))
