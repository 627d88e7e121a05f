"""Recipes that were not run on the axes of the chart: costs by hand, fronts against the forecast they are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.calibration import Point
from core.forecast import Forecast, Prediction
from core.latency_table import LatencyTable, Operator
from core.layers import Profile
from core.outlook import INT8_LAYER_BYTES, STEPS, Outlook, cost_on, front, thin
from core.predict import costs, shape_of
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, Cell, SensitivityTable, severity
from tests.profiles import resnet

RESNET = resnet(1)
INT8 = Recipe((Step("quantize"),))
HALF = Recipe((Step("prune_channels", {"ratio": 0.5}),))


def make_table(profile: Profile, techniques: tuple[str, ...] = ("prune_channels", "quantize")) -> SensitivityTable:
    """KL = severity² everywhere."""
    cells = {}
    for technique in techniques:
        names = [g.name for g in profile.groups if not g.blocked]
        if technique != "prune_channels":
            names = [x.name for x in profile.tunable]
        for name in names:
            for level in LEVELS[technique]:
                cell = Cell(name, technique, level, kl=severity(technique, level) ** 2)
                cells[name, technique, level] = cell
    return SensitivityTable({}, cells)


def make_forecast(count: int = 16) -> Forecast:
    kl = np.geomspace(0.001, 20, count)
    points = [Point(float(k), float(0.02 * k), "calibration", repair) for k in kl for repair in (False, True)]
    return Forecast(RESNET, make_table(RESNET), tuple(points), 0.9)


def test_costs_are_those_of_the_prediction() -> None:
    for recipe in (Recipe(), HALF, INT8):
        assert cost_on(RESNET, recipe, "macs") == costs(RESNET, recipe).macs
        assert cost_on(RESNET, recipe, "params") == costs(RESNET, recipe).params


def test_a_file_is_its_weights_and_the_graph_around_them() -> None:
    """A profile of these tests says that the original's file has 5,000 bytes beside its float weights."""
    assert cost_on(RESNET, Recipe(), "size_bytes") == 4 * RESNET.params + 5000
    assert cost_on(RESNET, HALF, "size_bytes") == costs(RESNET, HALF).weight_bytes + 5000
    around = 5000 + INT8_LAYER_BYTES * len(RESNET.tunable)
    assert cost_on(RESNET, INT8, "size_bytes") == costs(RESNET, INT8).weight_bytes + around
    half = Recipe((Step("quantize", {"mode": "float16"}),))
    assert cost_on(RESNET, half, "size_bytes") == costs(RESNET, half).weight_bytes + 5000


def test_latency_is_a_share_of_the_originals() -> None:
    """Every int8 layer takes a third of its float time, so the model does."""
    shapes = [shape_of(x, x.in_channels, x.out_channels) for x in RESNET.tunable]
    times = {Operator(s): 0.3 for s in shapes} | {Operator(s, "int8"): 0.1 for s in shapes}
    table = LatencyTable(times)
    assert cost_on(RESNET, INT8, "latency", table) == pytest.approx(1 / 3)
    assert cost_on(RESNET, Recipe(), "latency", table) == 1.0
    assert cost_on(RESNET, INT8, "latency") is None
    last = front(make_forecast(), "latency", latency=table)[-1]
    assert (last.cost, last.prediction.value) == (1.0, 0.9)


@pytest.mark.parametrize("axis", ["macs", "params", "size_bytes", "peak_bytes"])
def test_the_front_costs_and_predicts_what_its_recipes_do(axis: str) -> None:
    forecast = make_forecast()
    made = front(forecast, axis)
    assert len(made) > 5
    for row in made:
        assert row.cost == cost_on(RESNET, row.recipe, axis)
        assert row.prediction == forecast.predict(row.recipe)
    assert [row.cost for row in made] == sorted(row.cost for row in made)
    values = [row.prediction.value or 0 for row in made]
    assert values == sorted(values)
    assert made[-1].recipe == Recipe()
    uniform = HALF
    cost, value = cost_on(RESNET, uniform, axis), forecast.predict(uniform).value
    assert cost is not None
    assert value is not None
    step = (values[-1] - values[0]) / STEPS  # what thinning may leave out
    assert max(v for v, row in zip(values, made, strict=True) if row.cost <= cost) >= value - step


def test_no_front_without_enough_measurements() -> None:
    forecast = make_forecast()
    assert front(replace(forecast, points=forecast.points[:6]), "macs") == ()  # three of each kind
    assert front(forecast, "latency") == ()  # and no table of times
    assert front(replace(forecast, table=SensitivityTable({}, {})), "macs") == ()


def test_a_front_is_thinned_to_visible_steps() -> None:
    """Each is 1 % of the whole cost and of the whole accuracy further: one in seven makes a 16th."""
    rows = [Outlook(Recipe(), float(i), Prediction(i / 1000, 0, 1, 0, False)) for i in range(101)]
    kept = [row.cost for row in thin(rows)]
    assert kept[:3] == [0, 7, 14]
    assert kept[-1] == 100
    assert len(kept) <= STEPS
    assert thin(rows[:2]) == tuple(rows[:2])
