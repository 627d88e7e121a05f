"""Recipe → milliseconds: sums by hand, what has no row says so, and the table travels by machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.engine.latency_job import fit_whole
from core.latency_table import INTEGER, LatencyTable, Operator
from core.machine import machine_id
from core.predict import costs, shape_of
from core.recipe import Recipe, Step
from core.recipe_latency import layer_times, load_latency, predict_latency, slower_layers, stand_in
from core.workspace import Workspace
from tests.forecasts import make_times, write_forecast
from tests.profiles import resnet
from tests.workspaces import write_workspace

PROFILE = resnet(1)
TIMES = make_times(PROFILE)  # 1 ms per million MACs where the shape is known
INT8 = Recipe((Step("quantize"),))


def test_the_original_takes_the_sum_of_its_operators() -> None:
    found = predict_latency(PROFILE, Recipe(), TIMES)
    assert found.latency_ms == pytest.approx(PROFILE.macs / 1e6)
    assert found.speedup == 1


def test_int8_takes_the_integer_rows_and_weights_alone_the_float_ones() -> None:
    assert predict_latency(PROFILE, INT8, TIMES).speedup == pytest.approx(2)
    assert predict_latency(PROFILE, Recipe((Step("quantize_weights"),)), TIMES).speedup == pytest.approx(1)
    one = Recipe((Step("quantize", {"bits": 32}, {"conv1": 8}),))
    conv1 = PROFILE.layer("conv1").macs / 1e6
    assert predict_latency(PROFILE, one, TIMES).latency_ms == pytest.approx(PROFILE.macs / 1e6 - conv1 / 2)


def test_every_layer_has_its_own_share_after_pruning() -> None:
    """Family fits of a table that is linear in MACs give MACs back, at any width."""
    shapes = [shape_of(PROFILE.layer("layer2.0.conv1"), a, b) for a in (8, 16) for b in (8, 16, 24, 32)]
    table = LatencyTable({Operator(s): s.macs / 1e6 for s in shapes})
    pruned = Recipe((Step("prune_channels", {"ratio": 0.5}),))
    exact = next(x for x in costs(PROFILE, pruned).layers if x.name == "layer2.0.conv1")
    assert layer_times(PROFILE, pruned, table)["layer2.0.conv1"] == pytest.approx(exact.macs / 1e6)


def test_a_layer_that_gets_slower_is_named() -> None:
    """int8 that takes twice as long on one layer, as on depthwise ones."""
    odd = Operator(shape_of(PROFILE.layer("conv1"), 3, 16), INTEGER)
    table = replace(TIMES, times={**TIMES.times, odd: 4 * TIMES.times[odd]})
    assert slower_layers(PROFILE, table, layer_times(PROFILE, INT8, table)) == {"conv1": pytest.approx(1.0)}
    assert slower_layers(PROFILE, TIMES, layer_times(PROFILE, INT8, TIMES)) == {}


def test_layers_of_the_whole_file_stand_in_for_operators_that_were_not_timed() -> None:
    """Half the channels in and out of 4 ms: a quarter stays, and a quarter of it each for inputs, outputs and both."""
    timed = replace(PROFILE, layers=tuple(replace(x, latency_ms=4.0) for x in PROFILE.layers))
    table = stand_in(timed)
    assert table is not None
    inner = timed.layer("layer3.0.conv2")
    for bits in (32, 8):
        assert table.operator(shape_of(inner, 64, 64), bits) == 4.0
        assert table.operator(shape_of(inner, 32, 32), bits) == pytest.approx(1 + 0.5 + 0.5 + 0.25)
    assert stand_in(PROFILE) is None


@pytest.mark.parametrize("mode", ["int8_dynamic", "float16"])
def test_what_has_no_row_gets_no_number(mode: str) -> None:
    found = predict_latency(PROFILE, Recipe((Step("quantize", {"mode": mode}),)), TIMES)
    assert found.latency_ms is None
    assert "no row" in found.reason


def test_a_model_smaller_than_any_that_was_timed_gets_no_number() -> None:
    far = LatencyTable(TIMES.times, slope=1.0, intercept=-0.9 * PROFILE.macs / 1e6)
    small = Recipe((Step("prune_channels", {"ratio": 0.9}),))
    assert predict_latency(PROFILE, small, far).latency_ms is None


def test_an_uploaded_file_is_compared_with_its_own_time_not_with_that_of_its_export() -> None:
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5}),))
    plain = predict_latency(PROFILE, recipe, TIMES)
    found = predict_latency(PROFILE, recipe, replace(TIMES, original_ms=1.25 * plain.original_ms))
    assert found.latency_ms == plain.latency_ms
    assert found.speedup == pytest.approx(1.25 * (plain.speedup or 0))


def test_whole_models_set_the_affine_step_and_the_scale_of_int8() -> None:
    """Float files take 2 · sum + 1; int8 files as if each of their operators took half as long again."""
    recipes = [Recipe(), Recipe((Step("prune_channels", {"ratio": 0.5}),)), INT8]
    sums = np.array([sum(layer_times(PROFILE, r, TIMES).values()) for r in recipes])
    table = fit_whole(TIMES, PROFILE, recipes, np.array([2 * sums[0] + 1, 2 * sums[1] + 1, 2 * 1.5 * sums[2] + 1]))
    assert (table.slope, table.intercept) == (pytest.approx(2), pytest.approx(1))
    key = next(key for key in TIMES.times if key.type == INTEGER)
    assert table.times[key] == pytest.approx(1.5 * TIMES.times[key])
    assert predict_latency(PROFILE, INT8, table).latency_ms == pytest.approx(3 * sums[2] + 1)


def test_where_overheads_hide_the_slope_one_factor_stands_for_all() -> None:
    recipes = [Recipe(), Recipe((Step("prune_channels", {"ratio": 0.5}),))]
    table = fit_whole(TIMES, PROFILE, recipes, np.array([1.0, 1.1]))  # the smaller one took longer
    assert table.intercept == 0
    assert table.slope > 0


def test_the_table_is_found_on_the_machine_that_measured_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = write_workspace(tmp_path, PROFILE)
    assert load_latency(space, "net-1") is None
    write_forecast(space, PROFILE)
    assert load_latency(Workspace(tmp_path), "net-1") == TIMES
    assert len(machine_id()) == 8
    monkeypatch.setattr("core.machine.processor", lambda: "another")
    assert load_latency(Workspace(tmp_path), "net-1") is None
