"""Shortcuts without parameters: every n-th pixel, empty channels around it (He et al. 2016, option A).

As a slice and a pad they would tie each channel of one stage to a fixed place in the next, and no residual stream could
be pruned. Here such a shortcut is a 1×1 convolution whose weight is an identity kept as a buffer: nothing trains it,
and it counts as the copy that it is. So it is in exported files, too: a slice would take the rest of its stage out of
the layout in which ONNX Runtime computes fastest. Once channels around it are removed, torch-pruning leaves an ordinary
weight in its place, which is counted, repaired and trained like any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

CLOSE = 1e-6  # a stored byte times its step is hardly ever exactly 1


def make_shortcut(channels: int, before: int, after: int, stride: tuple[int, int]) -> nn.Conv2d:
    """(n, channels, h, w) → (n, before + channels + after, ⌈h / stride⌉, ⌈w / stride⌉)."""
    layer = nn.Conv2d(channels, before + channels + after, 1, stride, bias=False)
    del layer.weight
    layer.register_buffer("weight", F.pad(torch.eye(channels), (0, 0, before, after))[:, :, None, None])
    layer.is_shortcut = True  # type: ignore[assignment]
    return layer


def empty_around(weight: NDArray[Any]) -> tuple[int, int] | None:
    """The empty channels (before, after) that a convolution puts around copies of its inputs, in their order; None for
    a `weight` (out, in, …) that does anything else, or reads one channel only, as one that was cut may."""
    out, into, *kernel = weight.shape
    if kernel != [1, 1] or not 1 < into <= out:
        return None
    before = int(np.abs(weight[:, 0]).argmax())
    copies = before + into <= out and np.pad(np.eye(into), ((before, out - into - before), (0, 0)))
    return (before, out - into - before) if np.allclose(weight[..., 0, 0], copies, rtol=0, atol=CLOSE) else None
