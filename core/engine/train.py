"""One training loop for everything that trains: fine-tuning, distillation and the sample models.

SGD with Nesterov momentum, a one-cycle or cosine schedule, random shift (and mirror where the data allows it), the best
epoch by validation kept. A loss is any function `(module, x, y) -> scalar`, so distillation is one more loss. With a
checkpoint path, a killed run goes on from its last finished epoch and ends with the same weights.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.data import Images, to_tensor
from core.engine.precision import Mixed, device, placed
from core.errors import DataError

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Report = Callable[..., None]  # report(fraction in [0, 1], message, **numbers); raises Cancelled


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
    clip: float = 0.0  # largest norm of all gradients together (Pascanu et al. 2013); 0 leaves them as they are
    averaging: float = 0.0  # decay of the exponential moving average of the weights; 0 keeps the raw weights
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One row of the learning curve."""

    epoch: int
    loss: float  # mean over the training images
    accuracy: float  # top-1 on the validation part, a fraction


def cross_entropy(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(module(x), y)


def rate_at(progress: float, plan: Plan) -> float:
    """Learning rate after `progress` (0..1) of all updates."""
    warm = 0.25 if plan.schedule == "onecycle" else 0.0
    if progress < warm:
        return plan.learning_rate * (0.1 + 0.9 * progress / warm)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def augment(x: Tensor, plan: Plan, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `plan.shift` pixels (zeros move in, after normalization) and mirror half of them."""
    n, _, h, w = x.shape
    if plan.shift:
        padded = F.pad(x, [plan.shift] * 4)
        top, left = (torch.randint(0, 2 * plan.shift + 1, (n,), generator=generator) for _ in range(2))
        rows = (top[:, None] + torch.arange(h))[:, None, :, None]  # (n, 1, h, 1)
        columns = (left[:, None] + torch.arange(w))[:, None, None, :]  # (n, 1, 1, w)
        x = padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows, columns]
    if plan.flip:
        mirrored = torch.rand(n, generator=generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


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


def _optimizer(module: nn.Module, plan: Plan) -> torch.optim.SGD:
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    free = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=plan.learning_rate, momentum=plan.momentum, nesterov=True)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move `average` toward `module`; counters are copied."""
    for slow, fast in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


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
    after_step: Callable[[nn.Module], None] | None = None,
    forward: nn.Module | None = None,
    judge: Callable[[nn.Module], float] | None = None,
) -> list[Epoch]:
    """Train `module` in place; it ends with the weights of the best validation epoch, in evaluation mode.

    `after_step` runs after every update (masks of pruned weights are put back there). `forward` is a compiled twin
    that shares the weights. The best epoch is that of the highest `judge`, or of the highest accuracy on `validation`.
    Raises DataError without labels; `report` may raise Cancelled: the weights stay as trained.
    """
    if train.y is None or validation.y is None:
        raise DataError("Training needs labels; received images without labels.")
    with placed(module):
        state = _State(module, plan, checkpoint)
        shared = Mixed(module if forward is None else forward)
        _epochs(state, train, validation, card, loss, report, after_step, shared, judge)
        module.load_state_dict(state.best)
    module.eval()
    return state.curve


def _epochs(
    state: _State,
    train: Images,
    validation: Images,
    card: ModelCard,
    loss: Loss,
    report: Report,
    after_step: Callable[[nn.Module], None] | None,
    forward: nn.Module,
    judge: Callable[[nn.Module], float] | None,
) -> None:
    """Every epoch that is not done yet."""
    plan = state.plan
    steps = math.ceil(len(train) / plan.batch_size)
    for epoch in range(len(state.curve), plan.epochs):
        state.module.train()
        total = 0.0
        for step, (x, y) in enumerate(_batches(train, card, plan, epoch)):
            value = loss(forward, x, y.to(device()))
            state.update(value, epoch * steps + step, plan.epochs * steps, after_step)
            total += float(value.detach()) * len(x)
            report((epoch + (step + 1) / steps) / plan.epochs, f"Training, epoch {epoch + 1} of {plan.epochs}")
        row = Epoch(epoch + 1, total / len(train), accuracy(state.average, validation, card))
        state.finish(row, judge(state.average) if judge else row.accuracy)
        score = f"validation {state.curve[-1].accuracy:.2%}"
        report((epoch + 1) / plan.epochs, f"Epoch {epoch + 1} of {plan.epochs}: {score}")


def _batches(train: Images, card: ModelCard, plan: Plan, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the images in an order, and with shifts and mirrors, that follow from seed and epoch alone."""
    assert train.y is not None
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train), generator=generator).numpy()
    for start in range(0, len(train), plan.batch_size):
        index = order[start : start + plan.batch_size]
        yield augment(to_tensor(train.x[index], card), plan, generator), torch.from_numpy(train.y[index])


class _State:
    """What a run needs to go on after a kill: weights, their average, the optimizer, the best epoch and the curve."""

    def __init__(self, module: nn.Module, plan: Plan, path: Path | None) -> None:
        self.module, self.plan, self.path = module, plan, path
        self.optimizer = _optimizer(module, plan)
        self.average = copy.deepcopy(module) if plan.averaging else module
        self.best = copy.deepcopy(module.state_dict())
        self.curve: list[Epoch] = []
        self.highest = -math.inf  # of what the best epoch is chosen by
        if path and path.exists():
            saved = torch.load(path, weights_only=True, map_location=device())
            module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average.load_state_dict(saved["average"])
            self.best, self.highest = saved["best"], saved["highest"]
            self.curve = [Epoch(int(e), loss, score) for e, loss, score in saved["curve"]]

    def update(self, loss: Tensor, done: int, total: int, after_step: Callable[[nn.Module], None] | None) -> None:
        """One step against `loss`, after `done` of `total` updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(done / total, self.plan)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.clip)
        self.optimizer.step()
        if after_step:
            after_step(self.module)
        if self.plan.averaging:
            _follow(self.average, self.module, min(self.plan.averaging, (done + 1) / (done + 10)))

    def finish(self, row: Epoch, score: float) -> None:
        if score >= self.highest:
            self.best, self.highest = copy.deepcopy(self.average.state_dict()), score
        self.curve.append(row)
        if self.path:
            part = self.path.with_suffix(".part")
            torch.save(
                {
                    "module": self.module.state_dict(),
                    "average": self.average.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "best": self.best,
                    "highest": self.highest,
                    "curve": [[e.epoch, e.loss, e.accuracy] for e in self.curve],
                },
                part,
            )
            os.replace(part, self.path)


def seed_all(seed: int) -> None:
    """Seed torch and NumPy's global generators: libraries below us draw from both."""
    torch.manual_seed(seed)
    np.random.seed(seed)
