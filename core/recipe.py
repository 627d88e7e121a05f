"""A recipe: what is done to a model, as frozen data that travels as YAML.

    recipe: 1
    seed: 0
    steps:
      - prune_channels: {ratio: 0.5, criterion: l2}
        layers: {layer3.0.conv1: 0.25}        # the step's dial, per layer
      - quantize: {}
        enabled: false

Same enabled steps and seed, same `id`; the id keys every cache, folder and row. People at the sliders, searches and
files all only build recipes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import yaml

from core.catalog import CATALOG, check_options, check_value, option_fields
from core.errors import RecipeError


@dataclass(frozen=True)
class Step:
    """One technique with its options; `layers` maps a layer's name to its own value of the technique's dial."""

    technique: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    enabled: bool = True

    def __post_init__(self) -> None:
        if self.technique not in CATALOG:
            raise RecipeError(f"Unknown technique: received {self.technique!r}, accepted are {', '.join(CATALOG)}.")
        entry = CATALOG[self.technique]
        if self.layers and entry.dial is None:
            raise RecipeError(f"{self.technique} has no setting per layer; received layers {', '.join(self.layers)}.")
        object.__setattr__(self, "options", MappingProxyType(check_options(entry, self.options)))
        checked = {name: check_value(entry, str(entry.dial), value) for name, value in self.layers.items()}
        object.__setattr__(self, "layers", MappingProxyType(checked))

    def __hash__(self) -> int:
        return hash(
            (self.technique, tuple(sorted(self.options.items())), tuple(sorted(self.layers.items())), self.enabled)
        )

    @property
    def record(self) -> Any:
        """The technique's options record, defaults filled in."""
        return CATALOG[self.technique].options(**self.options)

    def dial(self, layer: str) -> Any:
        """The value of the dial that `layer` gets: its own, or the step's."""
        entry = CATALOG[self.technique]
        return self.layers.get(layer, getattr(self.record, str(entry.dial)))

    @property
    def title(self) -> str:
        """What it does in a few words; where only single layers are set, the mean of what they get."""
        entry, values = CATALOG[self.technique], self.layers.values()
        if values and entry.dial and self.dial("") == entry.neutral:
            mean = f" {sum(values) / len(values):.0%} on average" if isinstance(entry.neutral, float) else " by layer"
            return f"{entry.title}{mean}"
        return entry.summary(self.record)

    def plain(self) -> dict[str, Any]:
        """As in YAML; defaults and empty parts are left out."""
        row: dict[str, Any] = {self.technique: dict(sorted(self.options.items()))}
        if self.layers:
            row["layers"] = dict(sorted(self.layers.items()))
        if not self.enabled:
            row["enabled"] = False
        return row


@dataclass(frozen=True)
class Recipe:
    """Steps in order. Steps that act on the exported file come after all steps that act on the model."""

    steps: tuple[Step, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        acts = [CATALOG[step.technique].acts_on for step in self.active]
        if acts != sorted(acts, key=lambda name: name == "file"):
            late = next(s.technique for s in self.active if CATALOG[s.technique].acts_on == "file")
            raise RecipeError(f"{late} works on the exported file, so it must come last; move it to the end.")

    @property
    def active(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.enabled)

    @cached_property
    def id(self) -> str:
        """10 hex digits of SHA-256 over what the recipe does. Options are complete, so a changed default changes it;
        only those that came later count when they are used."""
        rows = [[step.technique, _complete(step), dict(step.layers)] for step in self.active]
        text = json.dumps([self.seed, rows], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def title(self) -> str:
        """'Prune channels 50 % → Quantize int8', for rows and charts."""
        return " → ".join(step.title for step in self.active) or "Original"

    def with_steps(self, *steps: Step) -> Recipe:
        return replace(self, steps=steps)

    def to_yaml(self) -> str:
        body = {"recipe": 1, "seed": self.seed, "steps": [step.plain() for step in self.steps]}
        return yaml.safe_dump(body, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Raises RecipeError with one sentence for anything that is not a recipe."""
        return _read(text)


@lru_cache(maxsize=512)  # pages read the recipes of all candidates after every move of a slider
def _read(text: str) -> Recipe:
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(body, dict) or not isinstance(body.get("steps"), list):
        raise RecipeError(f"A recipe is a mapping with a list of steps; received {type(body).__name__}.")
    seed = body.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RecipeError(f"The seed must be a whole number; received {seed!r}.")
    return Recipe(tuple(_step(row, n + 1) for n, row in enumerate(body["steps"])), seed)


def _complete(step: Step) -> dict[str, Any]:
    specs = option_fields(CATALOG[step.technique])
    values = asdict(step.record)
    return {n: v for n, v in values.items() if v != specs[n].default or not specs[n].metadata["later"]}


def _step(row: object, number: int) -> Step:
    if not isinstance(row, dict):
        raise RecipeError(f"Step {number} must be a mapping of a technique to its options; received {row!r}.")
    row = dict(row)
    layers, enabled = row.pop("layers", None) or {}, row.pop("enabled", True)
    if len(row) != 1 or not isinstance(layers, dict) or not isinstance(enabled, bool):
        raise RecipeError(f"Step {number} must name one technique, with optional layers and enabled; received {row!r}.")
    ((technique, options),) = row.items()
    if not isinstance(options, dict | None):
        raise RecipeError(f"The options of step {number} ({technique}) must be a mapping; received {options!r}.")
    return Step(str(technique), options or {}, layers, enabled)
