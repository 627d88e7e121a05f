"""Summed KL → accuracy lost, with an interval, from plans that were measured whole. NumPy only.

A map from the sum to the loss is fitted to the measurements (`core/law.py`). The interval is conformal (Vovk et al.
2005): a quantile of the leave-one-out errors, each as a multiple of what one would expect at its predicted loss, the
standard error of the count and a share of the loss (normalized: Lei et al. 2018). It is taken separately near the
original and far from it (Mondrian). Those errors hold what the map is off by; the noise of the images over which a
candidate will be counted is put in, the more the fewer they are. The noise of those that plans were measured on stays:
half of it all plans have in common, which no plan that is left out can show. Of 480 recipes in four networks, counted
on other images, intervals near the original held 94 and 85 % in two, 61 and 67 % in two whose plans were measured on
2,000 images that lose less than the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray

from core.alike import corrections, likeness, ratios
from core.law import fit, read_map
from core.sensitivity_table import Plan, pool_violators

Array = NDArray[np.float64]
CALIBRATION = "calibration"
NEAR = 0.10  # a predicted loss below this share is near the original
COVERAGE = 0.8  # of the interval
SIGMAS = 1.2816  # that as many normal errors stay within
BIAS = 0.2  # of the expected loss, that it may differ from the count of infinitely many images
SHARE = 0.3  # of the predicted loss, that it may be off besides the error of the count
ERROR = 0.003  # of the count, where no measured plan tells


@dataclass(frozen=True)
class Point:
    """A measured plan."""

    kl: float  # nats, summed from the table
    drop: float  # accuracy (or agreement) lost against the original on the same images
    source: str  # CALIBRATION, or the candidate's id
    repaired: bool = False  # whether what remains was solved again, which wins back much of it
    plan: Plan | None = None  # where it is known
    error: float = 0.0  # standard error of the loss, from the images whose answer changed
    expected: float | None = None  # the loss as the margins say, which varies less but may be off by BIAS of itself
    images: int = 0  # that it was counted over; 0: not known

    @property
    def estimate(self) -> float:
        """The loss counted and the loss expected, weighted by what each may be off: what the map is fitted to."""
        if self.expected is None:
            return self.drop
        counted, biased = self.error**2, (BIAS * self.expected) ** 2
        return (biased * self.drop + counted * self.expected) / max(biased + counted, 1e-30)

    @property
    def doubt(self) -> float:
        """Standard error of `estimate`."""
        if self.expected is None or not self.error:
            return self.error
        biased = BIAS * self.expected
        return self.error * abs(biased) / hypot(self.error, biased)


def half_width(errors: Array) -> float:
    """The conformal quantile of absolute errors, between two of them where it lies there; at most the largest."""
    ranked = np.sort(errors)
    return float(np.interp((len(ranked) + 1) * COVERAGE, np.arange(1, len(ranked) + 1), ranked))


class Calibration:
    """The map from KL to loss that some measured plans give, with its intervals.

    `images` is what a predicted loss will be counted over; 0: over as many as the plans were. `traits` (n, d) say where
    each plan spends its KL; without them no plan is like another.
    """

    def __init__(self, points: tuple[Point, ...], images: int = 0, traits: Array | None = None) -> None:
        self.points, self.images = points, images
        self.traits = np.zeros((len(points), 1)) if traits is None else traits
        self.kl, self.drop = np.array([p.kl for p in points]), np.array([p.drop for p in points])
        self.estimate, self.doubt = np.array([p.estimate for p in points]), np.array([p.doubt for p in points])

    @cached_property
    def _map(self) -> tuple[Array, Array]:
        grid, values = fit(self.kl, self.estimate, self.doubt, np.ones((1, len(self.kl))))
        return grid, values[0]

    @cached_property
    def left_out(self) -> Array:
        """(n,) the loss predicted for each point from all others."""
        others = 1 - np.eye(len(self.kl))
        grid, values = fit(self.kl, self.estimate, self.doubt, others)
        found = []
        for i, rest in enumerate(others):
            mapped = read_map(grid, values[i], self.kl)
            alike = rest * likeness(self.traits, self.kl, self.traits[i], self.kl[i])
            found.append(corrections(mapped[i], alike, ratios(self.estimate, mapped)))
        return np.array(found)

    @cached_property
    def _ratios(self) -> Array:
        return ratios(self.estimate, read_map(*self._map, self.kl))

    @cached_property
    def _noise(self) -> tuple[Array, Array]:
        """(loss, squared standard error of its count) of the measured plans, non-decreasing: more answers change."""
        known = sorted(
            (max(loss, 0.0), p.error**2) for loss, p in zip(self.estimate, self.points, strict=True) if p.error
        )
        losses, squares = np.array(known or [(0.0, ERROR**2)]).T
        return losses, pool_violators(squares)

    def scale(self, drop: Array) -> Array:
        """What a count may be off where `drop` is predicted, in size though not in scale."""
        found: Array = np.sqrt(np.interp(drop, *self._noise) + (SHARE * drop) ** 2)
        return found

    @cached_property
    def _widths(self) -> tuple[float, float]:
        """Half-widths near and far, in units of `scale`; a side with too few points takes all.

        Against the loss as counted, noise and all: that is what will be measured. The plan of most nats is foretold
        from one side alone, which no other is: beyond it nothing is promised.
        """
        inside = np.arange(len(self.kl)) != self.kl.argmax()
        errors, far = (np.abs(self.left_out - self.drop) / self.scale(self.left_out))[inside], self.left_out >= NEAR
        near, away = (half_width(errors[s] if s.sum() >= 4 else errors) for s in (~far[inside], far[inside]))
        return near, away

    def at(self, kl: float, trait: Array | None = None) -> tuple[float, float]:
        """(loss, half-width of its interval) at a summed KL, of a plan that spends it as `trait` (d,) says."""
        drop = float(read_map(*self._map, np.array(kl)))
        if trait is not None:
            drop = float(corrections(np.array(drop), likeness(self.traits, self.kl, trait, kl), self._ratios))
        return drop, self.width(drop)

    def width(self, drop: float, images: int | None = None) -> float:
        """Of the interval around a predicted loss, as it is counted over `images`; 0: over those of the plans."""
        wide = float(self._widths[drop >= NEAR] * self.scale(np.array(drop)))
        images, measured = self.images if images is None else images, max(p.images for p in self.points)
        if not images or not measured:
            return wide
        noise = SIGMAS**2 * float(np.interp(drop, *self._noise))
        return sqrt(wide**2 + noise * measured / images)
