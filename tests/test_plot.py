"""Charts reach the browser exactly as Plotly itself would send them, though it is not asked to check them again."""

from __future__ import annotations

import json

import plotly.io
import plotly.tools
import pytest

from app import compare_charts, front, pareto_chart, plot, treemap
from app.charts import Chart, learning_curve
from core.candidate import Latency
from core.recipe import Recipe
from tests.profiles import resnet
from tests.workspaces import made_of, scores

PROFILE = resnet(1)
ROW = Latency(1, 1, 1.0, 2.0, 2.0, 1.9, 2.2, 9)
ORIGINAL = scores(PROFILE, [29])
MADE = made_of(PROFILE, Recipe(), [0, 1], (ROW,))
CHARTS = {
    "curve": learning_curve([{"epoch": 1, "accuracy": 0.5}, {"epoch": 2, "accuracy": 0.75}]),
    "treemap": treemap.treemap(PROFILE, treemap.QUANTITIES[0]),
    "front": pareto_chart.pareto(front.front({}, ORIGINAL)),
    "speedups": compare_charts.speedups((ROW,)),
    "classes": compare_charts.per_class(compare_charts.class_rows(("a", "b", "c"), ORIGINAL, MADE)),
    "layers": compare_charts.layer_error({"conv1": 0.1, "fc": 0.2}),
}


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_figure_is_sent_as_plotly_itself_would(chart: Chart) -> None:
    plot._set_theme()
    ready = plotly.tools.return_figure_from_figure_or_data(plot._ready_figure()(chart.figure), validate_figure=True)
    checked = plotly.tools.return_figure_from_figure_or_data(chart.figure, validate_figure=True)
    sent, right = (json.loads(plotly.io.to_json(figure, validate=False)) for figure in (ready, checked))
    sent["layout"] = {name: value for name, value in sent["layout"].items() if value != []}  # Plotly drops empty lists
    assert sent == right
    assert "#000001" in sent["layout"]["template"]["layout"]["colorway"]  # Streamlit's own, which the page recolours
