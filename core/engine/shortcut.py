"""Shortcuts without parameters: every n-th pixel, empty channels around it (He et al. 2016, option A).

As a slice and a pad they would tie each channel of one stage to a fixed place in the next, and no residual stream could
be pruned. Here such a shortcut is a 1×1 convolution whose weight is an identity kept as a buffer: it costs nothing,
nothing trains it and it is exported as the slice and the pad that it came from. Once channels around it are removed,
torch-pruning leaves an ordinary weight in its place, which is counted, repaired, trained and exported like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.surgery import replace_layer, shortcuts


def make_shortcut(channels: int, before: int, after: int, stride: tuple[int, int]) -> nn.Conv2d:
    """(n, channels, h, w) → (n, before + channels + after, ⌈h / stride⌉, ⌈w / stride⌉)."""
    layer = nn.Conv2d(channels, before + channels + after, 1, stride, bias=False)
    del layer.weight
    layer.register_buffer("weight", F.pad(torch.eye(channels), (0, 0, before, after))[:, :, None, None])
    layer.is_shortcut = True  # type: ignore[assignment]
    return layer


class _Sliced(nn.Module):
    """What an uncut shortcut is in a file."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        first = int(layer.weight[:, 0].flatten().argmax())
        self.pads = first, layer.out_channels - layer.in_channels - first
        self.stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.pad(x[:, :, ::rows, ::columns], (0, 0, 0, 0, *self.pads))


@contextmanager
def sliced(module: nn.Module) -> Iterator[None]:
    """The uncut shortcuts of `module` as slices and pads, for the length of the block."""
    whole = {path: layer for path, layer in shortcuts(module).items() if "weight" in layer._buffers}
    try:
        for path, layer in whole.items():
            replace_layer(module, path, _Sliced(layer))
        yield
    finally:
        for path, layer in whole.items():
            replace_layer(module, path, layer)
