"""Recipe → plan, the level that every layer and group really gets, as the sensitivity table is keyed; and back.

The same rules as the techniques' own: channels rounded to the step's multiple, blocked groups and refused ranks left
out. What a plan cannot say (training, a ranking of the whole network) is returned as sentences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from core.catalog import CATALOG
from core.errors import RecipeError
from core.layers import Profile, dial_for, kept_channels
from core.predict import shape_of
from core.ranks import refusal
from core.recipe import Recipe, Step
from core.sensitivity_table import Key, Plan, severity

TRAINED = "before distillation: what training wins back is not predicted"
RANKED = "the step ranks the whole network, so every layer's share is taken as equal"


def plan_of(profile: Profile, recipe: Recipe) -> tuple[dict[Key, float], list[str]]:
    """(what every layer and group gets, what this leaves out). Of two steps of one technique the stronger counts."""
    plan: dict[Key, float] = {}
    reasons: dict[str, None] = {}
    for step in recipe.active:
        if step.technique == "distill":
            reasons[TRAINED] = None
        elif step.technique in _SETTINGS:
            if getattr(step.record, "scope", "layer") == "global":
                reasons[RANKED] = None
            for name, level in _SETTINGS[step.technique](profile, step):
                key = (name, step.technique)
                if severity(step.technique, level) > severity(step.technique, plan.get(key, _neutral(step.technique))):
                    plan[key] = level
        else:
            raise RecipeError(f"{CATALOG[step.technique].title} has no forecast; remove the step to predict the rest.")
    return plan, list(reasons)


def _neutral(technique: str) -> float:
    return float(CATALOG[technique].neutral)


def _channels(profile: Profile, step: Step) -> Iterable[tuple[str, float]]:
    for group in profile.groups:
        if not group.blocked:
            ratio = dial_for(step.layers, group.name, step.record.ratio)
            yield group.name, 1 - kept_channels(group.channels, ratio, step.record.multiple) / group.channels


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
        if step.record.mode != "float16" and bits < 32:
            yield layer.name, float(bits)


_SETTINGS = {"prune_channels": _channels, "prune_weights": _weights, "factorize": _ranks, "quantize": _bits}


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
