"""Profile + recipe → what the layer table shows, as plain JSON. Pure.

A row's controls are off, with the reason in words, where the technique cannot touch the layer. Layers whose channels
can only be removed together move together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from app import tables
from app.why import coupling
from core.candidate import Candidate
from core.catalog import CATALOG, Technique, option_fields
from core.errors import RecipeError
from core.latency_table import LatencyTable
from core.layers import Group, Layer, Profile, dial_for
from core.paying import paying_widths
from core.predict import costs
from core.ranks import Shape, refusal
from core.recipe import Recipe, Step

KINDS = {
    "conv": "Convolution",
    "depthwise": "Depthwise convolution",
    "conv_transpose": "Transposed convolution",
    "linear": "Linear layer",
}
COST_KEYS = (
    "name", "kind", "params", "macs", "in_channels", "out_channels", "kernel", "groups", "bias", "group",
    "input_shape", "output_shape",
)  # fmt: skip
WORDS = {"int8": "int8", "int8_dynamic": "int8", "float16": "float16"}  # what the lower of two bits is called, by mode
COUPLING = "ratio"  # the dial that acts on channel groups rather than on single layers


@dataclass(frozen=True)
class Place:
    """Where the step of a technique is, or would go, in a recipe."""

    technique: str
    at: int
    present: bool

    def step(self, recipe: Recipe) -> Step:
        """The step itself; an absent one with the dial that changes nothing."""
        if self.present:
            return recipe.steps[self.at]
        entry = CATALOG[self.technique]
        return Step(self.technique, {} if entry.dial is None else {entry.dial: entry.neutral})


def find(recipe: Recipe, technique: str, which: int = 0) -> Place:
    """The `which`-th step of the technique; if there is none, the place that keeps the catalog's order."""
    found = [i for i, step in enumerate(recipe.steps) if step.technique == technique]
    if found:
        return Place(technique, found[min(which, len(found) - 1)], True)
    order = list(CATALOG)
    before = [i for i, step in enumerate(recipe.steps) if order.index(step.technique) < order.index(technique)]
    return Place(technique, before[-1] + 1 if before else 0, False)


def put(recipe: Recipe, place: Place, step: Step) -> Recipe:
    """The recipe with `step` at its place. Raises RecipeError where the order does not allow it."""
    after = place.at + place.present
    return recipe.with_steps(*recipe.steps[: place.at], step, *recipe.steps[after:])


def move(recipe: Recipe, at: int, by: int) -> Recipe:
    """Step `at` moved by `by` places. Raises RecipeError where the order does not allow it."""
    steps = list(recipe.steps)
    steps.insert(max(0, at + by), steps.pop(at))
    return recipe.with_steps(*steps)


def effective(profile: Profile, step: Step) -> dict[str, Any]:
    """What every tunable layer gets: the step's value spread over all, but for layers with a value of their own."""
    default = getattr(step.record, str(CATALOG[step.technique].dial))
    return {
        layer.name: dial_for(step.layers, held_as(layer, CATALOG[step.technique]), default) for layer in profile.tunable
    }


def held_as(layer: Layer, entry: Technique) -> str:
    """The name under which a step holds the layer's own value: its group's where channels are removed together."""
    return layer.group if entry.dial == COUPLING and layer.group else layer.name


def table_data(profile: Profile, recipe: Recipe, place: Place, ident: str) -> dict[str, Any]:
    """All that `components/layer_table.js` draws, but for the revision."""
    entry, step = CATALOG[place.technique], place.step(recipe)
    multiple = getattr(step.record, "multiple", 1)
    return {
        "ident": f"{ident}|{place.technique}|{place.at}|{multiple}",  # another one builds the table anew
        "technique": place.technique,
        "at": place.at,
        "present": place.present,
        "active": place.present and step.enabled,
        "options": asdict(step.record),
        "steps": [
            {"technique": s.technique, "options": asdict(s.record), "layers": dict(s.layers), "enabled": s.enabled}
            for s in recipe.steps
        ],
        "dial": _dial(entry, step),
        "own": dict(step.layers),
        "profile": cost_profile(profile),
        "original": original(profile),
        "rows": layer_rows(profile, entry.key, multiple),
    }


def _dial(entry: Technique, step: Step) -> dict[str, Any] | None:
    if entry.dial is None:
        return None
    spec = option_fields(entry)[entry.dial]
    about, value = spec.metadata, getattr(step.record, entry.dial)
    return {
        "name": entry.dial,
        "title": entry.dial.capitalize(),
        "help": about["help"],
        "value": value,
        "low": about["low"],
        "high": about["high"],
        "step": about["step"],
        "choices": list(about["choices"]) or None,
        "words": {"4": "4-bit", "8": WORDS.get(getattr(step.record, "mode", ""), "int8"), "32": "float"},
        "unit": about["unit"],
        "neutral": entry.neutral,
        "on": spec.default,  # what switching a layer on gives it when all layers are at neutral
    }


@lru_cache(maxsize=4)
def original(profile: Profile) -> dict[str, Any]:
    """What the model costs before any step."""
    cost = costs(profile, Recipe())
    return {key: getattr(cost, key) for key in ("params", "macs", "weight_bytes", "peak_bytes")}


@lru_cache(maxsize=4)
def cost_profile(profile: Profile) -> dict[str, Any]:
    """What `components/costs.js` needs of a profile."""
    layers = [
        {key: getattr(layer, key) for key in COST_KEYS} | {"inputs": [[f.group, f.repeat] for f in layer.inputs]}
        for layer in profile.layers
    ]
    groups = [
        {"name": g.name, "channels": g.channels, "layers": g.layers, "branch": g.branch, "blocked": bool(g.blocked)}
        for g in profile.groups
    ]
    operators = [[x.kind, x.reads, x.size, x.layer, x.channels, x.answer] for x in profile.operators]
    return {"layers": layers, "groups": groups, "operators": operators}


@lru_cache(maxsize=16)  # the same on every release of a slider
def layer_rows(profile: Profile, technique: str, multiple: int) -> list[dict[str, Any]]:
    """One row per tunable layer."""
    entry = CATALOG[technique]
    groups = {group.name: group for group in profile.groups}
    most_params = max((layer.params for layer in profile.tunable), default=0) or 1
    most_macs = max((layer.macs for layer in profile.tunable), default=0) or 1
    return [
        {
            "layer": layer.name,
            "key": held_as(layer, entry),
            "tied": _tied(layer, groups.get(layer.group), entry),
            "reason": why_not(layer, groups.get(layer.group), entry),
            "share": {"params": layer.params / most_params, "macs": layer.macs / most_macs},
            "before": {"params": layer.params, "macs": layer.macs},
            "widths": [layer.in_channels, layer.out_channels],
            "about": about(profile, layer),
            "why": asdict(coupling(profile, layer, multiple)) if entry.dial == COUPLING else None,
        }
        for layer in profile.tunable
    ]


def paying_ratios(profile: Profile, times: LatencyTable, multiple: int, bits: float) -> dict[str, list[float]]:
    """Group → the shares to remove that make it faster on this computer than any smaller share does."""
    found = {}
    for group in profile.groups:
        if not group.blocked:
            widths = paying_widths(profile, group.name, times, multiple, bits)
            gone = [1.0] if group.branch else []
            found[group.name] = [round(1 - width / group.channels, 4) for width in widths] + gone
    return found


def _tied(layer: Layer, group: Group | None, entry: Technique) -> str:
    """The layer that this one moves with; "" when it moves by itself or leads."""
    return group.name if entry.dial == COUPLING and group is not None and group.name != layer.name else ""


def why_not(layer: Layer, group: Group | None, entry: Technique) -> str:
    """Why the technique cannot touch the layer whatever the dial says; "" when it can."""
    if entry.dial == COUPLING:
        return group.blocked if group else "It passes on the joined channels of other layers."
    if entry.dial == "rank" and layer.kind in ("conv", "linear") and layer.groups == 1:
        return ""  # whether splitting pays depends on the rank: the result says so
    if entry.dial == "rank":
        return (
            refusal(Shape(layer.kind, 1, 1, groups=layer.groups), "spatial_svd", 0.5)
            .removeprefix("Kept: ")
            .capitalize()
        )
    return ""


def about(profile: Profile, layer: Layer) -> list[str]:
    """The lines behind a row's ⓘ."""
    kernel = "×".join(map(str, layer.kernel)) + ", " if layer.kind != "linear" else ""
    shape = "×".join(map(str, layer.output_shape))
    time = f", {tables.milliseconds(layer.latency_ms)} (measured, batch 1, 1 thread)" if layer.latency_ms else ""
    kind = KINDS.get(layer.kind, layer.kind)
    return [
        f"{kind}: {kernel}{layer.in_channels} → {layer.out_channels} channels, output {shape}.",
        f"{layer.params:,} parameters ({layer.params / max(1, profile.params):.1%} of the model), "
        f"{tables.count(layer.macs)} MACs ({layer.macs / max(1, profile.macs):.1%}){time}.",
    ]


def made_by(candidates: Mapping[str, Candidate], recipe: Recipe) -> str | None:
    """The id of the candidate that this very recipe already made, or None."""
    return next((name for name, made in candidates.items() if Recipe.from_yaml(made.recipe).id == recipe.id), None)


def check_layers(profile: Profile, recipe: Recipe) -> Recipe:
    """The recipe as it is. Raises RecipeError when it names a layer that this model does not have."""
    names = [layer.name for layer in profile.tunable]
    known = {".".join(name.split(".")[: n + 1]) for name in names for n in range(name.count(".") + 1)}
    for number, step in enumerate(recipe.steps, 1):
        unknown = [name for name in step.layers if name not in known]
        if unknown:
            raise RecipeError(
                f"Step {number} names the layer {unknown[0]!r}, which this model does not have; it has "
                f"{', '.join(names[:4])}{', …' if len(names) > 4 else ''}."
            )
    return recipe
