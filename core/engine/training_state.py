"""What a training needs to go on after a kill and end the same; saved each epoch and every half a minute."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.engine.precision import device
from core.engine.schedule import Epoch, Plan, best_merit, rate_at

AfterStep = Callable[[nn.Module, float], None]  # after_step(module, progress in (0, 1] of all updates)
EVERY = 30.0  # seconds between two checkpoints


class State:
    """Weights, their average, the optimizer, the best epoch, the curve, and how far the present epoch is."""

    def __init__(self, module: nn.Module, plan: Plan, path: Path | None, length: int = 1) -> None:
        """An epoch has `length` updates. Goes on from what `path` holds, if it is there."""
        self.module, self.plan, self.path, self.length = module, plan, path, length
        self.optimizer = _optimizer(module, plan)
        self.average = copy.deepcopy(module) if plan.averaging else module
        self.best = copy.deepcopy(module.state_dict())
        self.curve: list[Epoch] = []
        self.steps = 0  # updates of the epoch that is not finished
        self.total = 0.0  # their losses, each times its images
        self.saved = time.monotonic()
        if path and path.exists():
            self._load(torch.load(path, weights_only=True, map_location="cpu"))

    @property
    def progress(self) -> float:
        """The share of all updates that is done."""
        return (len(self.curve) * self.length + self.steps) / (self.plan.epochs * self.length)

    def update(self, loss: Tensor, after_step: AfterStep | None) -> None:
        """One step against `loss`."""
        done, total = len(self.curve) * self.length + self.steps, self.plan.epochs * self.length
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(done / total, self.plan)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.clip)
        self.optimizer.step()
        if after_step:
            after_step(self.module, (done + 1) / total)
        if self.plan.averaging:
            _follow(self.average, self.module, min(self.plan.averaging, (done + 1) / (done + 10)))

    def count(self, loss: float, images: int) -> None:
        """An update is done; now and then it is also saved."""
        self.steps += 1
        self.total += loss * images
        if time.monotonic() - self.saved >= EVERY:
            self._save()

    def finish(self, row: Epoch) -> None:
        """The epoch is done."""
        if row.epoch >= self.plan.first and row.merit >= best_merit(self.curve, self.plan):
            self.best = copy.deepcopy(self.average.state_dict())
        self.curve.append(row)
        self.steps, self.total = 0, 0.0
        self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.path is None:
            return
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "module": self.module.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "curve": [[e.epoch, e.loss, e.accuracy, e.score] for e in self.curve],
                "epoch": [self.steps, self.total],
                "random": _random_states(),  # dropout draws from them
            },
            part,
        )
        os.replace(part, self.path)

    def _load(self, saved: dict[str, Any]) -> None:
        self.module.load_state_dict(saved["module"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best = saved["best"]
        self.curve = [Epoch(int(e), *numbers) for e, *numbers in saved["curve"]]
        self.steps, self.total = saved["epoch"]
        processor, *cards = saved["random"]
        torch.set_rng_state(processor)
        if cards and device().type == "cuda":
            torch.cuda.set_rng_state(cards[0])


def _random_states() -> list[Tensor]:
    """The global generators: the processor's, and the graphics card's where training runs there."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device().type == "cuda" else [])]


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
