"""How long and how fast to train, and what an epoch leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How to train. `schedule` is 'cosine' (from the peak down) or 'onecycle' (up over a quarter, then down)."""

    epochs: int = 5
    learning_rate: float = 0.05  # the peak
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not applied to biases and BatchNorm
    schedule: str = "cosine"
    shift: int = 4  # largest random shift, in pixels; 0 switches augmentation off
    flip: bool = False
    views: int = 0  # how many shifted and mirrored versions of an image there are; 0: a new one each time
    first: int = 1  # the first epoch that may be the best: before it, the network is not yet what it is to be
    patience: int = 0  # epochs without a better one on validation images after which training ends; 0: never
    clip: float = 0.0  # largest norm of all gradients together (Pascanu et al. 2013); 0 leaves them as they are
    averaging: float = 0.0  # decay of the exponential moving average of the weights; 0 keeps the raw weights
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve."""

    epoch: int
    loss: float  # mean over the training images
    accuracy: float  # top-1 on the validation part, a fraction
    score: float | None = None  # what the best epoch is chosen by, higher is better; None: the accuracy

    @property
    def merit(self) -> float:
        return self.accuracy if self.score is None else self.score


def rate_at(progress: float, plan: Plan) -> float:
    """Learning rate after `progress` (0..1) of all updates."""
    warm = 0.25 if plan.schedule == "onecycle" else 0.0
    if progress < warm:
        return plan.learning_rate * (0.1 + 0.9 * progress / warm)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def is_over(curve: list[Epoch], plan: Plan) -> bool:
    """Whether all epochs are done, or as many as `patience` have brought nothing better."""
    rows = curve[plan.first - 1 :]
    best = max(range(len(rows)), key=lambda i: (rows[i].merit, i), default=-1)
    return len(curve) >= plan.epochs or bool(rows and plan.patience and len(rows) - 1 - best >= plan.patience)


def best_merit(curve: Sequence[Epoch], plan: Plan) -> float:
    """The highest of the epochs that count; less than any before the first of them."""
    return max((row.merit for row in curve if row.epoch >= plan.first), default=-math.inf)
