"""Option record → widgets. Reads the limits, help and units that the catalog declares, and names no technique.

`widget` decides how an option is drawn; `draw` draws it. A value leaves with the very type that the record has, so what
the form returns is always accepted by `core.catalog.check_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any

import streamlit as st

from core.catalog import Technique, option_fields

SLIDER_STEPS = 200  # beyond this many positions a slider is too coarse for a hand, so a number is typed
BUTTONS = 4  # more choices than this go into a list


@dataclass(frozen=True)
class Widget:
    """How one option is drawn."""

    kind: str  # switch, buttons, list, slider or number
    label: str
    help: str
    low: Any = None
    high: Any = None
    step: Any = None
    format: str | None = None
    choices: tuple[Any, ...] = ()


def widget(spec: Field[Any]) -> Widget:
    """The widget for an option, from its default's type and its metadata."""
    default: Any = spec.default
    about, kind = spec.metadata, type(default)
    unit = f" ({about['unit']})" if about["unit"] not in ("", "%", spec.name) else ""
    label = spec.name.replace("_", " ").capitalize() + unit
    if about["choices"]:
        return Widget(
            "buttons" if len(about["choices"]) <= BUTTONS else "list", label, about["help"], choices=about["choices"]
        )
    if kind is bool:
        return Widget("switch", label, about["help"])
    low, high, step = kind(about["low"]), kind(about["high"]), kind(about["step"] or 1)
    positions = (high - low) / step
    even = abs((default - low) / step - round((default - low) / step)) < 1e-6
    shape = "slider" if positions <= SLIDER_STEPS and even else "number"
    style = "percent" if about["unit"] == "%" and shape == "slider" else ("%d" if kind is int else "%.4g")
    return Widget(shape, label, about["help"], low, high, step, style)


def draw_option(spec: Field[Any], value: Any, key: str, on_change: Callable[[], None] | None = None) -> Any:
    """Draw one option and return what it is set to, in the option's own type."""
    w = widget(spec)
    common: dict[str, Any] = {"help": w.help, "key": key, "on_change": on_change}
    if w.kind == "switch":
        return st.toggle(w.label, value, **common)
    if w.kind == "buttons":
        return st.segmented_control(w.label, w.choices, default=value, required=True, format_func=_words, **common)
    if w.kind == "list":
        return st.selectbox(w.label, w.choices, w.choices.index(value), format_func=_words, **common)
    draw_number = st.slider if w.kind == "slider" else st.number_input
    chosen = draw_number(w.label, w.low, w.high, value, step=w.step, format=w.format, **common)
    # a slider adds up steps, so 0.29 may come as 0.29000000000000004
    return round(chosen, 10) if isinstance(value, float) else chosen


def draw_options(
    entry: Technique, options: Mapping[str, Any], key: str, *, skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All options of a technique but `skip`. Returns those that differ from their defaults, and `skip` as it came."""
    specs = {name: spec for name, spec in option_fields(entry).items() if name not in skip}
    values = {name: draw_option(spec, options.get(name, spec.default), f"{key}-{name}") for name, spec in specs.items()}
    kept = {name: options[name] for name in skip if name in options}
    return kept | {name: value for name, value in values.items() if value != specs[name].default}


def _words(choice: Any) -> str:
    return str(choice).replace("_", " ")
