"""Operators that round values to integers and read integers as values again, so that a rounded network can be trained.

Codes are floats here that hold whole numbers. Gradients pass rounding as if it were not there, but for values beyond
the lowest or the highest code, which get none: the straight-through estimator.

Estimating or Propagating Gradients Through Stochastic Neurons, Bengio et al. 2013; Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference, Jacob et al. 2018.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from core.engine.formats.onnx_builder import Attributes, Builder, Value, operator

KINDS = ("QuantizeLinear", "DequantizeLinear")


class _Codes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:  # type: ignore[override]
        codes = (x / scale).round() + zero
        ctx.scale = scale
        ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return gradient * inside / ctx.scale, None, None, None, None


def to_codes(x: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:
    """round(x / scale) + zero within [low, high], in the shape of x; halves go to the even neighbour."""
    codes: Tensor = _Codes.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]
    return codes


def to_values(codes: Tensor, scale: float, zero: int) -> Tensor:
    """What codes stand for."""
    return (codes - zero if zero else codes) * scale


@operator("QuantizeLinear")
def quantize(b: Builder, a: Attributes, x: fx.Node, scale: Value, zero: Value = None) -> fx.Node:
    point = np.zeros((), np.uint8) if zero is None else b.constant(zero, "zero point")
    limits = np.iinfo(point.dtype)
    return b.call(to_codes, x, b.constant(scale, "scale").item(), int(point.item()), int(limits.min), int(limits.max))


@operator("DequantizeLinear")
def dequantize(b: Builder, a: Attributes, codes: fx.Node, scale: Value, zero: Value = None) -> fx.Node:
    point = 0 if zero is None else int(b.constant(zero, "zero point").item())
    return b.call(to_values, codes, b.constant(scale, "scale").item(), point)
