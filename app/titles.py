"""Titles of candidates that a person can tell apart: where two recipes have the same one, it says what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from core.candidate import Candidate
from core.errors import RecipeError
from core.recipe import Recipe


def titles(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    """Id → title, none twice: 'Prune channels 50% (repair off)'."""
    alike: dict[str, list[str]] = {}
    for name, made in candidates.items():
        alike.setdefault(made.title, []).append(name)
    return {
        name: f"{title} ({added[name]})" if len(names) > 1 else title
        for title, names in alike.items()
        for added in [_differences({name: _settings(candidates[name]) for name in names})]
        for name in names
    }


def _settings(made: Candidate) -> dict[tuple[int, str], Any]:
    """(number of the step, option) → its value."""
    try:
        recipe = Recipe.from_yaml(made.recipe)
    except RecipeError:  # made by another version of the studio
        return {}
    rows: dict[tuple[int, str], Any] = {(-1, "seed"): recipe.seed}
    for number, step in enumerate(recipe.active):
        rows |= {(number, name): value for name, value in asdict(step.record).items()}
        rows[number, "by hand"] = dict(step.layers)
    return rows


def _differences(rows: Mapping[str, Mapping[tuple[int, str], Any]]) -> dict[str, str]:
    """Id → the values that not all share; beside it the start of the id where that does not tell two apart."""
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    differing = [key for key in keys if len({repr(row.get(key)) for row in rows.values()}) > 1]
    said = {name: ", ".join(_words(key[1], row[key]) for key in differing if key in row) for name, row in rows.items()}
    found = list(said.values())
    return {
        name: text if text and found.count(text) == 1 else ", ".join(filter(None, (text, name[:6])))
        for name, text in said.items()
    }


def _words(option: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{len(value)} {option}"
    if isinstance(value, bool):
        return f"{option} {'on' if value else 'off'}"
    return f"{option} {value}"
