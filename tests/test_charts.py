"""Charts as records: what is marked, what the words say. Numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app import charts, compare_charts
from app.front import front
from app.pareto_chart import pareto
from core.candidate import Latency, Scores, Share


def share(value: float) -> Share:
    return Share(value, value - 0.02, value + 0.03, 100)


def scores(accuracy: float | None, macs: int, speed: float | None = None, per_class: tuple[Share, ...] = ()) -> Scores:
    rows = () if speed is None else (Latency(1, 1, 1.0, speed, speed, speed - 0.1, speed + 0.2, 9),)
    return Scores(share(accuracy) if accuracy else None, share(0.9), 2 * macs, macs, macs, 5, rows, per_class)


def test_whiskers_are_distances_from_the_middle() -> None:
    bars = charts.whiskers([0.5], [0.4], [0.8])
    assert bars["array"] == pytest.approx([0.3])
    assert bars["arrayminus"] == pytest.approx([0.1])


def test_class_rows_come_worst_first_and_without_empty_classes() -> None:
    before = scores(0.9, 1, per_class=(share(0.9), share(0.8), share(0.7), replace(share(0.5), count=0)))
    after = scores(0.9, 1, per_class=(share(0.95), share(0.6), share(0.65), replace(share(0.1), count=0)))
    rows = compare_charts.class_rows(("ant", "bee", "cow", "dog"), before, after)
    assert [(row.name, round(row.change, 6)) for row in rows] == [("bee", -20.0), ("cow", -5.0), ("ant", 5.0)]
    drawn = compare_charts.per_class(rows)
    assert "bee -20.0" in drawn.alt
    assert drawn.figure["data"][2]["x"][:3] == pytest.approx([80, 60, None])


def test_of_many_classes_those_that_changed_most() -> None:
    count = compare_charts.MOST_ROWS + 10
    before = scores(0.9, 1, per_class=(share(0.5),) * count)
    after = scores(0.9, 1, per_class=tuple(share(0.5 + 0.001 * i) for i in range(count)))
    rows = compare_charts.class_rows([str(i) for i in range(count)], before, after)
    assert [row.name for row in rows] == [str(i) for i in range(10, count)]


def test_layer_error_names_the_worst() -> None:
    drawn = compare_charts.layer_error({"conv1": 0.01, "conv2": 0.25, "fc": 0.1})
    assert "largest at conv2: 25.00 %" in drawn.alt
    assert drawn.figure["data"][0]["y"] == pytest.approx([1, 25, 10])


def test_learning_curve_says_the_best_epoch() -> None:
    rows = [{"epoch": e, "loss": 1.0, "accuracy": a} for e, a in ((1, 0.5), (2, 0.75), (3, 0.7))]
    assert "best 75.00 % after epoch 2" in charts.learning_curve(rows).alt


@pytest.mark.parametrize(
    "drawn",
    [
        pareto(front({}, scores(0.95, 4_000_000))),
        charts.learning_curve([]),
        compare_charts.layer_error({}),
        compare_charts.speedups((Latency(1, 1, 1.0, 2.0, 2.0, 1.9, 2.2, 9),)),
        compare_charts.per_class([]),
    ],
    ids=["pareto", "curve", "layers", "speedups", "classes"],
)
def test_every_chart_is_light_and_of_no_theme(drawn: charts.Chart) -> None:
    layout = drawn.figure["layout"]
    assert drawn.alt
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    for axis in ("xaxis", "yaxis"):
        assert layout[axis]["fixedrange"]
        assert len(layout[axis]["range"]) == 2
    json.dumps(drawn.figure)
