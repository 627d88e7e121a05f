"""A budget sets every layer: one slider, the plan it buys beside the same share everywhere and the best one measured;
and the changes that pay.

Everything here only builds recipes; the layer table's sliders follow them, and undo takes them back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from app import tables
from app.figures import inline_badge
from app.state import State
from app.tune_view import change
from core.budget import Gain, Offer, allocated, gains, least_share, measured, uniform
from core.catalog import CATALOG
from core.choices import Choices
from core.errors import StudioError
from core.forecast import Forecast
from core.latency_table import LatencyTable
from core.layers import Profile
from core.options import PruneChannels
from core.plan import plan_of
from core.recipe import Recipe
from core.sensitivity_table import LEVELS, SensitivityTable
from core.spending import KINDS, PEAK

TITLES = {"macs": "MACs", "weight_bytes": "Weights", "latency_ms": "Latency", PEAK: "Peak memory"}
WORDS: dict[str, Callable[[float], str]] = {
    "macs": lambda x: tables.count(x, "MACs"),
    "weight_bytes": tables.size,
    "latency_ms": lambda ms: tables.milliseconds(ms) if ms >= 0.01 else f"{tables.three(1000 * ms)} µs",
    PEAK: tables.size,
}
WAYS = {  # what a budget may change: name → (technique as it is measured, its levels)
    "Channels": ("prune_channels", LEVELS["prune_channels"]),
    "Ranks": ("factorize", LEVELS["factorize"]),
    "int8": ("quantize", (8.0,)),
    "4-bit weights": ("quantize", (8.0, 4.0)),
}
MAY = {
    "macs": ("Channels", "Ranks"),
    "weight_bytes": ("Channels", "Ranks", "int8", "4-bit weights"),
    "latency_ms": ("Channels", "Ranks", "int8"),
    PEAK: ("Channels",),
}
FIRST = {
    "macs": ("Channels",),
    "weight_bytes": ("Channels", "int8"),
    "latency_ms": ("Channels", "int8"),
    PEAK: ("Channels",),
}
ALL = {**dict(WAYS.values()), "prune_weights": LEVELS["prune_weights"], "quantize": (8.0,)}
PREDICTED = inline_badge("predicted")  # for the plans that were tried too: they were chosen by it, and not exported
NOTHING = 0.001  # of the original's cost: below it a change is free


def panel(now: State, profile: Profile, known: Forecast | None, table: LatencyTable | None) -> None:
    """The budget's slider. A move of it makes the recipe another one before the rest of the page is drawn."""
    if known is None or not known.table.curves:
        return
    label = "Budget: let the studio set every layer"
    with st.expander(label, icon=":material/savings:", key="budget", on_change="rerun") as box:
        if not box.open:
            return
        kinds = [kind for kind in KINDS if kind != "latency_ms" or table]
        kinds += [PEAK] if profile.operators else []
        with st.container(horizontal=True, vertical_alignment="center"):
            kind = st.segmented_control(
                "Budget of", kinds, default=kinds[0], required=True, key="budget-of", format_func=TITLES.__getitem__
            )
            key = f"share-{now.model}-{kind}"
            before = now.budgets.setdefault(key, (100, FIRST[kind], "", 100))
            ways = st.pills("May change", MAY[kind], selection_mode="multi", default=before[1], key=f"ways-{key}")
        share = _share(kind, before[0], key)
        also, cap = _second(kind, kinds, before[2:], key)
        limits = {kind: share / 100} | ({also: cap / 100} if also else {})
        asked = (share, tuple(ways), also if cap < 100 or also == before[2] else before[2], cap)
        if asked != before:  # not a callback: Streamlit may call one for a widget that nobody touched
            _spend(now, choices(now, profile, known, table, ways), known, limits)
        now.budgets[key] = (share, tuple(ways), also, cap)
        _show_offers(now, limits, known)


def _share(kind: str, value: int, key: str) -> int:
    return st.slider(f"{TITLES[kind]}, at most % of the original's", 5, 100, value, key=key, format="%d %%")


def _second(kind: str, kinds: list[str], before: tuple[str, int], key: str) -> tuple[str, int]:
    """What else is limited, "" for nothing, and to how many percent."""
    others = [other for other in kinds if other != kind]
    key = f"also-{key}"
    also = st.pills("And at the same time", others, default=before[0] or None, key=key, format_func=TITLES.__getitem__)
    if not also:
        return "", 100
    return also, _share(also, before[1] if also == before[0] else 100, f"{key}-{also}")


def choices(
    now: State, profile: Profile, known: Forecast, table: LatencyTable | None, ways: list[str] | None = None
) -> Choices:
    """What may be chosen from. Held are the locked sliders, and all that the chosen ways do not decide."""
    levels = dict(WAYS[way] for way in ways) if ways is not None else ALL
    pruning = next((s.record for s in now.recipe.steps if s.technique == "prune_channels"), PruneChannels())
    sensitivity = known.table.repaired if pruning.repair else known.table
    plan, _ = plan_of(profile, now.recipe)
    held = {key: plan.get(key, float(CATALOG[key[1]].neutral)) for key in now.locks}
    others = {key: level for key, level in plan.items() if key[1] not in levels}
    ladders = tuple((k, tuple(v)) for k, v in levels.items())
    open_choices = _open_choices(known.profile, sensitivity, table, ladders, pruning.multiple)
    integers = not any(s.technique == "quantize_weights" for s in now.recipe.active)
    return replace(open_choices, locked={**others, **held}, integers=integers)


@st.cache_resource(
    max_entries=16,
    show_spinner=False,
    hash_funcs={Profile: id, SensitivityTable: id, LatencyTable: id},  # kept alive by what is cached
)
def _open_choices(
    profile: Profile,
    sensitivity: SensitivityTable,
    table: LatencyTable | None,
    levels: tuple[tuple[str, tuple[float, ...]], ...],
    multiple: int,
) -> Choices:
    return Choices(profile, sensitivity, dict(levels), latency=table, multiple=multiple)


def _spend(now: State, open_choices: Choices, known: Forecast, limits: dict[str, float]) -> None:
    """All plans; the best, by prediction or by what it lost when it was tried, becomes the recipe."""
    now.offers = {}
    if not open_choices.levels:
        st.caption("Choose what the budget may change.")
        return
    try:
        for kind, share in limits.items():
            least = least_share(open_choices, kind)
            if least > share:
                st.caption(f"With these choices the smallest plan needs {least:.0%} of {TITLES[kind]}.")
                limits = {**limits, kind: least * (1 + 1e-6)}
        ways = {"Layer by layer": allocated, "Same share everywhere": uniform, "Best tried plan": measured}
        found = {name: make(known, open_choices, now.recipe, limits) for name, make in ways.items()}
    except StudioError as error:
        st.caption(str(error))
        return
    now.offers = {name: offer for name, offer in found.items() if offer}
    better = max(now.offers.values(), key=lambda o: (o.prediction.value or 0.0, -o.prediction.kl))
    change(now, lambda: better.recipe)


def _show_offers(now: State, limits: dict[str, float], known: Forecast) -> None:
    """The plans with what is predicted for each, while one of them is the recipe."""
    if not any(offer.recipe == now.recipe for offer in now.offers.values()):
        return
    for name, offer in now.offers.items():
        used = offer.recipe == now.recipe
        with st.container(horizontal=True, vertical_alignment="center", key=f"offer-{name.partition(' ')[0]}"):
            tried = ", tried on validation images before any export" if offer.measured else ""
            costs = ", ".join(WORDS[kind](offer.cost(kind)) for kind in limits)
            said = f"{_words(offer, known)}, {costs}{tried}"
            st.markdown(f"**{name}** {PREDICTED}  \n{said}", width="stretch")
            st.button(
                "In use" if used else "Use",
                key=f"use-{name}",
                disabled=used,
                on_click=partial(change, now, partial(_same, offer.recipe)),
            )


def _same(recipe: Recipe) -> Recipe:
    return recipe


def _words(offer: Offer, known: Forecast) -> str:
    found = offer.prediction
    if found.value is None or found.low is None or found.high is None:
        return f"rank only, {found.kl:.3g} nats"
    beyond = ", extrapolating" if found.extrapolating else f" ({100 * found.low:.1f}–{100 * found.high:.1f} %)"
    return f"{known.measure} {tables.percent(found.value, 1)}{beyond}"


def gain_cards(now: State, profile: Profile, known: Forecast | None, table: LatencyTable | None) -> None:
    """The three changes of one layer that win most for what they cost, one click each."""
    if known is None or not now.recipe.active:
        return
    kind = "latency_ms" if table else "weight_bytes"
    open_choices = choices(now, profile, known, table)
    found = gains(known, open_choices, now.recipe, kind)
    full = open_choices.cost_of({})[KINDS.index(kind)]
    if not found:
        return
    with st.container(border=True, gap="xsmall", key="gains"):
        st.markdown(f"**Changes that pay** {PREDICTED}")
        for number, gain in enumerate(found):
            with st.container(horizontal=True, wrap=False, vertical_alignment="center", key=f"gain-{number}"):
                st.markdown(gain_words(profile, gain, kind, full), width="stretch")
                st.button(
                    "Do it",
                    key=f"take-{number}",
                    on_click=partial(change, now, partial(gain.taken, now.recipe)),
                    help="Change this one layer in the recipe.",
                )


def gain_words(profile: Profile, gain: Gain, kind: str, full: float) -> str:
    """'Keep layer3.1.conv2 in float: +1.8 points for +0.4 ms'; `full` is the original's cost."""
    cost = gain.costs[KINDS.index(kind)]
    if abs(cost) < NOTHING * full:
        price = "for next to nothing"
    else:
        price = f"for {WORDS[kind](cost)}" if cost > 0 else f"and {WORDS[kind](-cost)} less"
    return f"{_act(profile, gain)}: **+{100 * gain.points:.1f} points** {price}"


def _act(profile: Profile, gain: Gain) -> str:
    (name, technique), level, before = gain.key, gain.level, gain.before
    layer = f"`{name}`"
    if level == CATALOG[technique].neutral:
        kept = {"quantize": "in float", "factorize": "whole", "prune_weights": "dense"}
        return f"Keep {layer} {kept.get(technique, 'at its full width')}"
    if technique == "prune_channels":
        wide, narrow = (round(profile.group(name).channels * (1 - x)) for x in (level, before))
        return f"Leave {layer} {wide} channels, not {narrow}"
    said: dict[str, Any] = {
        "factorize": f"Split {layer} at rank {level:.0%}, not {before:.0%}",
        "prune_weights": f"Prune {layer} to {level:.0%} zeros, not {before:.0%}",
        "quantize": f"Store {layer} in {level:g} bits, not {before:g}",
    }
    return str(said[technique])
