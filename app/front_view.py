"""The front on a page: which axis, what is allowed, the chart, and in words what it shows. Used by Tune and by Runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from app import front as fronts
from app import predicted, tables
from app.figures import badge
from app.front import AXES, ORIGINAL, Axis, Front, Guess, Limits, Point
from app.pareto_chart import about, pareto
from app.plot import plot
from app.state import State
from core.candidate import Candidate, Scores
from core.layers import Profile

SHORT = {"size_bytes": "Size", "peak_bytes": "Memory"}  # so that all fit beside each other


def choose_axis(key: str) -> Axis:
    """What accuracy is weighed against."""
    chosen = st.segmented_control(
        "Weigh accuracy against", list(AXES), default="macs", required=True, key=key, label_visibility="collapsed",
        format_func=lambda k: SHORT.get(k) or AXES[k].title.partition(",")[0],
    )  # fmt: skip
    return AXES[chosen]


def ask_limits(axis: Axis, measure: str) -> Limits:
    """Two numbers that a person may leave empty."""
    with st.container(horizontal=True, key="limits"):
        unit = axis.unit if axis.key in ("size_bytes", "peak_bytes", "latency") else f"{axis.unit} {axis.title}"
        more: dict[str, Any] = {"min_value": 0.0, "placeholder": "no limit", "width": 260, "persist_state": "session"}
        most = st.number_input(f"At most ({unit})", value=None, key=f"most-{axis.key}", **more)
        least = st.number_input(f"At least (% {measure})", value=None, max_value=100.0, key="least", **more)
    return Limits(most, least)


def gather(now: State, axis: Axis, found: dict[str, Candidate], original: Scores) -> Front:
    """Files, and what is predicted for this model and data."""
    made = fronts.front(found, original, axis.key)
    return replace(made, band=predicted.band(now, axis))


def with_recipe(info: Front, now: State, profile: Profile) -> Front:
    """The same with the recipe at the sliders on it."""
    here, expected = predicted.here(now, profile, info.axis)
    return replace(info, here=here, expected=expected)


def draw(info: Front, now: State, found: dict[str, Candidate], key: str, *, plans: bool = False) -> None:
    """The chart. A point that is picked loads its recipe; with `plans`, a point of the predicted front too."""
    chart = pareto(info, picked=now.picked, plans=plans)
    # the revision is part of the key, so that a pick leaves the chart without a selection that would fire again
    event = plot(chart, f"{key}-{info.axis.key}-{now.revision}", on_select="rerun", selection_mode="points")
    for name in [point["customdata"][0] for point in event["selection"]["points"] if point.get("customdata")]:
        if name in found:
            now.pick(found[name])
            st.rerun()
        if name.startswith("plan-"):
            now.change(predicted.plan(now, info.axis, int(name.removeprefix("plan-"))))
            st.rerun()


def badges(info: Front, original: Scores) -> None:
    """How the numbers were obtained."""
    with st.container(horizontal=True, gap="small", width="content"):
        badge(tables.badge_of(original))
        if info.band or info.expected:
            badge("predicted")


def tell(info: Front, now: State, found: dict[str, Candidate]) -> None:
    """What the limits leave, and why the picked candidate is not on the front."""
    if info.limits != Limits():
        _tell_allowed(info, now, found)
    point = info.find(now.picked)
    if point and info.beaten_by(point.id):
        st.markdown(why_beaten(info, point))


def why_beaten(info: Front, point: Point) -> str:
    """'Prune channels 30 % is beaten by Quantize int8: 12 % smaller and 0.30 points better.'"""
    by = [f"**{tables.plain(p.title)}**: {info.compare(p, point)}" for p in info.beaten_by(point.id)[:2]]
    return f"{tables.plain(point.title)} is beaten by {'; and by '.join(by)}."


def _tell_allowed(info: Front, now: State, found: dict[str, Candidate]) -> None:
    best, unit = info.allowed, info.axis.unit
    if best is None:
        st.markdown(f"No file measured so far is within these limits. {promise(info.promised, unit)}")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        text = f"Best allowed: **{tables.plain(best.title)}**, {best.y:.2f} % at {best.x:.4g} {unit}."
        st.markdown(text, width="content")
        if best.id != ORIGINAL and best.id != now.picked:
            st.button("Load it", key="load-best", on_click=now.pick, args=(found[best.id],), type="tertiary")


def promise(guess: Guess | None, unit: str) -> str:
    """What the predicted front has within the limits."""
    if guess is None:
        return ""
    return f"A plan of {guess.x:.4g} {unit} is {about(guess)}: pick it on the violet line."


def caption(info: Front, *, plans: bool = False) -> str:
    """What the marks mean: only those that are there."""
    said = ["Star: the original."]
    if len(info.points) > 1:
        said.append("Filled: no other file is better in both. Select a point to load its recipe.")
    if info.band:
        said.append(f"Violet: predicted, with its 80 % interval{'; a dot of it loads that plan' if plans else ''}.")
    return " ".join(said)
