"""Operators that slide a window over an image: convolutions and pools, as ordinary layers.

An input is (n, channels, *space). ONNX may pad one side more than the other; torch's layers cannot, so such padding
becomes an operator of its own in front of the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from core.engine.formats.onnx_builder import Attributes, Builder, Value, bare, filled, operator
from core.engine.shortcut import empty_around, make_shortcut
from core.errors import ModelError

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_AVERAGE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
GLOBAL_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


@dataclass(frozen=True)
class Window:
    """Per axis of space: kernel size, stride, dilation, padding before and after."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def even(self) -> bool:
        return self.before == self.after

    @property
    def sides(self) -> list[int]:
        """As `torch.nn.functional.pad` takes them: the last axis first."""
        pairs = list(zip(self.before, self.after, strict=True))
        return [side for pair in reversed(pairs) for side in pair]


def window(b: Builder, a: Attributes, x: fx.Node, kernel: tuple[int, ...]) -> Window:
    """The window that a node's attributes describe. Raises ModelError when they do not fit the input."""
    rank, space = len(kernel), b.shape(x)[2:]
    ones = [1] * rank
    stride, dilation = tuple(a.get("strides", ones)), tuple(a.get("dilations", ones))
    pads, auto = list(a.get("pads", [0] * 2 * rank)), a.get("auto_pad", "NOTSET")
    if not (rank == len(space) == len(stride) == len(dilation) == len(pads) / 2) or rank not in CONVS:
        raise ModelError(
            f"{b.node.op_type} (node {b.node.name!r}) has a window of {rank} axes over an input of {len(space)}; "
            "accepted are 1 to 3, the same for kernel, strides, pads and input."
        )
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        total = [max(0, (math.ceil(n / s) - 1) * s + r - n) for n, s, r in zip(space, stride, reach, strict=True)]
        less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
    else:
        before, after = tuple(pads[:rank]), tuple(pads[rank:])
    return Window(kernel, stride, dilation, before, after)


@operator("Conv")
def conv(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value = None) -> fx.Node:
    w = b.constant(weight, "weight")
    groups = a.get("group", 1)
    size = window(b, a, x, w.shape[2:])
    around = empty_around(w) if bias is None and groups == 1 and not any(size.sides) else None
    if around:
        return b.layer(make_shortcut(w.shape[1], *around, size.stride), x)  # type: ignore[arg-type]
    if not size.even:
        x = b.call(F.pad, x, size.sides)
    layer = bare(
        CONVS[w.ndim - 2],
        w.shape[1] * groups,
        w.shape[0],
        size.kernel,
        size.stride,
        size.before if size.even else 0,
        size.dilation,
        groups,
        bias is not None,
    )
    return b.layer(filled(layer, weight=w, bias=None if bias is None else b.constant(bias, "bias")), x)


def _transposed_window(
    b: Builder, a: Attributes, x: fx.Node, kernel: tuple[int, ...], extra: tuple[int, ...]
) -> Window:
    """The window of a transposed convolution, whose pads may follow from the size of its output."""
    auto = a.get("auto_pad", "NOTSET")
    size = window(b, {**a, "auto_pad": "NOTSET"}, x, kernel)
    space = b.shape(x)[2:]
    if "output_shape" in a:
        wanted = a["output_shape"][-len(kernel) :]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(space, size.stride, strict=True)]
    else:
        return size
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(space, size.stride, kernel, size.dilation, extra, strict=True)
    ]
    total = [have - want for have, want in zip(full, wanted, strict=True)]
    less, more = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
    return replace(size, before=before, after=after)


@operator("ConvTranspose")
def conv_transpose(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value = None) -> fx.Node:
    w = b.constant(weight, "weight")
    groups, extra = a.get("group", 1), tuple(a.get("output_padding", [0] * (w.ndim - 2)))
    size = _transposed_window(b, a, x, w.shape[2:], extra)
    plain = size.even and min(size.before) >= 0
    layer = bare(
        TRANSPOSED[w.ndim - 2],
        w.shape[0],
        w.shape[1] * groups,
        size.kernel,
        size.stride,
        size.before if plain else 0,
        extra,
        groups,
        bias is not None,
        size.dilation,
    )
    y = b.layer(filled(layer, weight=w, bias=None if bias is None else b.constant(bias, "bias")), x)
    return y if plain else b.call(F.pad, y, [-side for side in size.sides])


@operator("MaxPool")
def max_pool(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    if len(b.node.output) > 1 and b.uses.get(b.node.output[1]):
        raise ModelError(f"MaxPool (node {b.node.name!r}) returns the places of its maxima; accepted are only values.")
    size = window(b, a, x, tuple(a["kernel_shape"]))
    inside = size.even and all(2 * p <= k for p, k in zip(size.before, size.kernel, strict=True))
    if not inside:
        x = b.call(F.pad, x, size.sides, value=-math.inf)
    padding = size.before if inside else 0
    kind = MAX_POOLS[len(size.kernel)]
    return b.layer(kind(size.kernel, size.stride, padding, size.dilation, ceil_mode=bool(a.get("ceil_mode", 0))), x)


@operator("AveragePool")
def average_pool(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    size = window(b, a, x, tuple(a["kernel_shape"]))
    if set(size.dilation) != {1}:
        raise ModelError(f"AveragePool (node {b.node.name!r}) has dilations {size.dilation}; accepted is 1.")
    ceil, padded = bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
    kind = AVERAGE_POOLS[len(size.kernel)]
    if size.even and all(2 * p <= k for p, k in zip(size.before, size.kernel, strict=True)):
        return b.layer(kind(size.kernel, size.stride, size.before, ceil, padded), x)
    space = b.shape(x)[2:]
    y = b.layer(kind(size.kernel, size.stride, 0, ceil), b.call(F.pad, x, size.sides))
    if padded:
        return y
    inside = kind(size.kernel, size.stride, 0, ceil)(F.pad(torch.ones(1, 1, *space), size.sides))
    return b.call(torch.div, y, b.tensor(np.asarray(inside)))  # the share of each window that is not padding


@operator("GlobalAveragePool")
def global_average_pool(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return b.layer(GLOBAL_AVERAGE[len(b.shape(x)) - 2](1), x)


@operator("GlobalMaxPool")
def global_max_pool(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return b.layer(GLOBAL_MAX[len(b.shape(x)) - 2](1), x)
