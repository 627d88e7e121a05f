"""The front as a chart: measured files as dots, the predicted front as a band, the recipe at the sliders, what limits
forbid in grey, and a mark on the knee and on the best that is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.charts import GREY, Chart, around, draw, rule, scale, whiskers
from app.front import ORIGINAL, Front, Guess, Limits, Point

MEASURED = "#4c6ef5"  # the first colour of the theme's palette
PREDICTED = "#845ef7"  # the violet of the badge "predicted", on both themes
BAND = "rgba(132,94,247,0.20)"
BEYOND = "rgba(128,128,128,0.14)"
FORBIDDEN = "rgba(128,128,128,0.20)"
HEIGHT = 320
DEEP = 20.0  # points of percent below the original that the predicted front is followed, at most


def pareto(info: Front, *, picked: str | None = None, plans: bool = False) -> Chart:
    """Accuracy against cost. With `plans` the points of the predicted front can be picked: they take time to draw."""
    best = sorted((p for p in info.points if p.best), key=lambda p: (p.x, p.y))
    line = {
        "x": [p.x for p in best],
        "y": [p.y for p in best],
        "mode": "lines",
        "line": {"color": GREY, "width": 1.5, "shape": "hv"},
        "hoverinfo": "skip",
    }
    right, (bottom, top) = _right(info), _limits_of_y(info)
    figure = draw(
        [*_bands(info, plans), line, *_ring(info.allowed), _dots(info, picked), *_expected(info)],  # the last is on top
        HEIGHT,
        xaxis=scale(f"{info.axis.title}, {info.axis.unit}", [0, right]),
        yaxis=scale(f"{info.measure.capitalize()}, %", (bottom, top)),
        clickmode="event+select",
        uirevision=info.axis.key,
        shapes=[*_forbidden(info.limits, right, bottom, top), *([] if info.here is None else [rule(info.here)])],
        annotations=_notes(info, right),
    )
    return Chart(figure, alt(info))


def _right(info: Front) -> float:
    return 1.08 * max([*(p.x for p in info.points), *(g.x for g in info.band), info.here or 0.0, 1e-9])


def _limits_of_y(info: Front) -> tuple[float, float]:
    """All files with their intervals and the recipe at the sliders; of the band what is near the original."""
    first = info.find(ORIGINAL)
    floor = first.y - DEEP if first else 0.0
    near = [max(g.y, floor) for g in info.band] + ([info.expected.y] if info.expected else [])
    return around([*(p.low for p in info.points), *near], [*(p.high for p in info.points), *near])


def _dots(info: Front, picked: str | None) -> dict[str, Any]:
    points = info.points
    hover = f"%{{text}}<br>%{{x:.4g}} {info.axis.unit}<br>{info.measure} %{{y:.2f}} % (%{{customdata[1]}})"
    return {
        "x": [p.x for p in points],
        "y": [p.y for p in points],
        "error_y": whiskers([p.y for p in points], [p.low for p in points], [p.high for p in points]),
        "mode": "markers",
        "marker": {
            "size": [15 if p.id and p.id == picked else 10 for p in points],
            "symbol": [_symbol(p) for p in points],
            "color": MEASURED,
        },
        "customdata": [[p.id, "verified" if p.verified else "measured"] for p in points],
        "text": [p.title for p in points],
        "hovertemplate": f"{hover}<extra></extra>",
        "unselected": {"marker": {"opacity": 0.6}},
    }


def _symbol(point: Point) -> str:
    """The original is a star, a file scored on a sample a diamond; what is beaten is hollow."""
    shape = "star" if point.id == ORIGINAL else "circle" if point.verified else "diamond"
    return shape if point.best or point.id == ORIGINAL else f"{shape}-open"


def _bands(info: Front, plans: bool) -> list[dict[str, Any]]:
    """The predicted front with its interval; grey where nothing alike was ever measured."""
    if not info.band:
        return []
    known = [g for g in info.band if not g.beyond]
    far = [g for g in info.band if g.beyond] + known[:1]  # by rising cost, what is far comes first
    fills = [(far, BEYOND), (known, BAND)]
    line = {
        **_hover(info, info.band),
        "mode": "lines+markers" if plans else "lines",
        "line": {"color": PREDICTED, "width": 1.5, "dash": "dot"},
        "marker": {"size": 5, "color": PREDICTED},
        "unselected": {"marker": {"opacity": 1}},
    }
    return [*(_fill(part, colour) for part, colour in fills if len(part) > 1), line]


def _fill(part: Sequence[Guess], colour: str) -> dict[str, Any]:
    return {
        "x": [*(g.x for g in part), *(g.x for g in reversed(part))],
        "y": [*(g.high for g in part), *(g.low for g in reversed(part))],
        "mode": "none",
        "fill": "toself",
        "fillcolor": colour,
        "hoverinfo": "skip",
    }


def _expected(info: Front) -> list[dict[str, Any]]:
    """The recipe at the sliders, where its accuracy is predicted."""
    guess = info.expected
    if guess is None:
        return []
    colour = GREY if guess.beyond else PREDICTED
    marker = {"size": 12, "symbol": "diamond", "color": colour, "line": {"width": 1.5, "color": "white"}}
    bars = {**whiskers([guess.y], [guess.low], [guess.high]), "color": colour}
    more = {"error_y": bars, "mode": "markers", "marker": marker, "unselected": {"marker": {"opacity": 1}}}
    return [{**_hover(info, [guess]), **more}]


def _hover(info: Front, rows: Sequence[Guess]) -> dict[str, Any]:
    """What both kinds of prediction say under the pointer."""
    said = f"%{{x:.4g}} {info.axis.unit}<br>{info.measure} %{{y:.2f}} % (predicted, 80 % interval %{{customdata[1]}})"
    return {
        "x": [g.x for g in rows],
        "y": [g.y for g in rows],
        "customdata": [[g.id, f"{g.low:.1f}–{g.high:.1f}"] for g in rows],
        "hovertemplate": f"{said}<extra></extra>",
    }


def _ring(point: Point | None) -> list[dict[str, Any]]:
    """Around the best point that is allowed."""
    if point is None:
        return []
    marker = {"size": 22, "symbol": "circle-open", "color": "#12b886", "line": {"width": 2.5}}
    return [{"x": [point.x], "y": [point.y], "mode": "markers", "marker": marker, "hoverinfo": "skip"}]


def _forbidden(limits: Limits, right: float, bottom: float, top: float) -> list[dict[str, Any]]:
    """What the limits rule out."""
    boxes = []
    if limits.most is not None and limits.most < right:
        boxes.append((limits.most, right, bottom, top))
    if limits.least is not None and limits.least > bottom:
        boxes.append((0.0, right, bottom, min(limits.least, top)))
    return [
        {
            "type": "rect", "x0": x0, "x1": x1, "y0": y0, "y1": y1, "layer": "below", "fillcolor": FORBIDDEN,
            "line": {"width": 0},
        }
        for x0, x1, y0, y1 in boxes
    ]  # fmt: skip


def _notes(info: Front, right: float) -> list[dict[str, Any]]:
    """Words beside the marks, each turned to the side where there is room."""
    notes: list[dict[str, Any]] = []
    line = {"arrowcolor": GREY, "arrowwidth": 1, "arrowhead": 0, "standoff": 8}
    for point, text, down in ((info.knee, "knee", 26), (info.allowed, "best allowed", -26)):
        if point:
            away = 30 if point.x < right / 2 else -30
            notes.append({"x": point.x, "y": point.y, "text": text, "ax": away, "ay": down, **line})
    if info.here is not None:
        side = "left" if info.here < 0.12 * right else "right" if info.here > 0.88 * right else "center"
        top = {"y": 1, "yref": "paper", "yanchor": "bottom", "yshift": 3, "showarrow": False}
        notes.append({"x": info.here, "text": "this recipe", "xanchor": side, **top})
    return [{**note, "font": {"size": 12}} for note in notes]


def alt(info: Front) -> str:
    """The chart in sentences."""
    best, unit = sorted((p for p in info.points if p.best), key=lambda p: p.x), info.axis.unit
    said = [
        f"{info.measure.capitalize()} against {info.axis.title}.",
        f"On the front: {'; '.join(f'{p.title} {p.x:.4g} {unit}, {p.y:.2f} %' for p in best[:6])}.",
    ]
    if info.knee:
        said.append(f"The knee is {info.knee.title}.")
    if info.expected:
        said.append(f"This recipe: {info.expected.x:.4g} {unit}, {about(info.expected)}.")
    elif info.here is not None:
        said.append(f"This recipe: {info.here:.4g} {unit}.")
    near = [g for g in info.band if not g.beyond]
    if near:
        ends = (f"{about(g)} at {g.x:.4g} {unit}" for g in (near[0], near[-1]))
        said.append(f"The predicted front goes from {' to '.join(ends)}.")
    if info.allowed:
        said.append(f"The best allowed is {info.allowed.title}.")
    return " ".join(said)


def about(guess: Guess) -> str:
    """'predicted 92.10 % (91.0 to 93.2)'."""
    far = ", beyond what was measured" if guess.beyond else ""
    return f"predicted {guess.y:.2f} % ({guess.low:.1f} to {guess.high:.1f}){far}"
