"""Predictions for the chart, each worked out once: a predicted front is kept until what it is made of changes."""

from __future__ import annotations

import streamlit as st

from app import forecast_view
from app.front import Axis, Guess, guess_of, guesses
from app.state import State
from core import outlook
from core.forecast import Forecast
from core.latency_table import LatencyTable
from core.layers import Profile
from core.outlook import Outlook
from core.recipe import Recipe


def band(now: State, axis: Axis) -> tuple[Guess, ...]:
    """The predicted front; () where there is no forecast."""
    return guesses(_plans(now, axis), axis)


def plan(now: State, axis: Axis, number: int) -> Recipe:
    """The recipe of a point of the band; the current one where the band has changed meanwhile."""
    plans = _plans(now, axis)
    return plans[number].recipe if number < len(plans) else now.recipe


def here(now: State, profile: Profile, axis: Axis) -> tuple[float | None, Guess | None]:
    """The recipe at the sliders: its cost in the axis's unit, and with the accuracy that is predicted for it."""
    cost = outlook.cost_on(profile, now.recipe, axis.key, forecast_view.load_times(now))
    if cost is None:
        return None, None
    known = forecast_view.load(now)
    told = known and guess_of(Outlook(now.recipe, cost, known.predict(now.recipe)), axis)
    return cost * axis.scale, told or None


def _plans(now: State, axis: Axis) -> tuple[Outlook, ...]:
    known = forecast_view.load(now)
    times = forecast_view.load_times(now) if axis.key == "latency" else None
    about = (now.model, now.data, *forecast_view.stamps(now), times is not None)
    return _front(about, axis.key, known, times) if known else ()


@st.cache_resource(max_entries=64, show_spinner=False)
def _front(about: tuple[object, ...], axis: str, _known: Forecast, _times: LatencyTable | None) -> tuple[Outlook, ...]:
    return outlook.front(_known, axis, latency=_times)
