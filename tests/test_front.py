"""The front as records and as a chart: what is on it, what beats what, what is allowed, all worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from app.charts import Chart
from app.front import AXES, Front, Guess, Limits, front, guess_of, guesses
from app.pareto_chart import pareto
from core.candidate import Candidate, Latency, Scores, Share
from core.forecast import Prediction
from core.outlook import Outlook
from core.recipe import Recipe


def share(value: float) -> Share:
    return Share(value, value - 0.02, value + 0.03, 100)


def scores(accuracy: float | None, macs: int, speed: float | None = None) -> Scores:
    rows = () if speed is None else (Latency(1, 1, 1.0, speed, speed, speed - 0.1, speed + 0.2, 9),)
    return Scores(share(accuracy) if accuracy else None, share(0.9), 2 * macs, macs, macs, 5, rows)


def candidate(name: str, made: Scores) -> Candidate:
    return Candidate(name, "m", "d", "", f"Recipe {name}", made, (), {}, {}, 0.0, 1.0, {})


ORIGINAL = scores(0.95, 4_000_000)
FOUND = {
    name: candidate(name, made)
    for name, made in (
        ("a", scores(0.94, 2_000_000, 2.0)),
        ("b", scores(0.93, 3_000_000, 1.25)),  # a is better in both
        ("c", scores(0.80, 1_000_000, 0.5)),
    )
}
BAND = (
    Guess("plan-0", 0.5, 50.0, 20.0, 80.0, True),
    Guess("plan-1", 1.0, 82.0, 78.0, 86.0, False),
    Guess("plan-2", 2.0, 92.0, 90.0, 94.0, False),
    Guess("plan-3", 4.0, 95.0, 95.0, 95.0, False),
)


def limited(most: float | None, least: float | None) -> Front:
    return replace(front(FOUND, ORIGINAL), limits=Limits(most, least), band=BAND)


def test_front_holds_what_nothing_beats() -> None:
    points = front(FOUND, ORIGINAL).points
    assert [(p.id, p.best) for p in points] == [("", True), ("a", True), ("b", False), ("c", True)]
    assert (points[1].x, points[1].y, points[1].low, points[1].high) == pytest.approx((2.0, 94.0, 92.0, 97.0))


def test_latency_is_relative_to_the_original_in_the_same_run() -> None:
    points = front(FOUND, ORIGINAL, "latency").points
    assert [p.x for p in points] == [100.0, 50.0, 80.0, 200.0]
    assert [p.id for p in points if p.best] == ["", "a"]  # c is slower than the original and less accurate


def test_agreement_stands_in_without_labels() -> None:
    original = replace(ORIGINAL, accuracy=None)
    made = front({"a": candidate("a", scores(None, 9))}, original)
    assert (made.measure, len(made.points)) == ("agreement", 2)


def test_the_knee_is_where_the_front_bends() -> None:
    """From (1, 80) to (4, 95) scaled to the unit square, a lies at (1/3, 1/15): farthest from the line between them."""
    knee = front(FOUND, ORIGINAL).knee
    assert knee is not None
    assert knee.id == "a"
    assert front({}, ORIGINAL).knee is None


@pytest.mark.parametrize(
    ("most", "least", "best", "promised"),
    [
        (None, None, None, "plan-3"),  # no limit: nothing to mark
        (3.5, None, "a", "plan-2"),
        (1.5, None, "c", "plan-1"),
        (1.5, 81.0, None, "plan-1"),  # no file, but a plan
        (0.7, 90.0, None, None),
        (None, 94.5, "", "plan-3"),
    ],
)
def test_the_best_within_the_limits(
    most: float | None, least: float | None, best: str | None, promised: str | None
) -> None:
    made = limited(most, least)
    assert (made.allowed.id if made.allowed else None) == best
    assert (made.promised.id if made.promised else None) == promised


def test_why_a_point_is_beaten() -> None:
    made = front(FOUND, ORIGINAL)
    (better,) = made.beaten_by("b")
    worse = made.find("b")
    assert better.id == "a"
    assert worse is not None
    # 2 of 3 million is a third less; 94 % against 93 %, each with an interval from -2 to +3
    assert made.compare(better, worse) == "33 % fewer MACs and 1.00 points better, though the intervals overlap"
    assert made.beaten_by("a") == made.beaten_by("gone") == []
    apart, level = replace(worse, y=80.0, high=83.0, x=2.0), replace(worse, y=better.y)
    assert made.compare(better, apart) == "as many MACs and 14.00 points better"
    assert made.compare(better, level) == "33 % fewer MACs and of the same accuracy"
    slow = front(FOUND, ORIGINAL, "latency")
    assert [p.id for p in slow.beaten_by("c")] == ["", "a"]
    assert slow.compare(slow.points[1], slow.points[3]).startswith("75 % less time and 14.00 points better")


def test_predictions_come_in_the_units_of_the_chart() -> None:
    rows = [
        Outlook(Recipe(), 2_500_000.0, Prediction(0.9, 0.88, 0.91, 0.1, False)),
        Outlook(Recipe(), 1_000_000.0, Prediction(None, None, None, 0.1, False, "rank only")),
        Outlook(Recipe(), 500_000.0, Prediction(0.5, 0.2, 0.8, 9.0, True)),
    ]
    first, last = guesses(rows, AXES["macs"])
    assert (first.id, first.x, first.beyond) == ("plan-0", 2.5, False)
    assert (first.y, first.low, first.high) == pytest.approx((90, 88, 91))
    assert (last.id, last.beyond) == ("plan-2", True)  # numbered as the plans are
    assert guess_of(rows[1], AXES["macs"]) is None


def traces(figure: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in figure["data"] if all(row.get(key) == value for key, value in wanted.items())]


def dots_of(drawn: Chart) -> dict[str, Any]:
    return next(row for row in drawn.figure["data"] if "text" in row)


def test_the_chart_marks_here_and_says_the_front() -> None:
    drawn = pareto(replace(front(FOUND, ORIGINAL), here=1.5), picked="c")
    layout, dots = drawn.figure["layout"], dots_of(drawn)
    notes = {note["text"]: note["x"] for note in layout["annotations"]}
    assert layout["shapes"][0]["x0"] == notes["this recipe"] == 1.5
    assert notes["knee"] == 2.0
    assert dots["marker"]["symbol"] == ["star", "circle", "circle-open", "circle"]
    assert dots["marker"]["size"] == [10, 10, 10, 15]
    assert [row[0] for row in dots["customdata"]] == ["", "a", "b", "c"]
    assert "Recipe a 2 million, 94.00 %" in drawn.alt
    assert "Recipe b" not in drawn.alt
    assert "This recipe: 1.5 million." in drawn.alt
    low, high = layout["xaxis"]["range"]
    assert low == 0
    assert high > 4.0
    json.dumps(drawn.figure)


def test_the_band_is_violet_where_it_is_known_and_grey_beyond() -> None:
    info = replace(front(FOUND, ORIGINAL), band=BAND, here=2.0, expected=replace(BAND[2], id="here"))
    drawn = pareto(info, plans=True)
    far, known = traces(drawn.figure, fill="toself")
    assert far["x"] == [0.5, 1.0, 1.0, 0.5]  # up to where the known part begins
    assert far["y"] == [80.0, 86.0, 78.0, 20.0]
    assert known["x"] == [1.0, 2.0, 4.0, 4.0, 2.0, 1.0]
    assert known["y"] == [86.0, 94.0, 95.0, 95.0, 90.0, 78.0]
    assert far["fillcolor"] != known["fillcolor"]
    (line,) = traces(drawn.figure, mode="lines+markers")
    assert [row[0] for row in line["customdata"]] == ["plan-0", "plan-1", "plan-2", "plan-3"]
    assert not traces(pareto(info).figure, mode="lines+markers")  # a light one where it follows the sliders
    assert "This recipe: 2 million, predicted 92.00 % (90.0 to 94.0)." in drawn.alt
    assert "from predicted 82.00 % (78.0 to 86.0) at 1 million to predicted 95.00 %" in drawn.alt
    bottom, top = drawn.figure["layout"]["yaxis"]["range"]
    assert bottom < 75 < 98 < top  # the plan at 50 % is 45 points below the original: followed for 20 of them
    json.dumps(drawn.figure)


def test_what_is_not_allowed_is_shaded_and_the_best_of_the_rest_ringed() -> None:
    drawn = pareto(limited(3.5, 85.0))
    layout = drawn.figure["layout"]
    right, (bottom, _) = layout["xaxis"]["range"][1], layout["yaxis"]["range"]
    wide, low = layout["shapes"]
    assert (wide["x0"], wide["x1"]) == (3.5, right)
    assert (low["y0"], low["y1"]) == (bottom, 85.0)
    (ring,) = traces(drawn.figure, hoverinfo="skip", mode="markers")
    assert (ring["x"], ring["y"]) == ([2.0], pytest.approx([94.0]))
    assert "The best allowed is Recipe a." in drawn.alt
    assert "best allowed" in [note["text"] for note in layout["annotations"]]


def test_a_file_scored_on_a_sample_looks_different() -> None:
    found = {"a": candidate("a", replace(FOUND["a"].scores, verified=False))}
    dots = dots_of(pareto(front(found, ORIGINAL)))
    assert dots["marker"]["symbol"] == ["star", "diamond"]
    assert [row[1] for row in dots["customdata"]] == ["verified", "measured"]
