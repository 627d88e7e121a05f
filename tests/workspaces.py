"""A workspace written by hand: one model with its profile and scores, so that pages can be tested without an engine."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from core.candidate import Candidate, Latency, Scores, Share
from core.cards import DataCard, ModelCard
from core.layers import Profile
from core.predict import costs
from core.recipe import Recipe
from core.workspace import Workspace, write_json

CLASSES = ("bird", "cat", "dog")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
LABELS = np.array([0, 0, 1, 1, 2, 2] * 5)  # 30 test images, ten of each class


def share(value: float, count: int = 30) -> Share:
    return Share(value, max(0.0, value - 0.1), min(1.0, value + 0.1), count)


def logits(wrong: list[int]) -> np.ndarray:
    """(30, 3): the label's class wins, but on the images in `wrong` the next one does."""
    answer = LABELS.copy()
    answer[wrong] = (answer[wrong] + 1) % 3
    return np.eye(3, dtype=np.float32)[answer]


def scores(profile: Profile, wrong: list[int], latency: tuple[Latency, ...] = ()) -> Scores:
    right = logits(wrong).argmax(1) == LABELS
    per_class = tuple(share(float(right[k == LABELS].mean()), 10) for k in range(3))
    size = 4 * profile.params + 9000
    hit, same = share(float(right.mean())), share(1.0)
    return Scores(hit, same, size, profile.params, profile.macs, profile.peak_bytes, latency, per_class)


def made_of(profile: Profile, recipe: Recipe, wrong: list[int], latency: tuple[Latency, ...]) -> Scores:
    """What the recipe leaves of the model."""
    left = costs(profile, recipe)
    size = left.weight_bytes + 9000
    return replace(scores(profile, wrong, latency), size_bytes=size, params=left.params, macs=left.macs)


def write_workspace(root: Path, profile: Profile, recipes: tuple[str, ...] = ()) -> Workspace:
    """Model `net-1` and data `pets-1`, and a candidate for each recipe (YAML); the n-th is wrong on images 0…n."""
    space = Workspace(root)
    model, data = space.folder("models", "net-1"), space.folder("data", "pets-1")
    model.mkdir()
    data.mkdir()
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    np.savez(data / "data.npz", test_x=images, test_y=LABELS)
    card = DataCard("pets", "Pets", (3, 8, 8), CLASSES, 60, 20, 20, 30, True, "0" * 16)
    write_json(data / "card.json", card.to_json())
    write_json(model / "profile.json", profile.to_json())
    write_json(model / "baseline-pets-1.json", asdict(scores(profile, [29])))
    np.savez(model / "baseline-pets-1.npz", logits=logits([29]))
    (model / "model.onnx").write_bytes(b"not read by these tests")
    for number, text in enumerate(recipes):
        write_candidate(space, profile, text, list(range(number + 1)))
    write_json(model / "card.json", ModelCard("net", "A Net", (3, 8, 8), CLASSES, MEAN, STD, data="pets").to_json())
    return space


def write_candidate(space: Workspace, profile: Profile, text: str, wrong: list[int]) -> None:
    recipe = Recipe.from_yaml(text)
    folder = space.folder("candidates", f"made-{recipe.id}")
    folder.mkdir()
    rows = tuple(Latency(batch, threads, 1.0, 1.5, 1.5, 1.4, 1.6, 20) for batch in (1, 32) for threads in (1, 2))
    np.savez(folder / "predictions.npz", logits=logits(wrong))
    (folder / "model.onnx").write_bytes(b"not read by these tests")
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    made = Candidate(
        folder.name, "net-1", "pets-1", recipe.to_yaml(), recipe.title, made_of(profile, recipe, wrong, rows), (), {},
        {layer.name: 0.01 * n for n, layer in enumerate(profile.tunable)}, 1e-6, 5.0, {"seed": "0"},
    )  # fmt: skip
    write_json(folder / "candidate.json", made.to_json())
