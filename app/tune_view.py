"""What the Tune page draws on its left: which technique, its step's switch, the layer table and the other options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from app import forecast_view, forms, layer_rows
from app.components.layer_table import Edit, layer_table
from app.layer_rows import Place
from app.sensitivity_rows import loss_data
from app.slower_rows import slower_data
from app.state import State
from core.catalog import CATALOG, option_fields
from core.errors import RecipeError
from core.forecast import Forecast
from core.latency_table import LatencyTable
from core.layers import Profile
from core.plan import measured_as
from core.recipe import Recipe, Step

TABS = ("Prune", "Factorize", "Quantize", "Distill")  # in the order a person works; the catalog says what each holds


def choose(now: State) -> Place:
    """The tab, its technique where it has several, and which step of it where the recipe has several."""
    with st.container(horizontal=True, vertical_alignment="center"):
        tab = _pick("Technique", TABS, "tab", persist_state="session")  # bound to the address, switch_page would fail
        entries = {entry.key: entry for entry in CATALOG.values() if entry.tab == tab}
        key = next(iter(entries))
        if len(entries) > 1:
            key = _pick("What is removed", tuple(entries), f"kind-{tab}", format_func=lambda k: entries[k].title)
        at = [i for i, step in enumerate(now.recipe.steps) if step.technique == key]
        which = 0
        if len(at) > 1:
            numbers = tuple(range(len(at)))
            which = _pick("Step", numbers, f"which-{key}-{len(at)}", format_func=lambda i: f"Step {at[i] + 1}")
    return layer_rows.find(now.recipe, key, which)


def _pick(label: str, choices: Sequence[Any], key: str, **more: Any) -> Any:
    """One of several, always exactly one."""
    return st.segmented_control(
        label, choices, default=choices[0], required=True, key=key, label_visibility="collapsed", **more
    )


def switch(now: State, place: Place) -> None:
    """The step's on/off switch beside what the technique does."""
    entry = CATALOG[place.technique]
    on = place.present and now.recipe.steps[place.at].enabled
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        # the key holds all that may change the switch from elsewhere, so that it never shows an old state
        key = f"use-{entry.key}-{place.at}-{now.revision}-{on}"
        wanted = st.toggle(entry.title, on, key=key, width="content", help=f"Paper: {entry.paper}")
        st.caption(entry.help)
    if wanted == on:  # compared here: a callback may be called for a widget that nobody touched
        return
    before, step = now.recipe, replace(now.recipe.steps[place.at], enabled=wanted) if place.present else Step(entry.key)
    change(now, lambda: layer_rows.put(before, place, step))
    now.revision += now.recipe == before  # where it was refused, the switch goes back
    st.rerun()  # with a switch of the new revision


def table(now: State, profile: Profile, place: Place, known: Forecast | None = None) -> None:
    """The layer table; an edit made there becomes the recipe. With a forecast, rows show what they cost and lock."""
    times, technique = forecast_view.load_times(now), measured_as(place.technique)
    bits = 8.0 if any(s.technique == "quantize" and s.record.mode == "int8" for s in now.recipe.active) else 32.0
    ident = f"{now.model}|{bits:g}"
    recipe = _as_given(now, place, ident)
    data = layer_rows.table_data(profile, recipe, place, ident)
    if known is not None:
        locked = [name for name, kind in now.locks if kind == technique]
        about = (now.model, now.data, *forecast_view.stamps(now))
        data |= {"loss": _loss(about, place.technique, known), "locked": locked}
    if times is not None:
        step, about = place.step(recipe), (now.model, *forecast_view.stamps(now))
        data["slower"] = _slower((*about, step.technique, repr(step.record)), profile, times, step)
        if data["dial"] and data["dial"]["name"] == layer_rows.COUPLING:
            data["paying"] = _paying(about, profile, times, step.record.multiple, bits)
    edit, locked_now = layer_table(data, rev=now.revision, key=f"table-{place.technique}")
    if locked_now is not None:
        now.lock(technique, locked_now)
    if edit is None or data["dial"] is None:
        return
    if apply(now, place, edit) and not data["active"]:
        st.rerun()  # the edit switched the step on, and the switch above is drawn already


def _as_given(now: State, place: Place, ident: str) -> Recipe:
    """The recipe as the layer table was given it, without its own edits: it has those, and sending all of it back at
    every release would take a tenth of a second."""
    step, dial = place.step(now.recipe), CATALOG[place.technique].dial
    about = (now.revision, ident, place, getattr(step.record, "multiple", None))
    if now.given is None or now.given[0] != about:
        now.given = about, step
    if not place.present or dial is None:
        return now.recipe
    before = now.given[1]
    options = {**step.options, dial: getattr(before.record, dial)}
    return layer_rows.put(now.recipe, place, replace(step, options=options, layers=before.layers))


@st.cache_resource(max_entries=32, show_spinner=False)
def _loss(about: tuple[object, ...], technique: str, _known: Forecast) -> dict[str, Any]:
    """The same until the forecast changes."""
    return loss_data(_known, CATALOG[technique])


@st.cache_resource(max_entries=32, show_spinner=False)
def _slower(about: tuple[object, ...], _profile: Profile, _times: LatencyTable, _step: Step) -> dict[str, Any]:
    return slower_data(_profile, _times, _step)


@st.cache_resource(max_entries=32, show_spinner=False)
def _paying(
    about: tuple[object, ...], _profile: Profile, _times: LatencyTable, multiple: int, bits: float
) -> dict[str, list[float]]:
    return layer_rows.paying_ratios(_profile, _times, multiple, bits)


def apply(now: State, place: Place, edit: Edit) -> bool:
    """Take over what was set in the table, which shows it already. Says whether the recipe is another one now."""
    before = now.recipe
    dial = str(CATALOG[place.technique].dial)
    options = {**place.step(before).options, dial: edit.value}
    change(now, lambda: layer_rows.put(before, place, Step(place.technique, options, edit.layers)), from_table=True)
    return now.recipe != before


def options(now: State, place: Place) -> None:
    """The technique's options other than the dial, once its step is in the recipe."""
    if not place.present:
        return
    entry, step = CATALOG[place.technique], now.recipe.steps[place.at]
    skip = (entry.dial,) if entry.dial else ()
    if len(skip) == len(option_fields(entry)):
        return
    box = st.expander("Options", expanded=entry.dial is None, icon=":material/settings:", key=f"options-{entry.key}")
    with box, st.grid(2, min_column_width=240, key=f"grid-{entry.key}"):
        key = f"option-{entry.key}-{place.at}-{now.revision}"
        chosen = replace(step, options=forms.draw_options(entry, step.options, key, skip=skip))
    if chosen.record != step.record:
        # as from the table: new widgets would take the focus from the one in use
        change(now, lambda: layer_rows.put(now.recipe, place, chosen), from_table=True)


def change(now: State, make: Callable[[], Recipe], *, from_table: bool = False) -> None:
    """Change the recipe, or say in one sentence why not and keep it as it is."""
    try:
        now.change(make(), from_table=from_table)
    except RecipeError as error:
        st.toast(str(error), icon=":material/block:")
