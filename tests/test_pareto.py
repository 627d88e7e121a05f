"""Fronts, knees and volumes: by hand, then against brute force on random points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core.errors import StudioError
from core.pareto import best_allowed, dominates, dominators, front, hypervolume, knee, turn

GRID = st.integers(2, 3).flatmap(
    lambda m: st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, m), elements=st.integers(0, 5).map(float)))
)


def test_turn_flips_only_what_is_better_when_higher() -> None:
    rows = [{"accuracy": 0.9, "macs": 40.0}, {"accuracy": 0.8, "macs": 20.0}]
    assert turn(rows, ("accuracy", "macs")).tolist() == [[-0.9, 40.0], [-0.8, 20.0]]


@pytest.mark.parametrize("row", [{"macs": 1.0}, {"accuracy": None, "macs": 1.0}, {"accuracy": float("nan"), "macs": 1}])
def test_a_missing_score_is_an_error(row: dict[str, float | None]) -> None:
    with pytest.raises(StudioError, match="Point 1 has no accuracy"):
        turn([row], ("accuracy", "macs"))


def test_an_unknown_objective_is_an_error() -> None:
    with pytest.raises(StudioError, match="received 'speed'"):
        turn([{"macs": 1.0}], ("speed",))


def test_front_by_hand() -> None:
    points = np.array([[1, 5], [2, 2], [5, 1], [2, 3], [5, 5], [2, 2]], float)
    assert sorted(front(points)) == [0, 1, 2, 5]  # equal points all stay
    assert dominators(points, 3) == [1, 5]
    assert dominators(points, 0) == []
    assert not dominates(points[1], points[5])


def test_knee_is_the_point_farthest_from_the_chord() -> None:
    # scaled to [0, 1]: depths 1 - x - y are 0, 0.1, 0.6, 0.2, 0
    points = np.array([[0, 100], [4, 50], [1, 30], [6, 20], [10, 0]], float)
    assert knee(points) == 2
    assert knee(points[[0, 4]]) is None
    assert knee(np.array([[0, 2], [1, 1], [2, 0]], float)) is None  # a straight line has no knee


def test_best_allowed_point() -> None:
    points = np.array([[-0.92, 40], [-0.91, 20], [-0.85, 10]], float)
    assert best_allowed(points, (None, 30)) == 1
    assert best_allowed(points, (None, None)) == 0
    assert best_allowed(points, (None, 5)) is None


def test_hypervolume_by_hand() -> None:
    # two rectangles to (4, 4): 3 × 1 + 1 × 3 minus their overlap 1 × 1
    assert hypervolume(np.array([[1, 3], [3, 1]], float), np.array([4.0, 4.0])) == 5.0
    assert hypervolume(np.array([[1, 1, 1]], float), np.array([3.0, 4.0, 5.0])) == 24.0
    assert hypervolume(np.array([[5, 1]], float), np.array([4.0, 4.0])) == 0.0


@given(GRID)
def test_front_and_volume_against_brute_force(points: np.ndarray) -> None:
    beaten = {i for i, p in enumerate(points) for q in points if np.all(q <= p) and np.any(q < p)}
    assert set(front(points)) == set(range(len(points))) - beaten
    reference = np.full(points.shape[1], 6.0)
    corners = np.stack(np.meshgrid(*[np.arange(6)] * points.shape[1], indexing="ij"), -1).reshape(-1, points.shape[1])
    cells = sum(any(np.all(p <= c) for p in points) for c in corners)  # unit cells that some point covers
    assert hypervolume(points, reference) == cells
