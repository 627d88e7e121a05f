"""Predicted against measured, record → chart. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.charts import GREY, Chart, draw, scale, whiskers
from core.forecast import Check

LOOKS = {  # (run by the user, repaired) → (legend, marker)
    (False, False): ("calibration", "circle-open"),
    (False, True): ("calibration, repaired", "diamond-open"),
    (True, False): ("your runs", "circle"),
    (True, True): ("your runs, repaired", "diamond"),
}


def checks(found: Sequence[Check], measure: str, expected: bool = False) -> Chart:
    """A dot per network with the interval it was predicted; on the diagonal the two agree.

    With `expected` what calibration networks lose was not measured, but expected of images that they were not run on.
    """
    upright = "Measured or expected loss, points" if expected else "Measured loss, points"
    top = 100 * max([0.02, *(max(c.point.drop, c.predicted) for c in found)]) * 1.08
    low = 100 * min([0.0, *(c.point.drop for c in found)]) - 0.5
    line: dict[str, Any] = {
        "x": [low, top],
        "y": [low, top],
        "mode": "lines",
        "line": {"color": GREY, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    figure = draw(
        [line, *_dots(found, expected)],
        300,
        xaxis=scale(f"Predicted loss of {measure}, points", [low, top]),
        yaxis=scale(upright, [low, top]),
        showlegend=True,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        margin={"l": 52, "r": 12, "t": 34, "b": 42},
    )
    worst = max((abs(c.predicted - c.point.drop) for c in found), default=0.0)
    return Chart(
        figure,
        f"Measured {'or expected ' * expected}against predicted loss of {measure} for {len(found)} networks; "
        f"the largest error is {100 * worst:.1f} points.",
    )


def _dots(found: Sequence[Check], expected: bool) -> list[dict[str, Any]]:
    traces = []
    for (mine, repaired), (name, symbol) in LOOKS.items():
        kind = [c for c in found if (c.point.source != "calibration") == mine and c.point.repaired == repaired]
        if not kind:
            continue
        word = "expected" if expected and not mine else "measured"
        x = [100 * c.predicted for c in kind]
        wide = [100 * c.half_width for c in kind]
        ends = [[v + side * w for v, w in zip(x, wide, strict=True)] for side in (-1, 1)]
        traces.append(
            {
                "x": x,
                "y": [100 * c.point.drop for c in kind],
                "error_x": whiskers(x, *ends) | {"thickness": 0.8, "width": 0},
                "mode": "markers",
                "name": name,
                "marker": {"size": 9, "symbol": symbol},
                "hovertemplate": f"predicted %{{x:.1f}}, {word} %{{y:.1f}} points<extra>{name}</extra>",
            }
        )
    return traces
