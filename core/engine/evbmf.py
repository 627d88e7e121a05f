"""The rank that a matrix has above noise, by empirical variational Bayes: no share to choose, no images.

The matrix is taken for a low-rank one under independent normal noise of one size, which is estimated too. The global
solution is known in closed form given that size: a singular value s of an (L, M) matrix, L ≤ M, stays where
s² / (M σ²) > (1 + τ)(1 + α / τ), with α = L / M and τ = 2.5129 √α; σ² minimizes the free energy over one dimension.

Trained weights are neither of the two. Where a layer's spectrum falls slowly all of it looks like noise and next to
nothing stays; the small part that does then loses much accuracy. Where it falls fast little is removed. So it is a
choice beside a share by accuracy, not instead of it.

Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization, Nakajima et al. 2013; for the
ranks of convolutions in Kim et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Array = NDArray[np.float64]
SLOPE = 2.5129  # τ / √α, an approximation whose error is below 1e-4
GRID = 200  # values of the noise that are tried
FLOOR = 1e-20  # of the largest s²: exact zeros have a logarithm too


def rank_above_noise(matrix: Array) -> int:
    """From 0 to the smaller side of the matrix (l, m)."""
    small, large = sorted(matrix.shape)
    squares = np.square(np.linalg.svd(matrix, compute_uv=False))
    if squares[0] == 0:
        return 0
    squares = np.maximum(squares / squares[0], FLOOR)
    ratio, slope = small / large, SLOPE * np.sqrt(small / large)
    bound = (1 + slope) * (1 + ratio / slope)
    fewest = min(int(np.ceil(small / (1 + ratio))) - 1, small - 1)  # of the singular values, so many may be signal
    low = max(squares[fewest] / (large * bound), squares[fewest:].mean() / large)
    high = squares.mean() / large
    noise = _least(lambda v: free_energy(v, squares, ratio, bound, large), np.log(low), np.log(high))
    return int((squares > large * np.exp(noise) * bound).sum())


def _least(energy: Callable[[float], float], low: float, high: float) -> float:
    """Where `energy` is least: it has several valleys, so a grid finds the one, and a search within it the place."""
    grid = np.linspace(low, max(low, high), GRID)
    best = int(np.argmin([energy(float(v)) for v in grid]))
    around = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    found = minimize_scalar(energy, bounds=around, method="bounded")
    return float(min((found.x, grid[best]), key=energy))


def free_energy(logarithm: float, squares: Array, ratio: float, bound: float, large: int) -> float:
    """Up to constants and a factor, for noise of variance exp(`logarithm`)."""
    x = squares / (large * np.exp(logarithm))
    above = x[x > bound]
    tau = (above - (1 + ratio) + np.sqrt(np.square(above - (1 + ratio)) - 4 * ratio)) / 2
    return float((x - np.log(x)).sum() + (np.log(tau + 1) + ratio * np.log(tau / ratio + 1) - tau).sum())
