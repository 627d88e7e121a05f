"""The layer table in Chromium: its sums are those of the Python, and what is dragged reaches the recipe."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

import pytest
from playwright.sync_api import Page

from app.components.layer_table import HERE
from app.layer_rows import cost_profile
from core.catalog import CATALOG, Technique, option_fields
from core.layers import Profile
from core.predict import costs
from core.recipe import Recipe, Step
from tests.profiles import mixed, resnet

MODEL_STEPS = ("prune_channels", "prune_weights", "factorize")


def random_value(chance: random.Random, entry: Technique, name: str) -> Any:
    spec = option_fields(entry)[name]
    about = spec.metadata
    if about["choices"]:
        return chance.choice(about["choices"])
    if isinstance(spec.default, bool):
        return chance.random() < 0.5
    low, high = about["low"], about["high"]
    # halves of a step meet the rounding rule: 0.25, 0.5 and 0.75 of an even number are where it matters
    value = chance.choice([low, high, 0.25, 0.5, 0.75, chance.uniform(low, high)])
    return type(spec.default)(min(high, max(low, value)))


def random_recipe(chance: random.Random, profile: Profile) -> Recipe:
    """A few steps in an allowed order, with options and layers of their own."""
    keys = [*chance.choices(MODEL_STEPS, k=chance.randint(0, 3)), *["quantize"] * chance.randint(0, 1)]
    names = [layer.name for layer in profile.tunable]
    steps = []
    for key in keys:
        entry = CATALOG[key]
        options = {name: random_value(chance, entry, name) for name in option_fields(entry) if chance.random() < 0.7}
        own = chance.sample([*names, "block"], chance.randint(0, 4))
        layers = {name: random_value(chance, entry, str(entry.dial)) for name in own}
        steps.append(Step(key, options, layers, enabled=chance.random() < 0.9))
    return Recipe(tuple(steps))


def plain_steps(recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"technique": s.technique, "options": asdict(s.record), "layers": dict(s.layers), "enabled": s.enabled}
        for s in recipe.steps
    ]


@pytest.mark.parametrize("profile", [mixed(), resnet(3)], ids=["mixed", "resnet20"])
def test_the_browser_computes_what_python_computes(page: Page, profile: Profile) -> None:
    chance = random.Random(7)
    recipes = [random_recipe(chance, profile) for _ in range(300)]
    script = (HERE / "costs.js").read_text(encoding="utf-8")
    found = page.evaluate(
        f"([profile, all]) => {{ {script}; return all.map((steps) => costs(profile, steps)); }}",
        [json.loads(json.dumps(cost_profile(profile))), [plain_steps(recipe) for recipe in recipes]],
    )
    changed = 0
    for recipe, browser in zip(recipes, found, strict=True):
        python = costs(profile, recipe)
        totals = {key: getattr(python, key) for key in ("params", "macs", "weight_bytes", "nonzero", "exact")}
        assert {key: browser[key] for key in totals} == totals, recipe.to_yaml()
        for row in python.layers:
            mirror = browser["layers"][row.name]
            sizes = {key: getattr(row, key) for key in ("params", "macs", "weight_bytes", "nonzero")}
            assert {key: mirror[key] for key in sizes} == sizes, row.name
            assert [mirror["widths"][0], mirror["widths"][-1]] == [row.in_channels, row.out_channels], row.name
        changed += python.params != profile.params
    assert changed > 150  # most recipes do something
