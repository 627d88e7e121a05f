"""Predictions for the pages, each worked out once: a forecast and its fronts are kept until their files change."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.front import Axis, Guess, guess_of, guesses
from app.state import State, workspace
from core import forecast, outlook
from core.forecast import Forecast
from core.layers import Profile
from core.outlook import Outlook
from core.recipe import Recipe
from core.workspace import Workspace

FILES = ("sensitivity-{}.jsonl", "calibration-{}.jsonl", "baseline-{}.json")
Stamp = tuple[object, ...]


def band(now: State, axis: Axis) -> tuple[Guess, ...]:
    """The predicted front; () where there is no forecast."""
    return guesses(_plans(now, axis), axis)


def plan(now: State, axis: Axis, number: int) -> Recipe:
    """The recipe of a point of the band; the current one where the band has changed meanwhile."""
    plans = _plans(now, axis)
    return plans[number].recipe if number < len(plans) else now.recipe


def here(now: State, profile: Profile, axis: Axis) -> tuple[float | None, Guess | None]:
    """The recipe at the sliders: its cost in the axis's unit, and with the accuracy that is predicted for it."""
    cost = outlook.cost_on(profile, now.recipe, axis.key)
    if cost is None:
        return None, None
    known = _known(now)
    told = known and guess_of(Outlook(now.recipe, cost, outlook.expect(known, now.recipe)), axis)
    return cost * axis.scale, told or None


def _known(now: State) -> Forecast | None:
    return _forecast(now.model, now.data, _stamp(workspace(), now)) if now.model and now.data else None


def _plans(now: State, axis: Axis) -> tuple[Outlook, ...]:
    return _front(now.model, now.data, axis.key, _stamp(workspace(), now)) if now.model and now.data else ()


def _stamp(space: Workspace, now: State) -> Stamp:
    """Equal for equal files: what a forecast is made of, and the candidates that have joined it."""
    folder, name = space.folder("models", str(now.model)), Path(str(now.data)).name
    found = [f.stat() for file in FILES if (f := folder / file.format(name)).exists()]
    made = tuple(sorted(f.parent.name for f in space.root.glob("candidates/*/candidate.json")))
    return str(space.root), tuple((x.st_mtime_ns, x.st_size) for x in found), made


@st.cache_resource(max_entries=16, show_spinner=False)
def _forecast(model: str, data: str, stamp: Stamp) -> Forecast | None:
    """Shared by all tabs: nothing changes it."""
    return forecast.load(workspace(), model, data)


@st.cache_resource(max_entries=64, show_spinner=False)
def _front(model: str, data: str, axis: str, stamp: Stamp) -> tuple[Outlook, ...]:
    known = _forecast(model, data, stamp)
    return outlook.front(known, axis) if known else ()
