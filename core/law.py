"""The law by which nats become loss: m · (1 − exp(−(kl / c)^b)), and what measured plans near one have for a ratio to
it. NumPy only.

A share m of the answers can be lost, down to chance; c nats cost 63 % of that, and b says how steeply (the cumulative
function of Weibull 1951). Three numbers are found from sixteen plans, by least squares (Levenberg 1944, Marquardt 1963)
weighted by what each measurement may be off; small noise loses answers nearly in proportion to its KL. Where a network
deviates from the law, an average of ratios over neighbours in the logarithm of nats (Nadaraya 1964, Watson 1964) bends
it, and the whole never falls, nor exceeds m or what was measured. An isotonic fit averages over fewer plans: near the
original, left-out ones of five networks were off by 0.77 points, and are by 0.57.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.alike import corrections, ratios
from core.sensitivity_table import SMALLEST_KL

Array = NDArray[np.float64]
ROUNDS = 12  # of least squares
STARTS = 24  # values of c tried first
STEEPNESS, LOST = (1.1, 0.1), (0.85, 0.15)  # b and m before anything is measured: mean and standard deviation
ANYWHERE = 10.0  # standard deviation of log c
FEWEST_LOST, STEEPEST, FLATTEST = 0.05, 3.0, 0.2  # bounds of m and b
SHARE = 0.2  # of a loss, that the law may be off
BASE = 0.002  # of any
LARGEST_STEP = 0.7
NEIGHBOURS = 0.5  # in the logarithm of nats, that ratios are averaged over
GRID, MARGIN = 256, 2.0  # points of the map, and how far it goes beyond the plans in the logarithm of nats


def fit(kl: Array, loss: Array, error: Array, keep: Array) -> tuple[Array, Array]:
    """(log KL (g,), losses (k, g)) of k maps, each fitted to those of n plans that `keep` (k, n) has 1 for.

    `kl` (n,) in nats, `loss` (n,) a share, `error` (n,) its standard error.
    """
    x = np.log(np.maximum(kl, SMALLEST_KL))
    found = laws(x, loss, error, keep)
    grid = np.linspace(x.min() - MARGIN, x.max() + MARGIN, GRID)
    near = np.exp(-0.5 * ((grid[:, None] - x) / NEIGHBOURS) ** 2)  # (g, n)
    at = ratios(loss, lost(found, x))
    values = corrections(lost(found, grid), keep[:, None, :] * near, at[:, None, :])
    most = np.maximum(found[:, 2:], (keep * loss).max(1, keepdims=True))
    return grid, np.maximum.accumulate(np.minimum(values, most), axis=1)


def lost(found: Array, x: Array) -> Array:
    """(k, n) losses at x (n,), the logarithm of nats, by laws (k, 3): log c, b, m."""
    values: Array = -found[:, 2:] * np.expm1(-_power(found, x))
    return values


def laws(x: Array, loss: Array, error: Array, keep: Array) -> Array:
    """(k, 3) log c, b and m of each law."""
    spread, found = np.array([ANYWHERE, STEEPNESS[1], LOST[1]]), _start(x, loss, error, keep)
    usual, damping = found.copy(), 0.1
    for _ in range(ROUNDS):
        power, values = _power(found, x), lost(found, x)
        weight = keep / _variance(values, error)
        slope = found[:, 2:] * np.exp(-power) * power
        sides = np.stack([-slope * found[:, 1:2], slope * (x - found[:, :1]), -np.expm1(-power)], 2)  # (k, n, 3)
        normal = np.einsum("kni,kn,knj->kij", sides, weight, sides) + np.diag(spread**-2)
        normal += damping * np.einsum("kii->ki", normal)[:, :, None] * np.eye(3)
        pull = np.einsum("kni,kn->ki", sides, weight * (loss - values)) + (usual - found) / spread**2
        step = np.linalg.solve(normal, pull[:, :, None])[:, :, 0]
        found = found + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        found[:, 1] = found[:, 1].clip(FLATTEST, STEEPEST)
        found[:, 2] = found[:, 2].clip(FEWEST_LOST, 1.0)
        damping /= 2
    return found


def _start(x: Array, loss: Array, error: Array, keep: Array) -> Array:
    """(k, 3) the best of some values of c, with the usual b and m."""
    places = np.linspace(x.min() - 1, x.max() + 3, STARTS)
    tried = np.stack([places, np.full(STARTS, STEEPNESS[0]), np.full(STARTS, LOST[0])], 1)
    values = lost(tried, x)
    variance = _variance(values, error)
    unlikely = (loss - values) ** 2 / variance + np.log(variance)
    best: Array = tried[(keep @ unlikely.T).argmin(1)]
    return best


def _power(found: Array, x: Array) -> Array:
    """(kl / c)^b, kept where exp(-it) can be told from 0 and 1."""
    values: Array = np.exp(np.clip(found[:, 1:2] * (x - found[:, :1]), -50, 5))
    return values


def _variance(values: Array, error: Array) -> Array:
    variance: Array = error**2 + (SHARE * values) ** 2 + BASE**2
    return variance


def read_map(grid: Array, values: Array, kl: Array) -> Array:
    """(n,) the loss at each KL (n,); below the grid in proportion to it, beyond it the last value."""
    x = np.log(np.maximum(kl, SMALLEST_KL))
    found: Array = np.where(x < grid[0], values[0] * np.exp(np.minimum(x - grid[0], 0.0)), np.interp(x, grid, values))
    return found
