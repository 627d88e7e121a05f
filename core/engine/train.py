"""One training loop for everything that trains: fine-tuning, distillation and the sample models.

SGD with Nesterov momentum, a one-cycle or cosine schedule, random shift (and mirror where the data allows it), the best
epoch by validation kept. A loss is any function `(module, batch) -> scalar`, so distillation is one more loss. With a
checkpoint path, a killed run goes on from where it was at most half a minute before and ends with the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.batches import Batch, batches
from core.engine.data import Images, to_tensor
from core.engine.precision import Mixed, device, placed
from core.engine.schedule import Epoch, Plan, is_over
from core.engine.training_state import AfterStep, State
from core.errors import DataError

Loss = Callable[[nn.Module, Batch], Tensor]
Judge = Callable[[nn.Module], float]  # the higher the better
Report = Callable[..., None]  # report(fraction in [0, 1], message, **numbers); raises Cancelled
PACE = 1.0  # seconds between two reports of the loss


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch.x), batch.y)


def accuracy(module: nn.Module, images: Images, card: ModelCard, batch: int = 500) -> float:
    """Top-1 share of `images` in evaluation mode. Raises DataError without labels."""
    if images.y is None:
        raise DataError("Accuracy needs labels; received images without labels.")
    training = module.training
    module.eval()
    with torch.no_grad():
        hits = sum(
            int((answer(module, images.x[i : i + batch], card) == images.y[i : i + batch]).sum())
            for i in range(0, len(images), batch)
        )
    module.train(training)
    return hits / len(images)


def answer(module: nn.Module, x: NDArray[np.uint8], card: ModelCard) -> NDArray[np.int64]:
    """The class of each image (n, h, w, c), wherever `module` is."""
    place = next((p.device for p in module.parameters()), "cpu")
    return module(to_tensor(x, card).to(place)).argmax(1).cpu().numpy()  # type: ignore[no-any-return]


def fit(
    module: nn.Module,
    train: Images,
    validation: Images,
    card: ModelCard,
    plan: Plan,
    *,
    loss: Loss = cross_entropy,
    report: Report = lambda *_, **__: None,
    checkpoint: Path | None = None,
    after_step: AfterStep | None = None,
    forward: nn.Module | None = None,
    judge: Judge | None = None,
) -> list[Epoch]:
    """Train `module` in place; it ends with the weights of the best validation epoch, in evaluation mode.

    `after_step` runs after every update (masks of pruned weights are put back there). `forward` is a compiled twin
    that shares the weights. The best epoch is that of the highest `judge`, or of the highest accuracy on `validation`.
    Raises DataError without labels; `report` may raise Cancelled: the weights stay as trained.
    """
    if train.y is None or validation.y is None:
        raise DataError("Training needs labels; received images without labels.")
    with placed(module):
        state = State(module, plan, checkpoint, math.ceil(len(train) / plan.batch_size))
        quick = Mixed(module if forward is None else forward)
        if after_step and state.progress:  # a run that goes on: what it holds to has to be found before weights change
            after_step(module, state.progress)
        while not is_over(state.curve, plan):
            _epoch(state, train, card, loss, report, after_step, quick)
            score = judge(state.average) if judge else None
            right = accuracy(state.average, validation, card)
            row = Epoch(len(state.curve) + 1, state.total / len(train), right, score)
            state.finish(row)
            message = f"Epoch {row.epoch} of {plan.epochs}: validation {row.accuracy:.2%}"
            report(row.epoch / plan.epochs, message, loss=row.loss, validation_accuracy=row.accuracy)
        module.load_state_dict(state.best)
    module.eval()
    return state.curve


def _epoch(
    state: State,
    train: Images,
    card: ModelCard,
    loss: Loss,
    report: Report,
    after_step: AfterStep | None,
    forward: nn.Module,
) -> None:
    """What is left of the present epoch."""
    plan, epoch = state.plan, len(state.curve)
    state.module.train()
    reported = time.monotonic()
    for batch in batches(train, card, plan, epoch, state.steps):
        there = Batch(batch.x, batch.y.to(device()), batch.index, batch.view)
        value = loss(forward, there)
        state.update(value, after_step)
        state.count(float(value.detach()), len(batch.x))
        numbers = {}
        if time.monotonic() - reported >= PACE:
            reported, numbers = time.monotonic(), {"loss": state.total / min(state.steps * plan.batch_size, len(train))}
        report(state.progress, f"Training, epoch {epoch + 1} of {plan.epochs}", **numbers)


def seed_all(seed: int) -> None:
    """Seed torch and NumPy's global generators: libraries below us draw from both."""
    torch.manual_seed(seed)
    np.random.seed(seed)
