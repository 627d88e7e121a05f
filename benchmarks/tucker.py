"""One convolution as three, from tensorly's partial Tucker decomposition of its weight (Kim et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def tucker_layer(layer: Any, kept: float, partial_tucker: Callable[..., Any]) -> nn.Sequential:
    """Of `layer`, at this share of its output and input channels."""
    ranks = [max(1, round(kept * c)) for c in (layer.out_channels, layer.in_channels)]
    (core, (outer, inner)), _ = partial_tucker(layer.weight.detach().numpy(), rank=ranks, modes=[0, 1])
    parts = nn.Sequential(
        nn.Conv2d(layer.in_channels, ranks[1], 1, bias=False),
        nn.Conv2d(ranks[1], ranks[0], layer.kernel_size, layer.stride, layer.padding, bias=False),
        nn.Conv2d(ranks[0], layer.out_channels, 1, bias=layer.bias is not None),
    )
    for part, weight in zip(parts, (inner.T[:, :, None, None], core, outer[:, :, None, None]), strict=True):
        part.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)))
    if layer.bias is not None:
        parts[2].bias = nn.Parameter(layer.bias.detach().clone())
    return parts
