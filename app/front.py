"""Candidates → the front as records: every file on two axes, what is predicted beside them, and what a person may ask
of it: which is best within limits, where is the bend, and why is this one beaten. Pure; drawn by `app.pareto_chart`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.titles import titles
from core import pareto
from core.candidate import Candidate, Scores
from core.outlook import Outlook

ORIGINAL = ""  # the original's id


@dataclass(frozen=True)
class Axis:
    """What the front's horizontal axis shows; lower is better."""

    key: str
    title: str
    unit: str
    scale: float  # from the score's own unit to this one
    fewer: str  # "12 % …" of one that needs less
    same: str  # of one that needs as much


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("macs", "MACs", "million", 1e-6, "fewer MACs", "as many MACs"),
        Axis("size_bytes", "File size", "kB", 1e-3, "smaller", "of the same size"),
        Axis("peak_bytes", "Peak memory", "kB", 1e-3, "less memory", "as much memory"),
        Axis("params", "Parameters", "thousand", 1e-3, "fewer parameters", "as many parameters"),
        Axis("latency", "Latency, batch 1, 1 thread", "% of the original's", 100.0, "less time", "as fast"),
    )
}


@dataclass(frozen=True)
class Point:
    """One file on the chart: x in the axis's unit, y in percent with its 95 % interval."""

    id: str
    title: str
    x: float
    y: float
    low: float
    high: float
    best: bool  # on the front: no other point dominates it
    verified: bool = True  # with every test image; else on a sample of them


@dataclass(frozen=True)
class Guess:
    """A recipe that was not run: x is counted, y predicted with an 80 % interval, in percent."""

    id: str
    x: float
    y: float
    low: float
    high: float
    beyond: bool  # further out than anything that the forecast was fitted to


@dataclass(frozen=True)
class Limits:
    """What is allowed, in the chart's units; None is no limit."""

    most: float | None = None  # of the horizontal axis
    least: float | None = None  # percent of accuracy


@dataclass(frozen=True)
class Front:
    """All points, the original first; the predicted front by rising cost; and the recipe at the sliders."""

    axis: Axis
    measure: str  # "accuracy", or "agreement" where there are no labels
    points: tuple[Point, ...]
    band: tuple[Guess, ...] = ()
    here: float | None = None  # the cost of the recipe at the sliders
    expected: Guess | None = None  # the same with its predicted accuracy, where there is one
    limits: Limits = Limits()

    @cached_property
    def _turned(self) -> pareto.Points:
        """(points, 2): accuracy turned, then cost: lower is better in both."""
        return np.array([(-p.y, p.x) for p in self.points], np.float64).reshape(-1, 2)

    @property
    def knee(self) -> Point | None:
        """Where the front bends: beyond it each point of accuracy costs much more."""
        index = pareto.knee(self._turned)
        return None if index is None else self.points[index]

    @property
    def allowed(self) -> Point | None:
        """The most accurate point within the limits; None when there is none, or no limit."""
        if self.limits == Limits():
            return None
        least = None if self.limits.least is None else -self.limits.least
        index = pareto.best_allowed(self._turned, (least, self.limits.most))
        return None if index is None else self.points[index]

    @property
    def promised(self) -> Guess | None:
        """The most accurate plan predicted within the limits."""
        most, least = self.limits.most, self.limits.least
        fitting = [g for g in self.band if (most is None or g.x <= most) and (least is None or g.y >= least)]
        return max(fitting, key=lambda g: (g.y, -g.x), default=None)

    def find(self, name: str | None) -> Point | None:
        return next((p for p in self.points if p.id == name), None)

    def beaten_by(self, name: str | None) -> list[Point]:
        """The points of the front that dominate this one, the most accurate first."""
        index = next((i for i, p in enumerate(self.points) if p.id == name), None)
        if index is None:
            return []
        found = [self.points[i] for i in pareto.dominators(self._turned, index)]
        return sorted((p for p in found if p.best), key=lambda p: (-p.y, p.x))

    def compare(self, better: Point, worse: Point) -> str:
        """'12 % smaller and 0.30 points better', of a point that dominates another."""
        saved = 100 * (1 - better.x / worse.x) if worse.x else 0.0
        less = f"{saved:.0f} % {self.axis.fewer}" if saved >= 0.5 else self.axis.same
        points = better.y - worse.y
        more = f"{points:.2f} points better" if points >= 0.005 else f"of the same {self.measure}"
        unsure = points >= 0.005 and better.low < worse.high
        return f"{less} and {more}{', though the intervals overlap' if unsure else ''}"


def front(candidates: Mapping[str, Candidate], original: Scores, key: str = "macs") -> Front:
    """The original and all candidates as points; agreement with the original stands in where there are no labels."""
    axis, measure = AXES[key], "accuracy" if original.accuracy else "agreement"
    named = titles(candidates)
    rows = [(ORIGINAL, "Original", original), *((name, named[name], c.scores) for name, c in candidates.items())]
    placed = [(name, title, _position(made, axis), getattr(made, measure), made.verified) for name, title, made in rows]
    known = [(name, title, x, share, ok) for name, title, x, share, ok in placed if x is not None and share is not None]
    best = set(pareto.front(np.array([(x, -share.value) for _, _, x, share, _ in known]).reshape(-1, 2)))
    points = (
        Point(name, title, x, 100 * share.value, 100 * share.low, 100 * share.high, index in best, ok)
        for index, (name, title, x, share, ok) in enumerate(known)
    )
    return Front(axis, measure, tuple(points))


def _position(scores: Scores, axis: Axis) -> float | None:
    """Latency is relative to the original's in the same interleaved run: milliseconds of two days do not compare."""
    if axis.key != "latency":
        return float(getattr(scores, axis.key) * axis.scale)
    if not scores.latency:  # only the original is never run beside itself
        return axis.scale
    first = next((row for row in scores.latency if (row.batch, row.threads) == (1, 1)), None)
    return axis.scale / first.speedup if first else None


def guesses(found: Sequence[Outlook], axis: Axis) -> tuple[Guess, ...]:
    """Predictions on the chart, numbered in their order; those without a value are left out."""
    return tuple(guess for i, row in enumerate(found) if (guess := guess_of(row, axis, f"plan-{i}")))


def guess_of(row: Outlook, axis: Axis, name: str = "here") -> Guess | None:
    """None where no accuracy is predicted."""
    told = row.prediction
    if told.value is None or told.low is None or told.high is None:
        return None
    return Guess(name, row.cost * axis.scale, 100 * told.value, 100 * told.low, 100 * told.high, told.extrapolating)
