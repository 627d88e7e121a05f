"""Every option of every technique, drawn by Streamlit and read back: nothing changes unless a person changes it."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.forms import widget
from core.catalog import CATALOG, check_options, option_fields

OPTIONS = [(key, name) for key, entry in CATALOG.items() for name in option_fields(entry)]


def page(technique: str, options: dict, skip: tuple) -> None:  # type: ignore[type-arg]
    """Runs inside AppTest, which takes its source: imports belong inside."""
    import streamlit as st

    from app import forms
    from core.catalog import CATALOG

    st.session_state["out"] = forms.draw_options(CATALOG[technique], options, "o", skip=skip)


def draw(technique: str, options: dict[str, Any], skip: tuple[str, ...] = ()) -> AppTest:
    values = {"technique": technique, "options": options, "skip": skip}
    tested = AppTest.from_function(page, default_timeout=30, kwargs=values)
    tested.run()
    assert not tested.exception, tested.exception
    return tested


def another(technique: str, name: str) -> Any:
    """A value that is not the default, on the option's own grid."""
    spec = option_fields(CATALOG[technique])[name]
    about: Any = spec.metadata
    if about["choices"]:
        return next(choice for choice in reversed(about["choices"]) if choice != spec.default)
    if isinstance(spec.default, bool):
        return not spec.default
    end = about["low"] if spec.default != about["low"] else about["high"]
    return type(spec.default)(end)


@pytest.mark.parametrize("technique", CATALOG)
def test_defaults_stay_defaults(technique: str) -> None:
    assert draw(technique, {}).session_state["out"] == {}


@pytest.mark.parametrize("technique", CATALOG)
def test_values_come_back_in_their_own_type(technique: str) -> None:
    options = {name: another(technique, name) for name in option_fields(CATALOG[technique])}
    out = draw(technique, options).session_state["out"]
    assert out == options
    assert {name: type(value) for name, value in out.items()} == {name: type(value) for name, value in options.items()}
    assert check_options(CATALOG[technique], out) == options


def test_skipped_options_pass_unseen() -> None:
    tested = draw("prune_channels", {"ratio": 0.42, "criterion": "fpgm"}, ("ratio",))
    assert tested.session_state["out"] == {"ratio": 0.42, "criterion": "fpgm"}
    assert [slider.label for slider in tested.slider] == []


def test_a_person_changes_a_slider_and_a_switch() -> None:
    tested = draw("distill", {})
    tested.slider(key="o-alpha").set_value(0.3)
    tested.toggle(key="o-teacher").set_value(False)
    tested.number_input(key="o-learning_rate").set_value(0.005)
    tested.run()
    assert tested.session_state["out"] == {"alpha": 0.3, "teacher": False, "learning_rate": 0.005}


@pytest.mark.parametrize(("technique", "name"), OPTIONS)
def test_every_widget_says_what_it_is(technique: str, name: str) -> None:
    spec = option_fields(CATALOG[technique])[name]
    drawn = widget(spec)
    assert drawn.help == spec.metadata["help"]
    assert drawn.kind in ("switch", "buttons", "list", "slider", "number")
    if drawn.kind in ("slider", "number"):
        assert {type(value) for value in (drawn.low, drawn.high, drawn.step)} == {type(spec.default)}
        assert (drawn.low, drawn.high) == (spec.metadata["low"], spec.metadata["high"])


def test_shares_are_shown_in_percent_and_units_in_the_label() -> None:
    prune, quantize = option_fields(CATALOG["prune_channels"]), option_fields(CATALOG["quantize"])
    assert widget(prune["ratio"]).format == "percent"
    assert widget(quantize["images"]).label == "Images"  # the unit is said already
    assert widget(option_fields(CATALOG["distill"])["shift"]).label == "Shift (px)"
    assert widget(option_fields(CATALOG["distill"])["learning_rate"]).kind == "number"  # 0.00001 is on no slider's grid
