"""Factorization: a layer becomes two or three thinner ones whose product is its best low-rank approximation.

    linear       c_in → r, r → c_out                                           SVD
    spatial_svd  c_in → r (kh × 1), r → c_out (1 × kw)                         Jaderberg et al. 2014, scheme 2
    tucker2      c_in → r_in (1 × 1), r_in → r_out (kh × kw), r_out → c_out (1 × 1)   Kim et al. 2016: HOSVD, HOOI

With calibration images the two SVDs keep what matters for the layer's *output*: the weight is multiplied by the square
root of its inputs' second moment before the SVD and divided by it after (Zhang et al. 2016, Accelerating Very Deep
Convolutional Networks). The factors of `a.conv` are `a.conv.0`, `a.conv.1`, …; the last one carries the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.reconstruct import repair
from core.engine.surgery import copy_model, kind_of
from core.layers import dial_for
from core.options import Factorize
from core.ranks import ANSWER, Shape, linear_rank, refusal, spatial_rank, tucker_ranks

IMAGES, BATCH = 128, 32  # calibration images looked at, and how many at once
SWEEPS = 2  # of higher-order orthogonal iteration
WIDEST = 4608  # inputs of a layer whose second moment is measured (170 MB in float64); wider ones get the plain SVD
FLOOR = 1e-6  # of the mean eigenvalue: directions that the images never use are not divided by zero


def split_matrix(matrix: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(n, m) float64 → (n, rank) and (rank, m) whose product is nearest to it, each with half of the scale.

    Nearest for inputs u of second moment E[u uᵀ] = `moment` (n, n), or in the Frobenius norm.
    """
    if moment is None:
        root = inverse = None
    else:
        values, vectors = torch.linalg.eigh(moment)
        values = values.clamp(min=max(FLOOR * float(values.mean()), torch.finfo(torch.float64).tiny)).sqrt()
        root, inverse = vectors * values @ vectors.T, vectors / values @ vectors.T
    u, s, v = torch.linalg.svd(matrix if root is None else root @ matrix, full_matrices=False)
    half = s[:rank].sqrt()
    left, right = u[:, :rank] * half, half[:, None] * v[:rank]
    return left if inverse is None else inverse @ left, right


def split_tucker(weight: Tensor, r_in: int, r_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """(c_out, c_in, kh, kw) → outputs (c_out, r_out), core (r_out, r_in, kh, kw), inputs (c_in, r_in), orthonormal."""
    inputs = _leading(weight.movedim(1, 0), r_in)
    outputs = _leading(weight, r_out)
    for _ in range(SWEEPS):
        outputs = _leading(torch.einsum("oihw,ir->orhw", weight, inputs), r_out)
        inputs = _leading(torch.einsum("oihw,or->irhw", weight, outputs), r_in)
    return outputs, torch.einsum("oihw,op,iq->pqhw", weight, outputs, inputs), inputs


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """The first left singular vectors of the unfolding along axis 0."""
    vectors: Tensor = torch.linalg.svd(tensor.flatten(1), full_matrices=False)[0]
    return vectors[:, :rank]


def _with_weight(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)  # type: ignore[operator]
        if bias is not None:
            layer.bias.copy_(bias)  # type: ignore[operator]
    return layer


def split_linear(layer: nn.Linear, rank: float, moment: Tensor | None = None) -> nn.Sequential:
    """`moment` is E[x xᵀ] of the layer's input, (c_in, c_in)."""
    r = linear_rank(rank, layer.in_features, layer.out_features)
    first, second = split_matrix(layer.weight.detach().double().T, r, moment)
    return nn.Sequential(
        _with_weight(nn.Linear(layer.in_features, r, bias=False), first.T),
        _with_weight(nn.Linear(r, layer.out_features, bias=layer.bias is not None), second.T, layer.bias),
    )


def _part(layer: nn.Conv2d, c_in: int, c_out: int, axes: tuple[bool, bool], bias: bool = False) -> nn.Conv2d:
    """A convolution with the layer's kernel, stride, padding and dilation along the chosen axes, 1 elsewhere."""

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
        return values[0] if axes[0] else neutral, values[1] if axes[1] else neutral

    padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
    return nn.Conv2d(
        c_in,
        c_out,
        along(layer.kernel_size, 1),
        along(layer.stride, 1),
        padding,
        along(layer.dilation, 1),
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def split_spatial(layer: nn.Conv2d, rank: float, moment: Tensor | None = None) -> nn.Sequential:
    """`moment` is E[u uᵀ] of the layer's (kh × 1) input columns, channel by channel: (c_in · kh, c_in · kh)."""
    c_out, c_in, kh, kw = layer.weight.shape
    r = spatial_rank(rank, (kh, kw), c_in, c_out)
    matrix = layer.weight.detach().double().permute(1, 2, 0, 3).reshape(c_in * kh, c_out * kw)
    first, second = split_matrix(matrix, r, moment)
    return nn.Sequential(
        _with_weight(_part(layer, c_in, r, (True, False)), first.T.reshape(r, c_in, kh, 1)),
        _with_weight(
            _part(layer, r, c_out, (False, True), layer.bias is not None),
            second.reshape(r, c_out, 1, kw).transpose(0, 1),
            layer.bias,
        ),
    )


def split_conv_tucker(layer: nn.Conv2d, rank: float) -> nn.Sequential:
    c_out, c_in, kh, kw = layer.weight.shape
    r_in, r_out = tucker_ranks(rank, (kh, kw), c_in, c_out)
    outputs, core, inputs = split_tucker(layer.weight.detach().double(), r_in, r_out)
    return nn.Sequential(
        _with_weight(nn.Conv2d(c_in, r_in, 1, bias=False), inputs.T[:, :, None, None]),
        _with_weight(_part(layer, r_in, r_out, (True, True)), core),
        _with_weight(nn.Conv2d(r_out, c_out, 1, bias=layer.bias is not None), outputs[:, :, None, None], layer.bias),
    )


def _shape(layer: nn.Module, seen: tuple[int, ...], made: tuple[int, ...]) -> Shape:
    """`seen` and `made` are the shapes of the layer's input and output, batch axis first."""
    if isinstance(layer, nn.Linear):
        pixels = (int(torch.Size(made[1:-1]).numel()), 1)
        return Shape("linear", layer.in_features, layer.out_features, out_size=pixels, bias=layer.bias is not None)
    if not isinstance(layer, nn.Conv2d):
        return Shape(type(layer).__name__, 0, 0)
    c_in, kh, kw = layer.in_channels, *layer.kernel_size
    kind = "depthwise" if layer.groups == c_in > 1 else "conv"
    sizes = (seen[2], seen[3]), (made[2], made[3])
    return Shape(kind, c_in, layer.out_channels, (kh, kw), layer.groups, *sizes, layer.bias is not None)


def _observe(model: nn.Module, parts: Mapping[str, nn.Module], x: Tensor, hook: Callable[..., None]) -> None:
    """Run the model on x (n, c, h, w); `hook(name, layer, input, output)` at every part."""
    handles = [
        part.register_forward_hook(lambda layer, inputs, output, name=name: hook(name, layer, inputs[0], output))
        for name, part in parts.items()
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs of the first factor as rows: (rows, c_in) or (rows, c_in · kh)."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    (kh, _), (stride, _), (dilation, _) = layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer.padding, str):
        pad = dilation * (kh - 1) // 2 if layer.padding == "same" else 0
    else:
        pad = int(layer.padding[0])
    patches = F.unfold(x, (kh, 1), (dilation, 1), (pad, 0), (stride, 1))  # (n, c_in · kh, places)
    return patches.transpose(1, 2).flatten(0, 1)


def measure_moments(model: nn.Module, parts: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
    """Layer name → E[u uᵀ] of its first factor's inputs up to scale, float64; empty without calibration images."""
    sums: dict[str, Tensor] = {}
    images = context.calibration.take(slice(0, IMAGES))

    def add(name: str, layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = _columns(layer, x).double()
        if rows.shape[1] <= WIDEST:
            sums[name] = sums.get(name, 0) + rows.T @ rows / len(rows)

    for start in range(0, len(images), BATCH):
        context.report(start / len(images), "Measuring what each layer sees")
        _observe(model, parts, to_tensor(images.x[start : start + BATCH], context.card), add)
    return sums


def split(layer: nn.Module, method: str, rank: float, moment: Tensor | None) -> nn.Sequential:
    """The factors of a Linear or ungrouped Conv2d, in execution order, on its device and in its type."""
    if isinstance(layer, nn.Linear):
        factors = split_linear(layer, rank, moment)
    elif method == "spatial_svd":
        factors = split_spatial(layer, rank, moment)  # type: ignore[arg-type]
    else:
        factors = split_conv_tucker(layer, rank)  # type: ignore[arg-type]
    weight = next(layer.parameters())
    return factors.to(weight.device, weight.dtype).train(layer.training)


def apply(model: nn.Module, options: Factorize, layers: Mapping[str, float], context: Context) -> Outcome:
    """Replace layers of `model` in place. Returns as skipped what would not become smaller, with the reason."""
    before = copy_model(model.eval())
    parts = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd) and kind_of(m) != "shortcut"}
    ranks = {name: rank for name in parts if (rank := dial_for(layers, name, options.rank)) < 1}
    own = {name for name in parts if dial_for(layers, name, None) is not None}
    shapes: dict[str, Shape] = {}

    def note(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        shapes[name] = _shape(layer, tuple(x.shape), tuple(y.shape))

    _observe(model, parts, torch.zeros(1, *context.card.input_shape), note)
    reasons = {n: refusal(shape, options.method, ranks[n]) for n, shape in shapes.items() if n in ranks}
    last = next(reversed(shapes), "")
    if last in ranks and last not in own and isinstance(parts[last], nn.Linear):
        reasons[last] = ANSWER
    reasons |= {name: "Kept: the model never calls it." for name in ranks if name not in shapes}
    skipped = [Skip("factorize", name, reason) for name, reason in reasons.items() if reason]
    chosen = {name: parts[name] for name, reason in reasons.items() if not reason}
    weighted = {n: m for n, m in chosen.items() if isinstance(m, nn.Linear) or options.method == "spatial_svd"}
    moments = measure_moments(model, weighted, context) if options.weighted else {}
    for count, (name, layer) in enumerate(chosen.items()):
        context.report(count / len(chosen), f"Factorizing {name}")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, split(layer, options.method, ranks[name], moments.get(name)))
    if options.repair and chosen:
        reason = repair(model, before, context.calibration, context.card, report=context.report)
        skipped += [Skip("factorize", "repair", reason)] if reason else []
    return Outcome(model, tuple(skipped))
