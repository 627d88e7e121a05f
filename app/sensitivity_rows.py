"""Forecast → the layer table's bar of what each layer's setting costs by itself, as points for the browser. Pure."""

from __future__ import annotations

from math import log, log10
from typing import Any

import numpy as np

from core.catalog import Technique, option_fields
from core.forecast import FEWEST, Forecast
from core.plan import measured_as
from core.sensitivity_table import LEVELS, Curve, Key, pool_violators, severity

SAMPLES = 21  # settings per layer that the browser reads between
LEAST_KL, MOST_KL = 1e-3, 2.0  # nats: an empty bar and a full one


def loss_data(known: Forecast, entry: Technique) -> dict[str, Any]:
    """{"settings": the dial's values, "rows": layer or group → {"bar": shares, "points": lost, None when ranked}}."""
    technique = measured_as(entry.key)
    if technique not in LEVELS or entry.dial is None:
        return {"settings": [], "rows": {}}
    settings = dial_settings(entry)
    amounts = [severity(technique, x) for x in settings]
    calibration = known.calibration(False)
    measured = len(calibration.points) >= FEWEST  # before, there may be no map at all
    rows: dict[str, Any] = {}
    for name, kind in known.table.curves:
        if kind == technique:
            nats = [known.table.curves[name, kind].at(amount) for amount in amounts]
            points = [round(100 * calibration.at(x)[0], 2) if x else 0.0 for x in nats] if measured else None
            rows[name] = {"bar": [_share(x) for x in nats], "points": points}
    for name, shares in _ranked(known, technique, amounts).items():
        rows.setdefault(name, {"bar": shares, "points": None})
    return {"settings": settings, "rows": rows}


def dial_settings(entry: Technique) -> list[float]:
    """The dial's choices, or samples of its range."""
    about = option_fields(entry)[str(entry.dial)].metadata
    if about["choices"]:
        return [float(x) for x in about["choices"]]
    return [round(float(x), 4) for x in np.linspace(about["low"], about["high"], SAMPLES)]


def _share(nats: float) -> float:
    """0 to 1 on a logarithmic scale."""
    if nats <= LEAST_KL:
        return 0.0
    return round(min(1.0, log10(nats / LEAST_KL) / log10(MOST_KL / LEAST_KL)), 3)


def _ranked(known: Forecast, technique: str, amounts: list[float]) -> dict[str, list[float]]:
    """Bars by the Fisher information alone, for layers whose KL is not measured yet; the largest one is full."""
    points: dict[Key, list[tuple[float, float]]] = {}
    for cell in known.table.cells.values():
        key = (cell.layer, cell.technique)
        if cell.technique == technique and cell.fisher and key not in known.table.curves:
            points.setdefault(key, []).append((severity(technique, cell.level), log(cell.fisher)))
    if not points:
        return {}
    most = max(value for found in points.values() for _, value in found)
    rows = {}
    for (name, _), found in points.items():
        at, values = zip(*sorted(found), strict=True)
        curve = Curve(at, tuple(pool_violators(np.array(values)).tolist()))
        scores = [curve.at(amount) for amount in amounts]
        rows[name] = [round(min(1.0, max(0.0, 1 + (log10(x) - most / log(10)) / 3)), 3) if x else 0.0 for x in scores]
    return rows
