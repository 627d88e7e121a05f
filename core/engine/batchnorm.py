"""BatchNorm for a network without it (folded by an export, or born so): inserted behind each convolution, and undone.

The inserted statistics are measured, and its scale and shift undo exactly what it does, so the function is unchanged;
what changes is how it trains: without normalization a few steps at a useful learning rate blow such a network up.
Batch Normalization, Ioffe & Szegedy 2015.

Behind a BatchNorm a filter's length does not matter to the answer, but a step of the optimizer turns it by the rate
over its length squared (L2 Regularization versus Batch and Weight Normalization, van Laarhoven 2017). An export folds
scales into the filters, so that those of one network differ by a factor of ten and no rate suits all: each gets length
1, which is about what training with BatchNorm gives them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from core.engine.surgery import kind_of

BATCH = 64


def has_batchnorm(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, part)


@torch.no_grad()
def measure_outputs(module: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name → mean and variance of its output channels over x (n, c, h, w), float64; unused layers are absent."""
    sums: dict[str, Tensor] = {}  # rows: count, sum, sum of squares

    def add(name: str, y: Tensor) -> None:
        rows = y.double().transpose(0, 1).flatten(1)  # (c, n · h · w)
        count = torch.full((len(rows),), rows.shape[1], dtype=torch.float64)
        sums[name] = sums.get(name, torch.zeros(())) + torch.stack([count, rows.sum(1), rows.square().sum(1)])

    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: add(name, y)) for name in names
    ]
    try:
        for start in range(0, len(x), BATCH):
            module(x[start : start + BATCH])
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: rows[1:] / rows[0] for name, rows in sums.items()}
    return {name: (mean, (square - mean**2).clamp(min=0)) for name, (mean, square) in moments.items()}


def _to_unit_length(conv: nn.Module) -> Tensor:
    """Divide each filter, and its bias, by its length; the lengths (c_out,). A filter of zeros stays."""
    length = conv.weight.flatten(1).norm(dim=1)  # type: ignore[operator, union-attr]
    length = torch.where(length > 0, length, 1.0)
    conv.weight.div_(length[:, None, None, None])  # type: ignore[operator, union-attr]
    if conv.bias is not None:
        conv.bias.div_(length)  # type: ignore[operator, union-attr]
    return length


@torch.no_grad()
def insert_batchnorm(
    module: nn.Module, x: Tensor, only: Collection[str] | None = None, *, unit_length: bool = False
) -> tuple[str, ...]:
    """Replace every 2-D convolution of `module` by (convolution, BatchNorm) in place, its function unchanged.

    x (n, c, h, w) are the model's inputs to measure on; `only` these layers where it is given. With `unit_length` each
    filter is divided by its length. Returns the names of the convolutions, for `fold_batchnorm`.
    """
    module.eval()
    convs = [name for name, part in module.named_modules() if kind_of(part) in ("conv", "depthwise")]
    convs = [name for name in convs if only is None or name in only]
    found = measure_outputs(module, convs, x)
    for name, (mean, variance) in found.items():
        conv = module.get_submodule(name)
        length = _to_unit_length(conv).double() if unit_length else torch.ones_like(mean)
        norm = nn.BatchNorm2d(len(mean))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean / length)
        norm.running_var.copy_(variance / length**2)
        norm.weight.copy_((variance + norm.eps * length**2).sqrt())
        norm.bias.copy_(mean)
        _put(module, name, nn.Sequential(conv, norm.to(conv.weight.device)).eval())  # type: ignore[arg-type]
    return tuple(found)


def fold_batchnorm(module: nn.Module, names: Iterable[str]) -> None:
    """Undo `insert_batchnorm` in place: one convolution again for each of `names`, the function unchanged."""
    module.eval()
    for name in names:
        conv, norm = module.get_submodule(name).children()
        _put(module, name, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var, arg-type]
