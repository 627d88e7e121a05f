"""One step of a recipe: applied to what has been made so far, then verified. And what must fit before the first."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from core.candidate import Skip
from core.cards import ModelCard
from core.catalog import CATALOG
from core.engine.context import Context, Report, silent
from core.engine.data import Data, to_tensor
from core.engine.models import Model
from core.engine.schedule import Epoch
from core.engine.train import seed_all
from core.errors import DataError, ModelError, RecipeError
from core.recipe import Step

PROBE = 16  # real images that every step and the export are checked on


@dataclass
class Made:
    """What the steps have made so far."""

    module: nn.Module
    proto: Any = None  # onnx.ModelProto, once exported
    skipped: list[Skip] = field(default_factory=list)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def apply_step(
    step: Step, made: Made, model: Model, data: Data, seed: int, folder: Path, report: Report = silent
) -> None:
    """Apply one step to what is made so far and verify it. `folder` takes its checkpoints.

    Raises RecipeError for a layer that is not there, ModelError when the result does not answer as it must.
    """
    on_file = CATALOG[step.technique].acts_on == "file"
    check_layers(step, [name for m in (model.module, made.module) for name, _ in m.named_modules()])
    report(0.0, "Starting")
    seed_all(seed)
    folder.mkdir(exist_ok=True)
    context = Context(
        card=model.card,
        train=data.train,
        calibration=data.calibration,
        validation=data.validation,
        flip=data.card.flip,
        teacher=model.module,
        seed=seed,
        report=report,
        network=made.module if on_file else None,
        folder=folder,
    )
    technique = importlib.import_module(f"core.engine.techniques.{step.technique}")
    outcome = technique.apply(made.proto if on_file else made.module, step.record, step.layers, context)
    made.skipped += outcome.skipped
    if outcome.curve:
        made.curves[_unused(step.technique, made.curves)] = [_row(epoch) for epoch in outcome.curve]
    if on_file:
        made.proto = outcome.model
    else:
        made.module = outcome.model.eval()
        check_module(made.module, model.module, probe(data, model.card), step.technique)
    report(1.0, "Verified")


def probe(data: Data, card: ModelCard) -> Tensor:
    """A few real images (n, c, h, w) that no score is computed on."""
    return to_tensor(data.calibration.x[:PROBE], card)


def check_fit(card: ModelCard, data: Data) -> None:
    """Raises DataError when the images or the labels are not what the model takes."""
    height, width, channels = data.test.x.shape[1:]
    if (channels, height, width) != tuple(card.input_shape):
        wanted = " × ".join(map(str, card.input_shape))
        raise DataError(f"The model takes images of {wanted}; received {channels} × {height} × {width}.")
    largest = max((int(p.y.max()) for p in (data.train, data.test) if p.y is not None and len(p.y)), default=0)
    if card.classes and largest >= len(card.classes):
        last = len(card.classes) - 1
        raise DataError(f"The model knows {last + 1} classes; received label {largest}, accepted are 0 to {last}.")


def check_layers(step: Step, names: Iterable[str]) -> None:
    """Raises RecipeError when the step names a layer that is not among `names`, which hold containers too."""
    known = set(names)
    for layer in step.layers:
        if layer not in known:
            leaves = sorted(n for n in known if n and not any(other.startswith(f"{n}.") for other in known))
            shown = ", ".join(leaves[:12]) + (" …" if len(leaves) > 12 else "")
            raise RecipeError(f"{step.technique} names the layer {layer!r}, which is not there; layers are {shown}.")


@torch.no_grad()
def check_module(module: nn.Module, original: nn.Module, x: Tensor, technique: str) -> None:
    """Raises ModelError when `module` answers x with another shape than `original` does, or not with finite numbers."""
    found, expected = (_pytree.tree_leaves(m(x))[0] for m in (module, original))
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, not {tuple(expected.shape)}"
        raise ModelError(f"After {technique} the shape of the answer is {shapes}.")
    if not torch.isfinite(found).all():
        raise ModelError(
            f"After {technique} the model answers with numbers that are not finite; use a gentler setting."
        )


def _row(epoch: Epoch) -> dict[str, float]:
    return {"epoch": epoch.epoch, "loss": epoch.loss, "accuracy": epoch.accuracy}


def _unused(name: str, taken: dict[str, Any]) -> str:
    """`name`, or with a number behind it when a technique trains twice in one recipe."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free
