"""Record → chart, pure: each function returns a Plotly figure as a plain dict and the sentence that says the same.

First an info record, then the drawing: what a chart shows can be tested without looking at a picture. Figures are light
(fixed ranges, no tool bar, no legend layout to solve), since the browser's work on them is what a user waits for. No
colour belongs to one theme: series take the theme's own palette in order, and lines are translucent grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core import pareto as fronts
from core.candidate import Candidate, Scores

BARE = {"displayModeBar": False}  # the config that goes with every figure here
GREY = "rgba(128,128,128,0.55)"
FAINT = "rgba(128,128,128,0.18)"


@dataclass(frozen=True)
class Chart:
    """A Plotly figure and what it says, for those who cannot see it."""

    figure: dict[str, Any]
    alt: str


@dataclass(frozen=True)
class Axis:
    """What the front's horizontal axis shows; lower is better."""

    key: str
    title: str
    unit: str
    scale: float  # from the score's own unit to this one


AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("macs", "MACs", "million", 1e-6),
        Axis("size_bytes", "File size", "kB", 1e-3),
        Axis("params", "Parameters", "thousand", 1e-3),
        Axis("latency", "Latency, batch 1, 1 thread", "% of the original's", 100.0),
    )
}


@dataclass(frozen=True)
class Point:
    """One file on the chart: x in the axis's unit, y in percent with its 95 % interval."""

    id: str  # "" is the original
    title: str
    x: float
    y: float
    low: float
    high: float
    best: bool  # on the front: no other point dominates it


@dataclass(frozen=True)
class Front:
    """All points, the original first."""

    axis: Axis
    measure: str  # "accuracy", or "agreement" where there are no labels
    points: tuple[Point, ...]


def front(candidates: Mapping[str, Candidate], original: Scores, key: str = "macs") -> Front:
    """The original and all candidates as points; agreement with the original stands in where there are no labels."""
    axis, measure = AXES[key], "accuracy" if original.accuracy else "agreement"
    rows = [("", "Original", original), *((c.id, c.title, c.scores) for c in candidates.values())]
    placed = [(name, title, _position(scores, axis), getattr(scores, measure)) for name, title, scores in rows]
    known = [(name, title, x, share) for name, title, x, share in placed if x is not None and share is not None]
    best = set(fronts.front(np.array([(x, -share.value) for _, _, x, share in known]).reshape(-1, 2)))
    points = (
        Point(name, title, x, 100 * share.value, 100 * share.low, 100 * share.high, index in best)
        for index, (name, title, x, share) in enumerate(known)
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


def pareto(info: Front, *, here: float | None = None, picked: str | None = None) -> Chart:
    """Accuracy against cost. `here` marks the cost of the recipe at the sliders, in the axis's unit."""
    points, best = info.points, sorted((p for p in info.points if p.best), key=lambda p: (p.x, p.y))
    line = {
        "x": [p.x for p in best],
        "y": [p.y for p in best],
        "mode": "lines",
        "line": {"color": GREY, "width": 1.5, "shape": "hv"},
        "zorder": -1,  # beneath the dots, which come first so as to take the palette's first colour
        "hoverinfo": "skip",
    }
    right = 1.08 * max([*(p.x for p in points), here or 0.0, 1e-9])
    figure = draw(
        [_dots(info, picked), line],
        300,
        xaxis=scale(f"{info.axis.title}, {info.axis.unit}", [0, right]),
        yaxis=scale(f"{info.measure.capitalize()}, %", around([p.low for p in points], [p.high for p in points])),
        clickmode="event+select",
        uirevision=info.axis.key,
        **({} if here is None else _mark(here)),
    )
    said = "; ".join(f"{p.title} {p.x:.4g} {info.axis.unit}, {p.y:.2f} %" for p in best[:6])
    return Chart(figure, f"{info.measure.capitalize()} against {info.axis.title}. On the front: {said}.")


def _dots(info: Front, picked: str | None) -> dict[str, Any]:
    points = info.points
    return {
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "error_y": whiskers([p.y for p in points], [p.low for p in points], [p.high for p in points]),
        "mode": "markers",
        "marker": {
            "size": [15 if p.id and p.id == picked else 10 for p in points],
            "symbol": ["star" if not p.id else "circle" if p.best else "circle-open" for p in points],
        },
        "customdata": [[p.id] for p in points],
        "text": [p.title for p in points],
        "hovertemplate": f"%{{text}}<br>%{{x:.4g}} {info.axis.unit}<br>{info.measure} %{{y:.2f}} %<extra></extra>",
        "unselected": {"marker": {"opacity": 0.6}},
    }


def _mark(here: float) -> dict[str, Any]:
    label = {"x": here, "y": 1, "yref": "paper", "yshift": 9, "text": "this recipe", "showarrow": False}
    return {"shapes": [rule(here)], "annotations": [label]}


def learning_curve(rows: Sequence[Mapping[str, float]]) -> Chart:
    """Validation accuracy after each epoch; each row holds epoch, loss and accuracy."""
    x, y = [row["epoch"] for row in rows], [100 * row["accuracy"] for row in rows]
    line = {"x": x, "y": y, "mode": "lines+markers", "hovertemplate": "epoch %{x}: %{y:.2f} %<extra></extra>"}
    figure = draw(
        [line],
        220,
        xaxis=scale("Epoch", [min([*x, 1]) - 0.3, max([*x, 1]) + 0.3]),
        yaxis=scale("Validation accuracy, %", around(y, y)),
    )
    best = f"best {max(y):.2f} % after epoch {x[y.index(max(y))]:.0f}" if y else "none has ended yet"
    return Chart(figure, f"Validation accuracy over {len(rows)} epochs; {best}.")


def draw(traces: Sequence[Mapping[str, Any]], height: int, **layout: Any) -> dict[str, Any]:
    """A figure without anything to lay out, on the page's own background."""
    bare = {
        "height": height,
        "margin": {"l": 52, "r": 12, "t": 24, "b": 42, "autoexpand": False},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return {"data": [{"type": "scatter", **trace} for trace in traces], "layout": {**bare, **layout}}


def scale(title: str, limits: Sequence[float]) -> dict[str, Any]:
    """An axis with fixed limits."""
    return {"title": {"text": title}, "range": [*limits], "fixedrange": True, "zeroline": False, "gridcolor": FAINT}


def names(count: int) -> dict[str, Any]:
    """A vertical axis of `count` names, the first on top."""
    limits = {"range": [count - 0.5, -0.5], "type": "category", "automargin": True, "ticklabelstandoff": 6}
    return {"title": {"text": ""}, "fixedrange": True, "gridcolor": FAINT, **limits}


def rule(x: float) -> dict[str, Any]:
    """A dashed vertical line."""
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def whiskers(middle: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Error bars from the ends of an interval."""
    up = [h - m for h, m in zip(high, middle, strict=True)]
    down = [m - v for v, m in zip(low, middle, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "color": GREY,
        "thickness": 1.5,
        "width": 3,
    }


def around(low: Sequence[float], high: Sequence[float]) -> tuple[float, float]:
    """Limits of a percentage axis: all intervals and some air, within 0 to 100."""
    bottom, top = min([*low], default=0.0), max([*high], default=100.0)
    air = max(0.08 * (top - bottom), 0.5)
    return max(0.0, bottom - air), min(100.5, top + air)
