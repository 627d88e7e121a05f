"""The last layer alone, solved on what the rest of the network gives now: the first half of linear probing, then
fine-tuning. Features are computed once, so it takes seconds, and the rest is not distorted while the last layer errs.
It is fitted to the labels and judged by them, or with a teacher to its answers and by nearness to those, as all that is
learned from a teacher (`core/engine/teaching.py` says why).

Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, Kumar et al. 2022.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.precision import device
from core.engine.surgery import calls
from core.engine.teaching import kl_loss, logits_of
from core.engine.train import accuracy
from core.engine.zeros import surviving

BATCH, STEPS = 256, 100
DECAY = 1e-3  # pull toward the weights that were there, per class and feature


def solve_last_layer(
    module: nn.Module, train: Images, validation: Images, context: Context, teacher: nn.Module | None = None
) -> str:
    """Fit the last linear layer in place. Returns why it stayed as it was, "" when it changed.

    Images need labels unless there is a teacher.
    """
    card = context.card
    found = calls(module, to_tensor(train.x[:2], card))
    last = found[-1].layer if found else None
    if not isinstance(last, nn.Linear) or found[-1].times > 1:
        return "Kept: the network does not end in a linear layer."
    wanted = None if teacher is None else logits_of(teacher, validation, context)

    def merit() -> float:
        if wanted is None:
            return accuracy(module, validation, card)
        return -float(kl_loss(logits_of(module, validation, context), wanted, 1.0))

    before, start = merit(), (last.weight.detach().clone(), _bias(last))
    with torch.no_grad():
        features = _features(module, last, train, card)
    target = torch.from_numpy(train.y) if teacher is None else logits_of(teacher, train, context).softmax(1)
    _descend(last, features, target.to(device()))
    if merit() > before:
        return ""
    with torch.no_grad():
        last.weight.copy_(start[0])
        if last.bias is not None:
            last.bias.copy_(start[1])
    judged = "it answers fewer validation images right" if teacher is None else "it answers less like the original"
    return f"Kept: solved for the training images alone, {judged}."


def _bias(layer: nn.Linear) -> Tensor:
    return torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach().clone()


def _features(module: nn.Module, last: nn.Linear, images: Images, card: ModelCard) -> Tensor:
    """What the last layer reads, (n, d)."""
    rows: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].flatten(1).cpu()))
    try:
        module.eval()
        for start in range(0, len(images), BATCH):
            module(to_tensor(images.x[start : start + BATCH], card))
    finally:
        hook.remove()
    return torch.cat(rows)


def _descend(last: nn.Linear, features: Tensor, y: Tensor) -> None:
    """L-BFGS on cross-entropy, with zeros of a pruned layer held at zero; `y` (n,) classes or (n, classes) shares."""
    features = features.to(device())
    weight, bias = last.weight.detach().to(device()), _bias(last).to(device())
    alive = surviving(last.weight)
    mask = torch.ones_like(weight) if alive is None else alive.to(weight)
    change = [torch.zeros_like(weight, requires_grad=True), torch.zeros_like(bias, requires_grad=last.bias is not None)]
    free = [part for part in change if part.requires_grad]
    optimizer = torch.optim.LBFGS(free, max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight + mask * change[0], bias + change[1])
        value = F.cross_entropy(logits, y) + DECAY / 2 * sum(part.square().sum() for part in free)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        last.weight.copy_(weight + mask * change[0])
        if last.bias is not None:
            last.bias.copy_(bias + change[1])
