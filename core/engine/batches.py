"""Images as training sees them: in an order, shifted and mirrored as follows from seed and epoch alone.

With stored views an image has only so many versions, one after the other from epoch to epoch, so that what is known of
a version can be kept (A Fast Knowledge Distillation Framework for Visual Recognition, Shen & Xing 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.cards import ModelCard
from core.engine.data import Images, to_tensor
from core.engine.schedule import Plan

Moves = tuple[Tensor, Tensor, Tensor]  # (n,) each: rows and columns from the top left of the padded image, mirrored


@dataclass(frozen=True)
class Batch:
    """Some of the training images: `index` says which, `view` in which version (-1: as they are)."""

    x: Tensor  # (n, c, h, w)
    y: Tensor  # (n,)
    index: Tensor  # (n,)
    view: int


def draw_moves(count: int, plan: Plan, generator: torch.Generator) -> Moves:
    """Where each of so many images goes. Draws only what the plan asks for."""
    top = left = torch.zeros(count, dtype=torch.int64)
    mirrored = torch.zeros(count, dtype=torch.bool)
    if plan.shift:
        top, left = (torch.randint(0, 2 * plan.shift + 1, (count,), generator=generator) for _ in range(2))
    if plan.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
    return top, left, mirrored


def move(x: Tensor, moves: Moves, plan: Plan) -> Tensor:
    """Shift each image by up to `plan.shift` pixels (zeros move in, after normalization) and mirror those to mirror."""
    n, channels, h, w = x.shape
    top, left, mirrored = moves
    if plan.shift:
        padded = F.pad(x, [plan.shift] * 4)
        rows = (top[:, None] + torch.arange(h))[:, None, :, None]  # (n, 1, h, 1)
        columns = (left[:, None] + torch.arange(w))[:, None, None, :]  # (n, 1, 1, w)
        x = padded[torch.arange(n)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]
    return torch.where(mirrored[:, None, None, None], x.flip(3), x) if plan.flip else x


def batches(train: Images, card: ModelCard, plan: Plan, epoch: int, first: int = 0) -> Iterator[Batch]:
    """One pass over the images, from batch number `first` on."""
    assert train.y is not None
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train), generator=generator)
    view = epoch % plan.views if plan.views else epoch
    fixed = torch.Generator().manual_seed(plan.seed * 1_000_003 + 500_000 + view)
    known = draw_moves(len(train), plan, fixed) if plan.views else None
    for number, start in enumerate(range(0, len(train), plan.batch_size)):
        index = order[start : start + plan.batch_size]
        moves = draw_moves(len(index), plan, generator) if known is None else _part(known, index)
        if number >= first:
            x = to_tensor(train.x[index.numpy()], card)
            yield Batch(move(x, moves, plan), torch.from_numpy(train.y[index.numpy()]), index, view)


def _part(moves: Moves, index: Tensor) -> Moves:
    top, left, mirrored = moves
    return top[index], left[index], mirrored[index]
