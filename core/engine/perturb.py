"""What one setting does to the weights, without building the smaller network.

Removing channels equals zeroing the weights with which their consumers read them, whatever lies between: activation,
normalization or a residual sum. So every technique replaces weights in place and the network keeps its shape.

What repair will leave of that is foreseen by solving each consumer alone, on what it reads in the whole network; the
technique itself solves one layer after the other on the narrowed one (`core/engine/reconstruct.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.context import Context, Report, silent
from core.engine.data import Images, to_tensor
from core.engine.graph import trace
from core.engine.least_squares import SINGLE, Normal, as_matrix, as_weight, observe, solve
from core.engine.low_rank import split_matrix
from core.engine.progress import stages
from core.engine.techniques.factorize import measure_moments
from core.engine.techniques.prune_channels import score
from core.layers import Layer, Profile, width_after
from core.ranks import linear_rank, spatial_rank
from core.sensitivity_table import Plan

Weights = dict[str, Tensor]  # layer → its new weight
BATCH = 32
RIDGE = 1e-4  # few rows are observed of what is only forecast
ORDER = ("factorize", "prune_channels", "prune_weights", "quantize")


@dataclass(frozen=True)
class Network:
    """A module with what the techniques decide by: each channel's importance, each layer's factors at full rank."""

    module: nn.Module
    profile: Profile
    importance: Mapping[str, NDArray[np.float64]]  # open group → (channels,)
    factors: Mapping[str, tuple[Tensor, Tensor]]  # conv or linear layer → (n, r), (r, m), best rank first
    reads: Mapping[str, Normal] = field(default_factory=dict)  # consumer of an open group → sums over its inputs


def describe(module: nn.Module, card: ModelCard, profile: Profile, images: Images, report: Report = silent) -> Network:
    """Importance by L2 norms and factors weighted by what `images` use: the defaults of the techniques themselves."""
    looking, reading, scoring = stages(report, [1.0, 1.0, 1.0])
    context = Context(card, images, images, images, False, None, report=looking)
    structure = trace(module, torch.zeros(1, *card.input_shape))
    parts = {x.name: module.get_submodule(x.name) for x in splittable(profile)}
    moments = measure_moments(module, parts, context)
    factors = {}
    for name in parts:
        matrix = to_matrix(weight_of(module, name)).double()
        factors[name] = split_matrix(matrix, min(matrix.shape), moments.get(name))
    readers = {layer.name for group in structure.open for layer in consumers(profile, group.name)}
    batches = [to_tensor(images.x[i : i + BATCH], card) for i in range(0, len(images), BATCH)]
    reads = observe(module, readers, batches, reading)
    importance = score(module, structure, list(structure.open), "l2", replace(context, report=scoring))
    return Network(module, profile, importance, factors, reads)


def splittable(profile: Profile) -> list[Layer]:
    """The layers that factorization can act on."""
    return [x for x in profile.tunable if x.kind in ("conv", "linear") and x.groups == 1]


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """The weight of the layer at this path."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def least_important(network: Network, group: str, ratio: float) -> Tensor:
    """Indices of the channels that a group loses."""
    importance = network.importance[group]
    removed = len(importance) - width_after(network.profile.group(group), len(importance), ratio, 1)
    return torch.from_numpy(np.argsort(importance, kind="stable")[:removed])


def remove_channels(weight: Tensor, layer: Layer, profile: Profile, group: str, removed: Tensor) -> Tensor:
    """The weight of a consumer that no longer reads the `removed` channels of a group."""
    parts = []
    for feed in layer.inputs:  # in the order in which they are concatenated
        part = torch.zeros(profile.group(feed.group).channels, feed.repeat, dtype=torch.bool)
        if feed.group == group:
            part[removed] = True
        parts.append(part.flatten())
    dead = torch.cat(parts)
    if layer.kind == "conv_transpose":  # (c_in, c_out / groups, kh, kw)
        return weight.masked_fill(dead.view(-1, 1, 1, 1), 0.0)
    rows = dead.view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
    return weight.masked_fill(rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)), 0.0)


def repair(network: Network, group: str, ratio: float) -> tuple[Weights, Weights]:
    """(weights, biases) of the consumers of a group that lost channels, each solved so that it gives what it gave.

    A consumer of which nothing was observed loses the channels and stays as it is.
    """
    module, removed = network.module, least_important(network, group, ratio)
    weights, biases = Weights(), Weights()
    for layer in consumers(network.profile, group):
        part, before = module.get_submodule(layer.name), weight_of(module, layer.name)
        weights[layer.name] = remove_channels(before, layer, network.profile, group, removed)
        known = network.reads.get(layer.name)
        if known is None:
            continue
        assert isinstance(part, nn.Conv2d | nn.Linear)
        lost = as_matrix(part, (before - weights[layer.name]).double())  # (1, d, o)
        kept = (remove_channels(torch.ones_like(before), layer, network.profile, group, removed)[0] > 0).flatten()
        left = Normal(
            known.count,
            known.u[:, kept],
            known.u @ lost[0],
            known.uu[:, kept][:, :, kept],
            known.uu[:, kept] @ lost,
        )
        change = solve(left, RIDGE, precision=SINGLE) if bool(kept.any()) else left.ur
        matrix = as_matrix(part, weights[layer.name]).clone()
        matrix[:, kept] += change.float()
        weights[layer.name] = as_weight(part, matrix)
        if part.bias is not None:
            biases[layer.name] = part.bias.detach() + left.shift(change).flatten().float()
    return weights, biases


def sparsify(weight: Tensor, sparsity: float) -> Tensor:
    """The share `sparsity` of smallest magnitudes set to zero."""
    count = round(sparsity * weight.numel())
    if count == 0:
        return weight
    smallest = weight.abs().flatten().topk(count, largest=False, sorted=False).indices
    return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)


def to_matrix(weight: Tensor) -> Tensor:
    """As it is factorized: (c_in, c_out) of a linear layer, (c_in · kh, c_out · kw) of a convolution."""
    if weight.ndim == 2:
        return weight.T
    return weight.permute(1, 2, 0, 3).reshape(weight.shape[1] * weight.shape[2], -1)


def reconstruct(network: Network, layer: str, rank: float) -> Tensor:
    """The weight that the layer's factors give back when the share `rank` of them is kept."""
    weight = weight_of(network.module, layer)
    c_out, c_in = weight.shape[:2]
    kernel = (weight.shape[2], weight.shape[3]) if weight.ndim == 4 else None
    kept = spatial_rank(rank, kernel, c_in, c_out) if kernel else linear_rank(rank, c_in, c_out)
    left, right = network.factors[layer]
    low = (left[:, :kept] @ right[:kept]).to(weight.dtype)
    if kernel is None:
        return low.T.contiguous()
    return low.view(c_in, kernel[0], c_out, kernel[1]).permute(2, 0, 1, 3).contiguous()


def fake_quantize(weight: Tensor, bits: float) -> Tensor:
    """Rounded to a symmetric grid of `bits` bits per output channel (axis 0); values stay float."""
    top = 2 ** (int(bits) - 1) - 1
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / top
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    rounded: Tensor = (weight / scale).round().clamp(-top, top) * scale
    return rounded


def perturb(network: Network, plan: Plan) -> Weights:
    """The weights that differ once every setting of `plan` is applied, technique by technique in fixed order."""
    module, profile, changed = network.module, network.profile, Weights()
    for technique in ORDER:
        for (name, key), level in plan.items():
            if key != technique:
                continue
            if technique == "factorize":
                changed[name] = reconstruct(network, name, level)
            elif technique == "prune_channels":
                removed = least_important(network, name, level)
                for layer in consumers(profile, name):
                    before = changed.get(layer.name, weight_of(module, layer.name))
                    changed[layer.name] = remove_channels(before, layer, profile, name, removed)
            else:
                change = sparsify if technique == "prune_weights" else fake_quantize
                changed[name] = change(changed.get(name, weight_of(module, name)), level)
    return changed


def consumers(profile: Profile, group: str) -> list[Layer]:
    """The layers that read a group's channels into other channels; a depthwise layer only passes them on."""
    return [
        x
        for x in profile.layers
        if x.kind not in ("norm", "other", "depthwise") and any(feed.group == group for feed in x.inputs)
    ]


@contextmanager
def swapped(module: nn.Module, weights: Weights, biases: Weights | None = None) -> Iterator[None]:
    """The module with these weights (and biases) in place of its own, for the length of the block."""
    new = [(name, "weight", value) for name, value in weights.items()]
    new += [(name, "bias", value) for name, value in (biases or {}).items()]
    places = [(module.get_submodule(name), kind) for name, kind, _ in new]
    kept = [getattr(part, kind).data for part, kind in places]
    try:
        for (part, kind), (_, _, value) in zip(places, new, strict=True):
            getattr(part, kind).data = value
        yield
    finally:
        for (part, kind), value in zip(places, kept, strict=True):
            getattr(part, kind).data = value
