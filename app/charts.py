"""Record → chart, pure: each function returns a Plotly figure as a plain dict and the sentence that says the same.

First an info record, then the drawing: what a chart shows can be tested without looking at a picture. Figures are light
(fixed ranges, no tool bar, no legend layout to solve), since the browser's work on them is what a user waits for. No
colour belongs to one theme: series take the theme's own palette in order, and lines are translucent grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BARE = {"displayModeBar": False}  # the config that goes with every figure here
GREY = "rgba(128,128,128,0.55)"
FAINT = "rgba(128,128,128,0.18)"


@dataclass(frozen=True)
class Chart:
    """A Plotly figure and what it says, for those who cannot see it."""

    figure: dict[str, Any]
    alt: str


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
