"""Hints from within the teacher: the student is also asked to make what the teacher makes half way.

At every size of map, the last value that both networks make under one name is compared: the mean squared difference as
a share of the teacher's mean square. Where the student has fewer channels, the teacher's are first predicted from them
by a 1×1 map, solved once in closed form, so nothing is trained that the student does not keep.

FitNets: Hints for Thin Deep Nets, Romero et al. 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.engine.batches import Batch
from core.engine.train import Loss

BATCH = 32
RIDGE = 1e-3  # of the mean square of the student's channels
Values = dict[str, Tensor]  # name of a part → its output (n, c, h, w), in the order of execution


@contextmanager
def watched(module: nn.Module, names: set[str] | None = None) -> Iterator[Values]:
    """What the parts of `module` (those in `names`) make in the last forward pass; the newest value of each."""
    found: Values = {}

    def note(name: str, value: object) -> None:
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] > 1:
            found.pop(name, None)
            found[name] = value

    parts = [(name, part) for name, part in module.named_modules() if name and (names is None or name in names)]
    hooks = [part.register_forward_hook(lambda _, __, y, name=name: note(name, y)) for name, part in parts]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def find_maps(student: nn.Module, teacher: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Name → the map (c_teacher, c_student + 1) from the student's channels and a one; None where widths are equal.

    x (n, c, h, w) are the images on which the maps are solved; both networks are on the processor.
    """
    with watched(student.eval()) as ours, watched(teacher.eval()) as theirs:
        student(x[:2]), teacher(x[:2])
        last = {b.shape[2:]: name for name, b in theirs.items() if name in ours and ours[name].shape[2:] == b.shape[2:]}
        widths = {name: (ours[name].shape[1], theirs[name].shape[1]) for name in last.values()}
    differing = {name for name, (a, b) in widths.items() if a != b}
    sums = {name: (torch.zeros(a + 1, a + 1), torch.zeros(a + 1, b)) for name, (a, b) in widths.items()}
    with watched(student, differing) as ours, watched(teacher, differing) as theirs:
        for part in torch.split(x, BATCH):
            student(part), teacher(part)
            for name in differing:
                a, b = (value[name].transpose(0, 1).flatten(1) for value in (ours, theirs))  # (c, n · h · w)
                a = torch.cat([a, torch.ones_like(a[:1])])
                sums[name][0].add_(a @ a.T)
                sums[name][1].add_(a @ b.T)
    return {name: _solve(*sums[name]) if name in differing else None for name in widths}


def _solve(gram: Tensor, cross: Tensor) -> Tensor:
    gram = gram.double()
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution: Tensor = torch.linalg.solve(gram, cross.double())
    return solution.T.float()


def distance(ours: Tensor, theirs: Tensor, mapping: Tensor | None) -> Tensor:
    """Mean squared difference over the mean square of `theirs`; 0 for the same values."""
    ours, theirs = ours.float(), theirs.float()
    if mapping is not None:
        mapping = mapping.to(ours.device)
        ours = torch.einsum("oc,nchw->nohw", mapping[:, :-1], ours) + mapping[:, -1, None, None]
    return (ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)


@contextmanager
def hinted(loss: Loss, weight: float, student: nn.Module, teacher: nn.Module, x: Tensor) -> Iterator[Loss]:
    """`loss`, which runs teacher and student, plus `weight` times the mean distance of what they make half way."""
    maps = find_maps(student, teacher, x)
    with watched(student, set(maps)) as ours, watched(teacher, set(maps)) as theirs:

        def both(module: nn.Module, batch: Batch) -> Tensor:
            value = loss(module, batch)
            parts = [distance(ours[name], theirs[name], mapping) for name, mapping in maps.items()]
            return value + weight * torch.stack(parts).mean() if parts else value

        yield both
