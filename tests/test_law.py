"""The law from nats to loss, against SciPy's least squares; maps that never fall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares

from core.alike import DOUBT, LITTLE
from core.law import BASE, LOST, SHARE, STEEPNESS, Array, fit, laws, lost, read_map

KL = np.geomspace(0.01, 3.0, 16)
ALL = np.ones((1, 16))
USUAL = STEEPNESS[0], LOST[0]


def weibull(kl: Array, c: float, b: float, m: float) -> Array:
    found: Array = m * (1 - np.exp(-((kl / c) ** b)))
    return found


@pytest.mark.parametrize("c", [0.02, 0.4, 5.0])
def test_what_follows_the_law_is_read_back(c: float) -> None:
    found = laws(np.log(KL), weibull(KL, c, *USUAL), np.full(16, 1e-4), ALL)[0]
    np.testing.assert_allclose(np.exp(found[0]), c, rtol=1e-3)
    np.testing.assert_allclose(found[1:], USUAL, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_law_is_the_least_squares_one(seed: int) -> None:
    """With the weights that it ends with, SciPy finds the same three numbers."""
    rng = np.random.default_rng(seed)
    error, x = rng.uniform(0.002, 0.01, 16), np.log(KL)
    loss = weibull(KL, 0.3, 1.1, 0.8) * rng.lognormal(0, 0.2, 16)
    found = laws(x, loss, error, ALL)[0]
    weight = (error**2 + (SHARE * lost(found[None], x)[0]) ** 2 + BASE**2) ** -0.5

    def off(at: Array) -> Array:
        usual = [(at[1] - STEEPNESS[0]) / STEEPNESS[1], (at[2] - LOST[0]) / LOST[1]]
        residuals: Array = np.append((loss - lost(at[None], x)[0]) * weight, usual)
        return residuals

    reference = least_squares(off, found + 0.1).x
    np.testing.assert_allclose(found, reference, atol=0.01)


def test_each_law_is_fitted_to_its_own_plans() -> None:
    """Without a plan, as if it had never been; with it, otherwise."""
    loss, error, keep = weibull(KL, 0.3, *USUAL), np.full(16, 0.002), np.ones((2, 16))
    loss[7], keep[1, 7] = 0.0, 0
    both = laws(np.log(KL), loss, error, keep)
    rest = keep[1] == 1
    alone = laws(np.log(KL[rest]), loss[rest], error[rest], np.ones((1, 15)))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-3)
    assert abs(both[0, 0] - both[1, 0]) > 0.01
    grid, values = fit(KL, loss, error, keep)
    assert read_map(grid, values[0], KL[7:8])[0] < 0.95 * read_map(grid, values[1], KL[7:8])[0]


def test_the_law_bends_to_its_neighbours_by_hand() -> None:
    """One plan at twice what the law says: there, by the ratio that is left of 2 after doubt."""
    loss, error = weibull(KL, 0.3, *USUAL), np.full(16, 0.05)
    alone = np.zeros((1, 16))
    alone[0, 4] = 1
    loss[4] *= 2
    law = lost(laws(np.log(KL), loss, error, alone), np.log(KL[4:5]))[0, 0]
    grid, values = fit(KL, loss, error, alone)
    ratio = (loss[4] + LITTLE) / (law + LITTLE)
    bent = (law + LITTLE) * ratio ** (1 / (1 + DOUBT)) - LITTLE
    assert read_map(grid, values[0], KL[4:5])[0] == pytest.approx(bent, rel=0.01)


def test_small_changes_lose_in_proportion_and_nothing_more_beyond_the_map() -> None:
    grid, values = fit(KL, weibull(KL, 0.3, *USUAL), np.full(16, 0.002), ALL)
    below, above = np.exp(grid[0]), np.exp(grid[-1])
    at = read_map(grid, values[0], np.array([below / 100, below / 10, above, 10 * above]))
    assert at[1] == pytest.approx(10 * at[0])
    assert at[0] < 1e-4
    assert at[2] == at[3]


@given(
    st.lists(st.tuples(st.floats(-9, 3), st.floats(-0.02, 1.0), st.floats(0.0, 0.02)), min_size=1, max_size=24),
    st.integers(0, 23),
)
def test_no_map_falls_or_leaves_what_can_be_lost(plans: list[tuple[float, float, float]], without: int) -> None:
    x, loss, error = np.array(plans).T
    keep = np.ones((2, len(x)))
    keep[1, without % len(x)] = 0
    grid, values = fit(np.exp(x), loss, error, keep)
    assert np.isfinite(values).all()
    assert (np.diff(values) >= 0).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert np.all(np.diff(grid) > 0)
