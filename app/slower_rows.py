"""Operator times → the settings at which a layer would take longer than before, for the browser: thin factors and
depthwise int8 may well. Pure.
"""

from __future__ import annotations

from typing import Any

from app.sensitivity_rows import dial_settings
from core.catalog import CATALOG
from core.latency_table import LatencyTable
from core.layers import Layer, Profile
from core.predict import shape_of
from core.ranks import factors, refusal
from core.recipe import Step
from core.recipe_latency import NOTICED


def slower_data(profile: Profile, times: LatencyTable, step: Step) -> dict[str, Any]:
    """{"settings": the dial's values, "rows": layer → its time at each, as a share of the time before}.

    Only layers that get slower somewhere; nothing for techniques whose times the table does not hold.
    """
    options = step.record
    if step.technique != "factorize" and (step.technique != "quantize" or options.mode != "int8"):
        return {"settings": [], "rows": {}}
    settings = dial_settings(CATALOG[step.technique])
    method = getattr(options, "method", None)
    found = {layer.name: [_share(layer, times, method, x) for x in settings] for layer in profile.tunable}
    return {"settings": settings, "rows": {name: row for name, row in found.items() if max(row) > 1 + NOTICED}}


def _share(layer: Layer, times: LatencyTable, method: str | None, setting: float) -> float:
    """By itself, at its full width. `method` splits it at a rank; without one the setting is its bits."""
    shape = shape_of(layer, layer.in_channels, layer.out_channels)
    before = times.operator(shape)
    if before <= 0:
        return 1.0
    if method is None:
        return round(times.operator(shape, setting) / before, 3)
    if setting >= 1 or refusal(shape, method, setting):
        return 1.0
    return round(sum(times.operator(part) for part in factors(shape, method, setting)) / before, 3)
