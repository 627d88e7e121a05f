"""Factorization: a layer becomes two to four thinner ones whose product is its best low-rank approximation.

The ways to split are in `core/engine/low_rank.py`. With calibration images the two SVDs keep what matters for the
layer's *output*: the weight is multiplied by the square root of its inputs' second moment before the SVD and divided by
it after (Zhang et al. 2016, Accelerating Very Deep Convolutional Networks). The factors of `a.conv` are `a.conv.0`,
`a.conv.1`, …; the last one carries the bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.least_squares import WIDEST
from core.engine.low_rank import bayesian_rank, split
from core.engine.reconstruct import repair
from core.engine.surgery import copy_model, kind_of, watch
from core.layers import dial_for
from core.options import Factorize
from core.ranks import ANSWER, Rank, Shape, refusal

IMAGES, BATCH = 128, 32  # calibration images looked at, and how many at once
NOISE = "Kept: EVBMF takes all of its weights for noise, so no rank is above it; give it a rank of its own."


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
        watch(model, parts, to_tensor(images.x[start : start + BATCH], context.card), add)
    return sums


def apply(model: nn.Module, options: Factorize, layers: Mapping[str, float], context: Context) -> Outcome:
    """Replace layers of `model` in place. Returns as skipped what would not become smaller, with the reason."""
    before = copy_model(model.eval())
    parts = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd) and kind_of(m) != "shortcut"}
    ranks: dict[str, Rank] = {n: rank for n in parts if (rank := dial_for(layers, n, options.rank)) < 1}
    own = {name for name in parts if dial_for(layers, name, None) is not None}
    shapes: dict[str, Shape] = {}

    def note(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        shapes[name] = _shape(layer, tuple(x.shape), tuple(y.shape))

    watch(model, parts, torch.zeros(1, *context.card.input_shape), note)
    if options.ranks == "evbmf":
        free = [
            n for n, s in shapes.items() if n in ranks.keys() - own and s.kind in ("conv", "linear") and s.groups == 1
        ]
        ranks |= {name: bayesian_rank(parts[name], options.method) for name in free}  # type: ignore[arg-type]
    reasons = {n: refusal(shape, options.method, ranks[n]) for n, shape in shapes.items() if n in ranks}
    reasons |= {name: NOISE for name, rank in ranks.items() if rank in (0, (0, 0))}
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
