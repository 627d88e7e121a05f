"""Titles that a person can tell apart."""

from __future__ import annotations

from app.titles import titles
from core.candidate import Candidate, Scores, Share
from core.recipe import Recipe

SCORES = Scores(None, Share(1, 1, 1, 1), 1, 1, 1, 1, ())


def made(name: str, text: str) -> Candidate:
    recipe = Recipe.from_yaml(text)
    return Candidate(name, "m", "d", recipe.to_yaml(), recipe.title, SCORES, (), {}, {}, 0.0, 1.0, {})


def named(*texts: str) -> list[str]:
    found = {f"id-{number}-long": made(f"id-{number}-long", text) for number, text in enumerate(texts)}
    return list(titles(found).values())


def test_titles_that_differ_stay_as_they_are() -> None:
    assert named("recipe: 1\nsteps:\n- quantize: {}\n", "recipe: 1\nsteps:\n- distill: {}\n") == [
        "Quantize int8",
        "Distill 5 epochs",
    ]


def test_equal_titles_say_what_differs() -> None:
    steps = "recipe: 1\nsteps:\n- prune_channels: {ratio: 0.5%s}\n"
    plain, bare, fine = (steps % more for more in ("", ", repair: false", ", multiple: 1"))
    assert named(plain, bare) == ["Prune channels 50% (repair on)", "Prune channels 50% (repair off)"]
    assert named(plain, bare, fine) == [
        "Prune channels 50% (multiple 8, repair on)",
        "Prune channels 50% (multiple 8, repair off)",
        "Prune channels 50% (multiple 1, repair on)",
    ]


def test_layers_by_hand_and_the_seed_count_too() -> None:
    by_hand = "recipe: 1\nseed: 3\nsteps:\n- quantize: {}\n  layers: {conv1: 32}\n"
    assert named("recipe: 1\nsteps:\n- quantize: {}\n", by_hand) == [
        "Quantize int8 (seed 0, 0 by hand)",
        "Quantize int8 (seed 3, 1 by hand)",
    ]


def test_what_no_word_tells_apart_shows_its_id() -> None:
    values = [
        "recipe: 1\nsteps:\n- prune_weights: {}\n  layers: {a: 0.1}\n",
        "recipe: 1\nsteps:\n- prune_weights: {}\n  layers: {a: 0.2}\n",
    ]
    assert named(*values) == [
        "Prune weights 50% (1 by hand, id-0-l)",
        "Prune weights 50% (1 by hand, id-1-l)",
    ]
