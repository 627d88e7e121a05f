"""Original against candidate, record → chart: classes, layers, speed. Pure, and made of the parts in `app.charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.charts import GREY, Chart, around, draw, names, rule, scale, whiskers
from core.candidate import Latency, Scores, Share
from core.compare import setting

MOST_ROWS = 30  # classes that are still readable in one chart
FEW = 6  # layers whose names fit beneath their bars


@dataclass(frozen=True)
class ClassRow:
    """Accuracy of one class, before and after."""

    name: str
    original: Share
    candidate: Share

    @property
    def change(self) -> float:
        """In points of percent."""
        return 100 * (self.candidate.value - self.original.value)


def class_rows(classes: Sequence[str], original: Scores, candidate: Scores) -> tuple[ClassRow, ...]:
    """Worst change first; of many classes only those that changed most. Classes without an image are left out."""
    pairs = zip(classes, original.per_class, candidate.per_class, strict=False)  # no rows without labels
    rows = [ClassRow(*pair) for pair in pairs if pair[1].count]
    most = sorted(rows, key=lambda row: -abs(row.change))[:MOST_ROWS]
    return tuple(sorted(most, key=lambda row: row.change))


def per_class(rows: Sequence[ClassRow], first: str = "Original") -> Chart:
    """A dumbbell per class: the candidate, what it is compared with, and the line between them."""
    classes = [row.name for row in rows]
    before = [100 * row.original.value for row in rows]
    after = [100 * row.candidate.value for row in rows]
    links: dict[str, Any] = {
        "x": [x for pair in zip(before, after, strict=True) for x in (*pair, None)],
        "y": [y for name in classes for y in (name, name, None)],
        "mode": "lines",
        "line": {"color": GREY, "width": 2},
        "hoverinfo": "skip",
        "showlegend": False,
        "zorder": -1,
    }
    dots = [
        {
            "x": x,
            "y": classes,
            "mode": "markers",
            "name": title,
            "marker": {"size": 10, "symbol": symbol},
            "hovertemplate": f"%{{y}}: %{{x:.1f}} %<extra>{title}</extra>",
        }
        for x, title, symbol in ((after, "Candidate", "circle"), (before, first, "circle-open"))
    ]
    figure = draw(
        [*dots, links],
        90 + 24 * len(rows),
        xaxis=scale("Accuracy, %", around(before + after, before + after)),
        yaxis=names(len(rows)),
        showlegend=True,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        margin={"l": 10, "r": 12, "t": 34, "b": 42},
    )
    ends = "; ".join(f"{row.name} {row.change:+.1f}" for row in (*rows[:3], *rows[-1:]))
    return Chart(figure, f"Accuracy of each class, {first} and candidate. Changes in points, worst first: {ends}.")


def layer_error(errors: Mapping[str, float]) -> Chart:
    """One bar per layer in order of execution: how far its output is from the original's, in percent."""
    values, few = [100 * value for value in errors.values()], len(errors) <= FEW
    bars = {
        "type": "bar",
        "x": [*range(len(values))],
        "y": values,
        "customdata": [[name] for name in errors],
        "hovertemplate": "%{customdata[0]}: %{y:.2f} %<extra></extra>",
    }
    figure = draw(
        [bars],
        240,
        xaxis={
            **scale("Layers, from input to output", [-0.6, max(len(values), FEW) - 0.4]),
            "showticklabels": few,
            "tickvals": [*range(len(values))] if few else [],
            "ticktext": list(errors) if few else [],
        },
        yaxis=scale("Error of the output, %", [0, 1.1 * max([*values, 1e-9])]),
    )
    worst = max(errors, key=lambda name: errors[name], default="")
    said = f"largest at {worst}: {100 * errors[worst]:.2f} %" if worst else "none was measured"
    return Chart(figure, f"Error of each layer's output; {said}.")


def speedups(rows: Sequence[Latency]) -> Chart:
    """Times faster in each setting, with the spread of the interleaved runs and a line where nothing is gained."""
    settings, x = [setting(row) for row in rows], [row.speedup for row in rows]
    low, high = [row.speedup_low for row in rows], [row.speedup_high for row in rows]
    dots = {
        "x": x,
        "y": settings,
        "mode": "markers",
        "marker": {"size": 11},
        "error_x": whiskers(x, low, high),
        "hovertemplate": "%{y}: %{x:.2f} times faster<extra></extra>",
    }
    figure = draw(
        [dots],
        90 + 34 * len(rows),
        xaxis=scale("Times faster than the original", [0, 1.1 * max([*high, 1.0])]),
        yaxis=names(len(rows)),
        shapes=[rule(1.0)],
        margin={"l": 10, "r": 12, "t": 24, "b": 42},
    )
    said = "; ".join(
        f"{s}: {r.speedup:.2f} ({r.speedup_low:.2f} to {r.speedup_high:.2f})"
        for s, r in zip(settings, rows, strict=True)
    )
    return Chart(figure, f"Times faster than the original: {said}.")
