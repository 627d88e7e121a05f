"""Operators that become ordinary layers without a window: linear, normalization, activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from core.engine.formats.onnx_builder import Array, Attributes, Builder, Value, bare, batch_axis, filled, operator
from core.errors import ModelError

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _linear(b: Builder, x: fx.Node, weight: Array, bias: Array | None) -> fx.Node:
    """(n, in) → (n, out) for weight (out, in)."""
    outputs, inputs = weight.shape
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), (outputs,)) if bias.size in (1, outputs) else bias.reshape(outputs)
    return b.layer(filled(bare(nn.Linear, inputs, outputs, bias is not None), weight=weight, bias=bias), x)


@operator("Gemm")
def gemm(b: Builder, a: Attributes, x: fx.Node, y: Value, z: Value = None) -> fx.Node:
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    left = b.call(torch.t, b.tensor(x)) if a.get("transA", 0) else b.tensor(x)
    plain = z is None or (isinstance(z, np.ndarray) and (z.ndim < 2 or z.shape[0] == 1))
    if isinstance(y, np.ndarray) and plain:
        weight = y if a.get("transB", 0) else y.T
        bias = None if z is None else np.float32(beta) * b.constant(z, "bias")
        return _linear(b, left, np.float32(alpha) * weight if alpha != 1 else weight, bias)
    right = b.call(torch.t, b.tensor(y)) if a.get("transB", 0) else b.tensor(y)
    product = b.call(torch.mul, b.call(torch.matmul, left, right), alpha)
    return product if z is None else b.call(torch.add, product, b.call(torch.mul, b.tensor(z), beta))


@operator("MatMul")
def matmul(b: Builder, a: Attributes, x: Value, y: Value) -> fx.Node:
    if isinstance(x, fx.Node) and isinstance(y, np.ndarray) and y.ndim == 2 and y.dtype == np.float32:
        return _linear(b, x, y.T, None)
    return b.call(torch.matmul, b.tensor(x), b.tensor(y))


@operator("BatchNormalization")
def batch_norm(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value, mean: Value, var: Value) -> fx.Node:
    if a.get("training_mode", 0):
        raise ModelError(f"BatchNormalization (node {b.node.name!r}) is in training mode; export after model.eval().")
    scale = b.constant(weight, "scale")
    kind = BATCH_NORMS[len(b.shape(x))]
    layer = bare(kind, len(scale), a.get("epsilon", 1e-5), 1 - a.get("momentum", 0.9))
    moments = {"running_mean": b.constant(mean, "mean"), "running_var": b.constant(var, "variance")}
    return b.layer(filled(layer, weight=scale, bias=b.constant(bias, "bias"), **moments), x)


@operator("InstanceNormalization")
def instance_norm(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value) -> fx.Node:
    scale = b.constant(weight, "scale")
    layer = bare(INSTANCE_NORMS[len(b.shape(x))], len(scale), a.get("epsilon", 1e-5), affine=True)
    return b.layer(filled(layer, weight=scale, bias=b.constant(bias, "bias")), x)


@operator("GroupNormalization")
def group_norm(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value) -> fx.Node:
    channels, groups = b.shape(x)[1], a["num_groups"]
    scale, shift = b.constant(weight, "scale"), b.constant(bias, "bias")
    if b.opset < 21:  # one value for each group then
        scale, shift = np.repeat(scale, channels // groups), np.repeat(shift, channels // groups)
    return b.layer(filled(bare(nn.GroupNorm, groups, channels, a.get("epsilon", 1e-5)), weight=scale, bias=shift), x)


@operator("LayerNormalization")
def layer_norm(b: Builder, a: Attributes, x: fx.Node, weight: Value, bias: Value = None) -> fx.Node:
    shape = b.shape(x)
    size = shape[a.get("axis", -1) % len(shape) :]
    if batch_axis(size) is not None:
        raise ModelError(
            f"LayerNormalization (node {b.node.name!r}) mixes the images of a batch; accepted is axis 1 up."
        )
    layer = bare(nn.LayerNorm, size, a.get("epsilon", 1e-5), bias=bias is not None)
    scale = np.broadcast_to(b.constant(weight, "scale"), size)
    shift = None if bias is None else np.broadcast_to(b.constant(bias, "bias"), size)
    return b.layer(filled(layer, weight=scale, bias=shift), x)


@operator("LRN")
def local_response_norm(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    layer = nn.LocalResponseNorm(a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))
    return b.layer(layer, x)


@operator("Clip")
def clip(b: Builder, a: Attributes, x: fx.Node, low: Value = None, high: Value = None) -> fx.Node:
    limits = [a.get("min"), a.get("max")]
    for i, value in enumerate((low, high)):
        if value is not None:
            limits[i] = b.constant(value, "limit").item()
    bottom, top = (-math.inf if limits[0] is None else limits[0]), (math.inf if limits[1] is None else limits[1])
    if (bottom, top) == (-math.inf, math.inf):
        return x
    if bottom == 0 and top >= 3e38:
        return b.layer(nn.ReLU(), x)
    if (bottom, top) == (0, 6):
        return b.layer(nn.ReLU6(), x)
    if -math.inf < bottom < top < math.inf:
        return b.layer(nn.Hardtanh(bottom, top), x)
    return b.call(torch.clamp, x, limits[0], limits[1])


@operator("HardSigmoid")
def hard_sigmoid(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    slope, shift = a.get("alpha", 0.2), a.get("beta", 0.5)
    if abs(slope - 1 / 6) < 1e-4 and shift == 0.5:
        return b.layer(nn.Hardsigmoid(), x)
    return b.call(torch.clamp, b.call(torch.add, b.call(torch.mul, x, slope), shift), 0, 1)


@operator("PRelu")
def prelu(b: Builder, a: Attributes, x: fx.Node, slope: Value) -> fx.Node:
    values, shape = b.constant(slope, "slope"), b.shape(x)
    channels = shape[1] if len(shape) > 1 else 1
    per_channel = values.shape[-len(shape) + 1 :] == (channels,) + (1,) * (len(shape) - 2)
    if values.size == 1 or (values.size == channels and per_channel):
        return b.layer(filled(bare(nn.PReLU, values.size), weight=values.reshape(-1)), x)
    below = b.call(torch.mul, b.call(torch.clamp, x, None, 0), b.tensor(values))
    return b.call(torch.add, b.call(torch.clamp, x, 0), below)


@operator("Softmax")
def softmax(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return _over_axis(b, a, x, nn.Softmax)


@operator("LogSoftmax")
def log_softmax(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return _over_axis(b, a, x, nn.LogSoftmax)


def _over_axis(b: Builder, a: Attributes, x: fx.Node, kind: Any) -> fx.Node:
    rank = len(b.shape(x))
    axis = a.get("axis", -1 if b.opset >= 13 else 1) % rank
    if b.opset >= 13 or axis == rank - 1:
        return b.layer(kind(axis), x)
    return b.method("view_as", b.layer(kind(-1), b.call(torch.flatten, x, axis)), x)  # before opset 13: all that follow


@operator("Gelu")
def gelu(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return b.layer(nn.GELU(a.get("approximate", "none")), x)


@operator("Swish")
def swish(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    if a.get("alpha", 1.0) == 1:
        return b.layer(nn.SiLU(), x)
    return b.call(torch.mul, x, b.call(torch.sigmoid, b.call(torch.mul, x, a["alpha"])))


@operator("Selu")
def selu(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    alpha, gamma = a.get("alpha", 1.67326319217681884765625), a.get("gamma", 1.05070102214813232421875)
    return b.call(torch.mul, b.layer(nn.ELU(alpha), x), gamma)


ACTIVATIONS: dict[str, Callable[[Attributes], nn.Module]] = {
    "Relu": lambda a: nn.ReLU(),
    "Sigmoid": lambda a: nn.Sigmoid(),
    "Tanh": lambda a: nn.Tanh(),
    "HardSwish": lambda a: nn.Hardswish(),
    "LeakyRelu": lambda a: nn.LeakyReLU(a.get("alpha", 0.01)),
    "Elu": lambda a: nn.ELU(a.get("alpha", 1.0)),
    "Celu": lambda a: nn.CELU(a.get("alpha", 1.0)),
    "ThresholdedRelu": lambda a: nn.Threshold(a.get("alpha", 1.0), 0.0),
    "Softplus": lambda a: nn.Softplus(),
    "Softsign": lambda a: nn.Softsign(),
    "Mish": lambda a: nn.Mish(),
}


@operator(*ACTIVATIONS)
def activation(b: Builder, a: Attributes, x: fx.Node) -> fx.Node:
    return b.layer(ACTIVATIONS[b.node.op_type](a), x)
