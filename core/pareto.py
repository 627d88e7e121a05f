"""The Pareto front of candidates: which are best, which are beaten and by whom, and where the front bends.

Every function works on a matrix of objectives turned by `turn` so that lower is better; nothing else knows directions.
The knee is the point farthest below the line between the front's ends (Das 1999, normal boundary intersection); the
hypervolume is summed slice by slice, exactly, for any number of objectives (Zitzler & Thiele 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import StudioError

Points = NDArray[np.float64]  # (n points, m objectives), lower is better


@dataclass(frozen=True)
class Objective:
    """One axis of the chart."""

    key: str
    title: str
    unit: str
    higher: bool = False  # whether more is better


OBJECTIVES: dict[str, Objective] = {
    o.key: o
    for o in (
        Objective("accuracy", "Accuracy", "%", higher=True),
        Objective("agreement", "Agreement", "%", higher=True),
        Objective("size_bytes", "Size", "bytes"),
        Objective("params", "Parameters", ""),
        Objective("macs", "MACs", ""),
        Objective("latency_ms", "Latency", "ms"),
        Objective("peak_bytes", "Peak activation memory", "bytes"),
    )
}


def turn(rows: Sequence[Mapping[str, float | None]], objectives: Sequence[str]) -> Points:
    """Rows of named scores → (n, m), lower is better. Raises StudioError for an unknown or a missing score."""
    unknown = [key for key in objectives if key not in OBJECTIVES]
    if unknown:
        raise StudioError(f"Unknown objective: received {unknown[0]!r}, accepted are {', '.join(OBJECTIVES)}.")
    points = np.empty((len(rows), len(objectives)))
    for i, row in enumerate(rows):
        for j, key in enumerate(objectives):
            value = row.get(key)
            if value is None or not np.isfinite(value):
                raise StudioError(f"Point {i + 1} has no {OBJECTIVES[key].title.lower()}; received {value!r}.")
            points[i, j] = -value if OBJECTIVES[key].higher else value
    return points


def dominates(a: Points, b: Points) -> bool:
    """Whether `a` (m,) is at least as good as `b` (m,) in everything and better in something."""
    return bool(np.all(a <= b) and np.any(a < b))


def dominators(points: Points, index: int) -> list[int]:
    """The points that dominate point `index`: the answer to 'why is this dominated?'."""
    return [i for i in range(len(points)) if dominates(points[i], points[index])]


def front(points: Points) -> list[int]:
    """Indices of the points that none dominates, best first objective first. Equal points all stay."""
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    for i in order:  # whatever dominates point i comes before it in lexicographic order
        if not any(dominates(points[k], points[i]) for k in kept):
            kept.append(int(i))
    return kept


def knee(points: Points) -> int | None:
    """Index of the front's knee for two objectives; None when the front has fewer than three points or no bend."""
    best = front(points)
    ends = points[best]
    span = ends.max(axis=0) - ends.min(axis=0)
    if len(best) < 3 or np.any(span == 0):
        return None
    x, y = ((ends - ends.min(axis=0)) / span).T  # the ends become (0, 1) and (1, 0)
    depth = 1 - x - y
    return best[int(depth.argmax())] if depth.max() > 1e-12 else None


def best_allowed(points: Points, limits: Sequence[float | None]) -> int | None:
    """The best point in the first objective among those within every limit (turned as the points are); None if none."""
    ceiling = np.array([np.inf if limit is None else limit for limit in limits])
    allowed = np.flatnonzero(np.all(points <= ceiling, axis=1))
    return int(min(allowed, key=lambda i: tuple(points[i]))) if len(allowed) else None


def hypervolume(points: Points, reference: Points) -> float:
    """Volume between the points and `reference` (m,), the worst corner. Points beyond it add nothing."""
    inside = points[np.all(points < reference, axis=1)]
    if not len(inside):
        return 0.0
    inside = inside[front(inside)]
    if points.shape[1] == 1:
        return float(reference[0] - inside[:, 0].min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    edges = np.append(inside[:, -1], reference[-1])
    slices = (
        (edges[i + 1] - edges[i]) * hypervolume(inside[: i + 1, :-1], reference[:-1])
        for i in range(len(inside))
        if edges[i + 1] > edges[i]
    )
    return float(sum(slices))
