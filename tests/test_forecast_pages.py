"""Tune with a forecast, on files written by hand: what is predicted and said, what a budget does, and undo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import budget_view, forecast_chart, forecast_view, sensitivity_rows
from app.components.layer_table import read_locks
from app.state import State
from app.tables import size
from core import forecast as forecasts
from core.budget import Gain
from core.catalog import CATALOG
from core.forecast import Prediction
from core.jobs import JobStore
from core.plan import plan_of, plan_rows
from core.predict import costs
from core.recipe import Recipe, Step
from core.recipe_latency import Speed, latency_path
from core.sensitivity_table import append_lines
from core.workspace import Workspace
from tests.forecasts import lost, write_forecast
from tests.profiles import resnet
from tests.test_tune_pages import BOTH, PRUNED, click, load, open_page, state, words
from tests.workspaces import write_workspace

PROFILE = resnet(1)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Nothing is measured but the original."""
    monkeypatch.setenv("CNN_STUDIO_HOME", str(tmp_path))
    monkeypatch.setattr(JobStore, "pump", lambda self: None)
    return write_workspace(tmp_path, PROFILE)


@pytest.fixture
def space(bare: Workspace) -> Workspace:
    write_forecast(bare, PROFILE)
    return bare


def text(tab: AppTest) -> str:
    return words(tab) + "\n" + "\n".join(str(x.proto.body) for x in tab.get("html"))


def open_budget(tab: AppTest) -> AppTest:
    tab.session_state["budget"] = True  # as a click on the expander does
    tab.run()
    assert not tab.exception, tab.exception
    return tab


def test_before_anything_is_measured_one_click_measures_it(bare: Workspace) -> None:
    tab = open_page("tune")
    assert "See it before you run it" in words(tab)
    click(tab, "measure")
    (job,) = JobStore(bare).list()
    assert (job.kind, job.params) == ("sensitivity", {"model": "net-1", "data": "pets-1"})
    assert tab.button(key="cancel").label == "Cancel"
    assert "See it before you run it" not in words(tab)  # it is on its way


def test_with_ranks_alone_no_number_is_shown(bare: Workspace) -> None:
    write_forecast(bare, PROFILE, ranks=True)
    tab = load(open_page("tune"), PRUNED)
    assert "is not measured yet" in text(tab)
    assert tab.button(key="measure").label == "Go on measuring"


@pytest.mark.parametrize("plans", [0, 3])  # at first the table alone is there
def test_with_few_networks_measured_it_says_rank_only(bare: Workspace, plans: int) -> None:
    write_forecast(bare, PROFILE, plans=plans)
    tab = load(open_page("tune"), PRUNED)
    assert f"rank only: {plans} of at least 6 whole-network measurements are done" in text(tab)


def test_the_prediction_follows_the_recipe_and_undo(space: Workspace) -> None:
    tab = open_page("tune")
    baseline = 29 / 30
    assert f"{100 * baseline:.1f} %" in text(tab)
    assert "nothing is changed" in text(tab)
    assert [m.value.split()[-1] for m in tab.markdown if "[Accuracy]" in m.value] == ["verified]"]
    assert "measure" not in [b.key for b in tab.button]  # all is measured
    load(tab, "recipe: 1\nsteps:\n- quantize: {}\n")
    known = forecasts.load(space, "net-1", "pets-1")
    assert known is not None
    found = known.predict(Recipe((Step("quantize"),)))
    assert found.value is not None
    assert f"{100 * found.value:.1f} %" in text(tab)
    assert "2.00× as fast; batch 1, 1 thread" in text(tab)
    assert [m.value.split()[-1] for m in tab.markdown if "[Accuracy]" in m.value] == ["predicted]"]
    click(tab, "Undo--1")
    assert "nothing is changed" in text(tab)


def test_weights_alone_are_predicted_and_say_what_that_leaves_out(space: Workspace) -> None:
    tab = load(open_page("tune"), "recipe: 1\nsteps:\n- distill: {}\n- quantize_weights: {}\n")
    assert "weights are rounded with feedback" in text(tab)
    assert "before training" in text(tab)


def test_a_budget_makes_a_recipe_that_keeps_within_it_and_undo_takes_it_back(space: Workspace) -> None:
    tab = open_budget(load(open_page("tune"), "recipe: 1\nsteps:\n- distill: {epochs: 2}\n"))
    before = state(tab).recipe
    tab.slider(key="share-net-1-macs").set_value(60).run()
    assert not tab.exception, tab.exception
    made = state(tab).recipe
    assert [s.technique for s in made.steps] == ["prune_channels", "distill"]
    assert costs(PROFILE, made).macs <= 0.6 * PROFILE.macs
    assert "Layer by layer" in words(tab)
    assert "Same share everywhere" in words(tab)
    used, other = (tab.button(key=f"use-{name}") for name in ("Layer by layer", "Same share everywhere"))
    assert used.disabled != other.disabled
    open_one = other if used.disabled else used
    open_one.click().run()
    assert state(tab).recipe != made
    click(tab, "Undo--1")
    assert state(tab).recipe == made
    click(tab, "Undo--1")
    assert state(tab).recipe == before
    assert "Layer by layer" not in words(tab)  # neither plan is the recipe any more


def test_a_plan_that_was_measured_to_lose_less_than_predicted_is_used(space: Workspace) -> None:
    plan = {(group.name, "prune_channels"): 0.5 for group in PROFILE.groups if not group.blocked}
    row = {"plan": plan_rows(plan), "repaired": True, "drop": {"accuracy": 0.001, "agreement": 0.01}, "images": 100}
    append_lines(space.folder("models", "net-1") / "calibration-pets-1.jsonl", [row])
    tab = open_budget(open_page("tune"))
    tab.slider(key="share-net-1-macs").set_value(60).run()
    assert not tab.exception, tab.exception
    assert "Best tried plan** :" in words(tab)
    assert tab.button(key="use-Best tried plan").disabled  # as it is in use
    assert plan_of(PROFILE, state(tab).recipe)[0] == plan
    assert costs(PROFILE, state(tab).recipe).macs <= 0.6 * PROFILE.macs


def test_another_kind_of_budget_changes_nothing_until_its_slider_is_moved(space: Workspace) -> None:
    tab = open_budget(open_page("tune"))
    tab.slider(key="share-net-1-macs").set_value(60).run()
    made = state(tab).recipe
    tab.segmented_control(key="budget-of").set_value("latency_ms").run()
    assert state(tab).recipe == made
    tab.slider(key="share-net-1-latency_ms").set_value(50).run()
    assert not tab.exception, tab.exception
    assert "quantize" in [s.technique for s in state(tab).recipe.steps]


def test_two_limits_at_once_and_memory_is_one_of_them(space: Workspace) -> None:
    tab = open_budget(open_page("tune"))
    tab.slider(key="share-net-1-macs").set_value(60).run()
    first = state(tab).recipe
    tab.pills(key="also-share-net-1-macs").set_value("peak_bytes").run()
    assert state(tab).recipe == first  # until its slider is moved
    tab.slider(key="also-share-net-1-macs-peak_bytes").set_value(70).run()
    assert not tab.exception, tab.exception
    made = costs(PROFILE, state(tab).recipe)
    assert made.macs <= 0.6 * PROFILE.macs
    assert made.peak_bytes <= 0.7 * PROFILE.peak_bytes
    assert costs(PROFILE, first).peak_bytes > 0.7 * PROFILE.peak_bytes
    assert f"{size(made.peak_bytes)}" in words(tab)


def test_a_budget_out_of_reach_says_what_it_takes(space: Workspace) -> None:
    tab = open_budget(open_page("tune"))
    state(tab).lock("prune_channels", ["conv1", "layer1.0.conv1", "layer1.1.conv1"])
    tab.slider(key="share-net-1-macs").set_value(5).run()
    assert "the smallest plan needs" in words(tab)
    assert state(tab).recipe.steps  # and that plan it is


def test_a_locked_layer_stays_as_it_is(space: Workspace) -> None:
    tab = open_budget(open_page("tune"))
    tab.slider(key="share-net-1-macs").set_value(50).run()
    cut = dict(state(tab).recipe.steps[0].layers)
    name = next(iter(cut))
    click(tab, "Undo--1")
    state(tab).lock("prune_channels", [name])
    tab.slider(key="share-net-1-macs").set_value(51).run()
    assert name not in state(tab).recipe.steps[0].layers


def test_a_change_that_pays_is_one_click(space: Workspace) -> None:
    tab = load(open_page("tune"), "recipe: 1\nsteps:\n- prune_channels: {ratio: 0.5}\n")
    assert "Changes that pay" in words(tab)
    before = state(tab).recipe
    click(tab, "take-0")
    assert state(tab).recipe != before
    assert len(state(tab).recipe.steps[0].layers) == 1
    click(tab, "Undo--1")
    assert state(tab).recipe == before


def test_how_right_the_forecast_was_is_on_the_page(space: Workspace) -> None:
    tab = open_page("tune")
    tab.session_state["track"] = True
    tab.run()
    assert not tab.exception, tab.exception
    assert "over 32 measured networks" in words(tab)
    assert "validation images" not in words(tab)
    (file,) = space.folder("models", "net-1").glob("calibration-*")
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(head), "remembered": 0.999}), *rows, ""]))
    tab.run()
    assert "right on 99.90 % of the validation images" in words(tab)
    assert "over 32 networks" in words(tab)
    assert "measured networks" not in words(tab), "what they lose is then expected, not measured"


def test_without_operator_times_latency_is_left_out(space: Workspace) -> None:
    latency_path(space, "net-1").unlink()
    tab = open_budget(load(open_page("tune"), BOTH))
    assert "as fast" not in text(tab)
    assert tab.segmented_control(key="budget-of").options == ["MACs", "Weights", "Peak memory"]


def test_a_forecast_that_was_removed_takes_its_numbers_with_it(space: Workspace) -> None:
    tab = load(open_page("tune"), PRUNED)
    shutil.rmtree(space.root / "models" / "net-1" / "x", ignore_errors=True)
    for file in space.folder("models", "net-1").glob("sensitivity-*"):
        file.unlink()
    tab.run()
    assert not tab.exception, tab.exception
    assert "See it before you run it" in words(tab)


def test_words_for_an_interval_and_for_what_lies_beyond() -> None:
    known = forecasts.Forecast(PROFILE, None, (), 0.9)  # type: ignore[arg-type]
    inside = forecast_view.accuracy_words(known, Prediction(0.88, 0.86, 0.9, 0.1, False))
    assert inside == ("Accuracy", "88.0 %", "86.0–90.0 %, right 8 times in 10; −2.0 points", False)
    beyond = forecast_view.accuracy_words(known, Prediction(0.5, 0.4, 0.6, 9.0, True, "before distillation"))
    assert beyond[2].startswith("extrapolating")
    assert beyond[2].endswith("before distillation")
    assert beyond[3]
    assert forecast_view.latency_words(Speed(2.0, 1.0), {})[2].startswith("2.00× slower")
    slower = forecast_view.latency_words(Speed(1.0, 2.0), {"a": 0.1, "b": 0.5})[2]
    assert slower.endswith("Slower than before: b (+50%) and 1 more")


def test_a_gain_says_what_to_do_and_for_how_much() -> None:
    keep = Gain(("conv1", "quantize"), 32.0, 8.0, 0.018, (0.0, 3000.0, 0.4))
    assert budget_view.gain_words(PROFILE, keep, "latency_ms", 2.0) == (
        "Keep `conv1` in float: **+1.8 points** for 0.400 ms".replace("0.400", "0.4")
    )
    assert budget_view.gain_words(PROFILE, keep, "macs", 1e6).endswith("for next to nothing")
    wider = Gain(("conv1", "prune_channels"), 0.25, 0.5, 0.01, (-1e6, 0.0, 0.0))
    assert budget_view.gain_words(PROFILE, wider, "macs", 1e7) == (
        "Leave `conv1` 12 channels, not 8: **+1.0 points** and 1.00 M MACs less"
    )


def test_bars_hold_each_settings_cost_for_the_browser(space: Workspace) -> None:
    known = forecasts.load(space, "net-1", "pets-1")
    assert known is not None
    found = sensitivity_rows.loss_data(known, CATALOG["prune_channels"])
    json.dumps(found)
    assert set(found["rows"]) == {g.name for g in PROFILE.groups if not g.blocked}
    row, settings = found["rows"]["conv1"], found["settings"]
    assert (settings[0], row["bar"][0], row["points"][0]) == (0.0, 0.0, 0.0)
    assert row["bar"] == sorted(row["bar"])
    at = settings.index(0.5)
    assert row["points"][at] == pytest.approx(100 * lost(0.25), abs=0.5)  # weight 1, severity 0.5
    assert max(row["bar"]) <= 1
    assert found["rows"]["layer3.0.conv1"]["points"][at] < row["points"][at]
    assert sensitivity_rows.loss_data(known, CATALOG["distill"]) == {"settings": [], "rows": {}}
    bits = sensitivity_rows.loss_data(known, CATALOG["quantize_weights"])
    assert bits["settings"] == [3.0, 4.0, 5.0, 6.0, 8.0, 32.0]
    assert bits["rows"]["conv1"]["bar"][-1] == 0.0


def test_ranks_alone_give_bars_without_points(bare: Workspace) -> None:
    write_forecast(bare, PROFILE, ranks=True)
    known = forecasts.load(bare, "net-1", "pets-1")
    assert known is not None
    rows = sensitivity_rows.loss_data(known, CATALOG["prune_channels"])["rows"]
    assert all(row["points"] is None for row in rows.values())
    assert rows["conv1"]["bar"][-1] > rows["layer3.0.conv1"]["bar"][-1] > 0


def test_the_chart_of_checks_says_its_largest_error(space: Workspace) -> None:
    known = forecasts.load(space, "net-1", "pets-1")
    assert known is not None
    drawn = forecast_chart.checks(known.checks, "accuracy")
    said = forecast_chart.checks(known.checks, "accuracy", expected=True)
    assert [("expected" in dot["hovertemplate"]) for dot in said.figure["data"][1:]] == [
        "calibration" in dot["name"] for dot in said.figure["data"][1:]
    ]
    assert "32 networks" in drawn.alt
    assert [trace["name"] for trace in drawn.figure["data"][1:]] == ["calibration", "calibration, repaired"]


def test_locks_belong_to_one_technique_and_one_model() -> None:
    now = State(model="a")
    now.lock("prune_channels", ["conv1"])
    now.lock("quantize", ["conv1", "fc"])
    assert now.locks == {("conv1", "prune_channels"), ("conv1", "quantize"), ("fc", "quantize")}
    now.lock("quantize", [])
    assert now.locks == {("conv1", "prune_channels")}
    now.model = "b"
    assert not now.locks
    assert read_locks({"rev": 3, "names": ["conv1"]}, 3) == {"conv1"}
    assert read_locks({"rev": 2, "names": ["conv1"]}, 3) is None
    assert read_locks(None, 3) is None
