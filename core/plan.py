"""Recipe → plan, the level that every layer and group really gets, as the sensitivity table is keyed; and back.

The same rules as the techniques' own: channels rounded to the step's multiple, blocked groups and refused ranks left
out. What a plan cannot say (training, a ranking of the whole network) is returned as sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.catalog import CATALOG
from core.errors import RecipeError
from core.layers import Profile, dial_for, width_after
from core.predict import shape_of
from core.ranks import refusal
from core.recipe import Recipe, Step
from core.sensitivity_table import Key, Plan, severity

TRAINED = "before training: what training wins back is not predicted"
RANKED = "the step ranks the whole network, so every layer's share is taken as equal"
ROUNDED = "weights are rounded with feedback, which usually loses less than this"


def plan_of(profile: Profile, recipe: Recipe) -> tuple[dict[Key, float], list[str]]:
    """(what every layer and group gets, what this leaves out). Of two steps of one technique the stronger counts."""
    plan: dict[Key, float] = {}
    reasons: dict[str, None] = {}
    for step in recipe.active:
        trained = getattr(step.record, "epochs", 0) > 0
        if trained:
            reasons[TRAINED] = None
        if step.technique in _SETTINGS:
            if getattr(step.record, "scope", "layer") == "global":
                reasons[RANKED] = None
            if step.technique == "quantize_weights":
                reasons[ROUNDED] = None
            technique = measured_as(step.technique)
            for name, level in _SETTINGS[step.technique](profile, step):
                key = (name, technique)
                if severity(technique, level) > severity(technique, plan.get(key, _neutral(technique))):
                    plan[key] = level
        elif not trained:
            raise RecipeError(f"{CATALOG[step.technique].title} has no forecast; remove the step to predict the rest.")
    return plan, list(reasons)


def measured_as(technique: str) -> str:
    """The technique under which the sensitivity table holds another one's settings."""
    return "quantize" if technique == "quantize_weights" else technique


def _neutral(technique: str) -> float:
    return float(CATALOG[technique].neutral)


def _channels(profile: Profile, step: Step) -> Iterable[tuple[str, float]]:
    for group in profile.groups:
        if not group.blocked:
            ratio = dial_for(step.layers, group.name, step.record.ratio)
            kept = width_after(group, group.channels, ratio, step.record.multiple)
            yield group.name, 1 - kept / group.channels


def _weights(profile: Profile, step: Step) -> Iterable[tuple[str, float]]:
    for layer in profile.tunable:
        yield layer.name, dial_for(step.layers, layer.name, step.record.sparsity)


def _ranks(profile: Profile, step: Step) -> Iterable[tuple[str, float]]:
    for layer in profile.tunable:
        share = dial_for(step.layers, layer.name, step.record.rank)
        shape = shape_of(layer, layer.in_channels, layer.out_channels)
        if layer == profile.tunable[-1] and layer.kind == "linear" and dial_for(step.layers, layer.name, None) is None:
            continue  # it gives the answer
        if share < 1 and not refusal(shape, step.record.method, share):
            yield layer.name, share


def _bits(profile: Profile, step: Step) -> Iterable[tuple[str, float]]:
    for layer in profile.tunable:
        bits = dial_for(step.layers, layer.name, step.record.bits)
        if getattr(step.record, "mode", "") != "float16" and bits < 32:
            yield layer.name, float(bits)


_SETTINGS = {
    "prune_channels": _channels,
    "prune_weights": _weights,
    "factorize": _ranks,
    "quantize": _bits,
    "quantize_weights": _bits,
}


# What makes a step do nothing but what its layers say, exactly.
_PLAIN: dict[str, dict[str, Any]] = {
    "prune_channels": {"ratio": 0.0, "multiple": 1},
    "factorize": {"rank": 1.0},
    "prune_weights": {"sparsity": 0.0, "scope": "layer"},
    "quantize": {"bits": 32},
}


def steps_of(plan: Plan) -> tuple[Step, ...]:
    """The steps that give every layer and group what `plan` says, structure first.

    Raises RecipeError for a level that a technique does not accept, as 4 bits where only 8 can be run.
    """
    steps = []
    for technique, options in _PLAIN.items():
        whole = technique == "quantize"  # bits are whole numbers
        levels = {name: int(v) if whole else v for (name, key), v in sorted(plan.items()) if key == technique}
        if any(severity(technique, level) for level in levels.values()):
            steps.append(Step(technique, options, levels))
    return tuple(steps)


def repaired(recipe: Recipe) -> bool:
    """Whether some step makes up for what it removes, so that less is lost than its settings alone would cost."""
    return any(getattr(step.record, "repair", False) for step in recipe.active if step.technique in _SETTINGS)


def with_plan(recipe: Recipe, plan: Plan, everywhere: Mapping[str, float] | None = None) -> Recipe:
    """The recipe whose widths, ranks and bits are what `plan` says and, for all others, `everywhere` by technique.

    Its other steps and options stay. Where bits go below 8, all bits are those of the weights alone. Raises RecipeError
    where the order of steps forbids it.
    """
    everywhere = everywhere or {}
    bits = [level for (_, key), level in plan.items() if key == "quantize"] + [everywhere.get("quantize", 32)]
    weights = min(bits) < 8 or any(s.technique == "quantize_weights" for s in recipe.active)
    for measured in dict.fromkeys([*everywhere, *(key for _, key in plan)]):
        technique = "quantize_weights" if measured == "quantize" and weights else measured
        kind = type(CATALOG[technique].neutral)
        value = kind(everywhere.get(measured, CATALOG[technique].neutral))
        levels = {name: kind(v) for (name, key), v in sorted(plan.items()) if key == measured and v != value}
        recipe = _with_step(recipe, technique, value, levels)
    return recipe


def _with_step(recipe: Recipe, technique: str, value: Any, levels: Mapping[str, Any]) -> Recipe:
    """The recipe whose one step of this technique has this dial and these levels; none where they change nothing."""
    measured, entry = measured_as(technique), CATALOG[technique]
    alike = [step for step in recipe.steps if measured_as(step.technique) == measured]
    kept = [step for step in recipe.steps if step not in alike]
    if not levels and value == entry.neutral:
        return recipe.with_steps(*kept)
    old = next((step for step in alike if step.technique == technique), Step(technique))
    scope = {"scope": "layer"} if hasattr(old.record, "scope") else {}
    step = replace(old, options={**old.options, str(entry.dial): value, **scope}, layers=levels, enabled=True)
    order = list(CATALOG)
    first = recipe.steps.index(alike[0]) if alike else None
    at = first if first is not None else sum(order.index(s.technique) < order.index(technique) for s in kept)
    return recipe.with_steps(*kept[:at], step, *kept[at:])


def with_level(recipe: Recipe, key: Key, level: float) -> Recipe:
    """The recipe with one layer or group at a gentler level, in every step that had set it lower."""
    name, technique = key
    steps = []
    for step in recipe.steps:
        if step.enabled and measured_as(step.technique) == technique:
            entry = CATALOG[step.technique]
            now = dial_for(step.layers, name, getattr(step.record, str(entry.dial)))
            if severity(technique, now) > severity(technique, level):
                step = replace(step, layers={**step.layers, name: type(entry.neutral)(level)})
        steps.append(step)
    return recipe.with_steps(*steps)


def plan_rows(plan: Plan) -> list[list[object]]:
    """A plan as JSON: its settings that change something."""
    return [[*key, level] for key, level in sorted(plan.items()) if level != CATALOG[key[1]].neutral]


def key_levels(rows: Sequence[Sequence[object]]) -> dict[Key, float]:
    """`plan_rows` back as a plan."""
    return {(str(layer), str(technique)): float(str(level)) for layer, technique, level in rows}
