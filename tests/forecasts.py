"""A forecast written by hand, so that pages and budgets can be tested without measuring anything.

Every setting costs `weight · severity²` nats, and a network loses a fifth of its summed nats, up to 80 points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.latency_table import INTEGER, LatencyTable, Operator
from core.layers import Profile
from core.machine import machine_id
from core.measured_plans import DONE, JUDGE
from core.plan import plan_rows
from core.predict import shape_of
from core.sensitivity_table import LEVELS, Cell, SensitivityTable, append_lines, row_of, severity
from core.workspace import Workspace, write_json


def rows_of(profile: Profile, technique: str) -> list[str]:
    """The layers, or for prune_channels the groups, that a technique can act on."""
    if technique == "prune_channels":
        return [g.name for g in profile.groups if not g.blocked]
    layers = [
        x for x in profile.tunable if technique != "factorize" or (x.kind in ("conv", "linear") and x.groups == 1)
    ]
    return [x.name for x in layers]


def cells(profile: Profile, techniques: tuple[str, ...] = tuple(LEVELS)) -> list[Cell]:
    """Later layers are less sensitive: weight 1, 1/2, 1/3…"""
    found = []
    for technique in techniques:
        for i, name in enumerate(rows_of(profile, technique)):
            for level in LEVELS[technique]:
                hurt = severity(technique, level) ** 2 / (i + 1)
                found.append(Cell(name, technique, level, fisher=hurt, weight_error=hurt, kl=hurt))
    return found


def make_table(profile: Profile) -> SensitivityTable:
    return SensitivityTable({}, {(c.layer, c.technique, c.level): c for c in cells(profile)})


def lost(nats: float) -> float:
    return min(0.8, nats / 5)


def make_times(profile: Profile) -> LatencyTable:
    """1 ms for each million MACs of every layer, half of it in int8; a whole model takes as long as its operators."""
    shapes = [shape_of(x, x.in_channels, x.out_channels) for x in profile.tunable]
    floats = {Operator(s): s.macs / 1e6 for s in shapes}
    return LatencyTable(floats | {Operator(key.shape, INTEGER): ms / 2 for key, ms in floats.items()})


def write_forecast(
    space: Workspace,
    profile: Profile,
    *,
    model: str = "net-1",
    data: str = "pets-1",
    plans: int = 16,
    ranks: bool = False,
) -> None:
    """Sensitivity, `plans` measured networks of each kind, and this machine's times; with `ranks`, tier 0 alone."""
    folder = space.folder("models", model)
    found = cells(profile)
    kept = [Cell(c.layer, c.technique, c.level, c.fisher, c.weight_error) if ranks else c for c in found]
    append_lines(folder / f"sensitivity-{data}.jsonl", [{"model": model}, *map(row_of, kept)])
    if ranks:
        return
    name = next(g.name for g in profile.groups if not g.blocked)
    rows = [
        {
            "plan": plan_rows({(name, "prune_channels"): level}),
            "repaired": repaired,
            "kl": level**2,
            "drop": {"accuracy": lost(level**2), "agreement": lost(level**2)},
        }
        for repaired in (False, True)
        for level in np.linspace(0.05, 0.95, plans).tolist()
    ]
    done = {DONE: True} if plans >= 16 else {}
    append_lines(folder / f"calibration-{data}.jsonl", [{"about": {"judge": JUDGE}} | done, *rows])
    write_json(times_path(folder), make_times(profile).to_json())


def times_path(folder: Path) -> Path:
    return folder / f"latency-{machine_id()}.json"
