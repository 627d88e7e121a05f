"""Recipe → milliseconds on this machine, before anything is run: the operators that its steps leave, each read from the
measured latency table, summed and put through the table's affine step. No tensor, no run.

    models/<id>/latency-<machine id>.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.latency_table import FLOAT, INTEGER, LatencyTable, Operator
from core.layer_price import cut
from core.layers import Layer, Profile
from core.machine import machine_id
from core.predict import network_after, shape_of
from core.ranks import Shape
from core.recipe import Recipe
from core.workspace import Workspace

DYNAMIC = "int8 that is measured at run time has no row in the table of operator times"
NOTICED = 0.05  # a layer that takes this share longer is called slower: the table is not known better
TINY = "what is left is smaller than any model that was timed"
HALF = "16-bit floats have no row in the table of operator times"


@dataclass(frozen=True)
class Speed:
    """Predicted for batch 1 on one thread; None where the table cannot say."""

    latency_ms: float | None
    original_ms: float
    reason: str = ""  # why there is no number

    @property
    def speedup(self) -> float | None:
        """The original's time over this one's."""
        return None if self.latency_ms is None else self.original_ms / self.latency_ms


def load_latency(workspace: Workspace, model: str) -> LatencyTable | None:
    """The model's operator times on this very machine and runtime; None before they are measured."""
    path = latency_path(workspace, model)
    return LatencyTable.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def stand_in(profile: Profile) -> LatencyTable | None:
    """Where operators were not timed: each layer's own time in the whole file, for integers too. Narrower layers are
    read from it as if a quarter of it were fixed. None where no layer was timed."""
    times = {shape_of(x, x.in_channels, x.out_channels): x.latency_ms for x in profile.tunable if x.latency_ms}
    return LatencyTable({Operator(s, t): ms for s, ms in times.items() for t in (FLOAT, INTEGER)}) if times else None


def latency_path(workspace: Workspace, model: str) -> Path:
    """Where they are kept."""
    return workspace.folder("models", model) / f"latency-{machine_id()}.json"


def predict_latency(
    profile: Profile, recipe: Recipe, table: LatencyTable, after: Mapping[str, float] | None = None
) -> Speed:
    """Weights alone in few bits are computed in float, so they take as long as floats. `after` are the recipe's
    `layer_times`, where they are known."""
    before = table.original_ms or table.whole(sum(layer_times(profile, Recipe(), table).values()))
    if not recipe.active:
        return Speed(before, before)
    modes = [step.record.mode for step in recipe.active if step.technique == "quantize"]
    for mode, why in (("int8_dynamic", DYNAMIC), ("float16", HALF)):
        if mode in modes:
            return Speed(None, before, why)
    whole = table.whole(sum((after or layer_times(profile, recipe, table)).values()))
    return Speed(whole, before) if whole > 0 else Speed(None, before, TINY)


def slower_layers(profile: Profile, table: LatencyTable, after: Mapping[str, float]) -> dict[str, float]:
    """Layer → how much longer it takes than in the original, as a share, from a recipe's `layer_times`: thin factors
    and depthwise int8 may well."""
    before = layer_times(profile, Recipe(), table)
    grown = {name: after[name] / before[name] - 1 for name in before if before[name]}
    return {name: share for name, share in grown.items() if share > NOTICED}


def layer_times(profile: Profile, recipe: Recipe, table: LatencyTable) -> dict[str, float]:
    """Layer of the original → ms of the operators that stand there now, each measured alone."""
    net = network_after(profile, recipe)
    integer = any(step.technique == "quantize" for step in recipe.active)
    found = {}
    for name, parts in net.parts.items():
        shapes = [(part, _shape(part, *net.channels(part))) for part in parts if part.name not in net.gone]
        bits = [net.bits.get(part.name, 32) if integer else 32 for part, _ in shapes]
        found[name] = sum(table.operator(shape, b) for (_, shape), b in zip(shapes, bits, strict=True) if shape)
    return found


def _shape(part: Layer, into: int, out: int) -> Shape | None:
    """The operator that runs; None where there is none, as for a norm or a shortcut that copies."""
    if part.kind == "shortcut" and (into, out) != (part.in_channels, part.out_channels):
        return cut(part, into, out)
    return None if part.kind in ("shortcut", "norm", "other") else shape_of(part, into, out)
