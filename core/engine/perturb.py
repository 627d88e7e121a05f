"""What one setting does to the weights, without building the smaller network.

Removing channels equals zeroing the weights with which their consumers read them, whatever lies between: activation,
normalization or a residual sum. So every technique replaces weights in place and the network keeps its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.layers import Layer, Profile, kept_channels
from core.ranks import linear_rank, spatial_rank
from core.sensitivity_table import LEVELS, Plan

Weights = dict[str, Tensor]  # layer → its new weight
ORDER = tuple(LEVELS)  # structure first, numbers last


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """The weight of the layer at this path."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def least_important(module: nn.Module, profile: Profile, group: str, ratio: float) -> Tensor:
    """Indices of the channels a group loses: those whose filters have the smallest L2 norm, over all its layers."""
    members = [x for x in map(profile.layer, profile.group(group).layers) if x.kind not in ("norm", "other")]
    channels = profile.group(group).channels
    score = sum(weight_of(module, x.name).flatten(1).square().sum(1) for x in members)
    assert isinstance(score, Tensor)
    return score.argsort(stable=True)[: channels - kept_channels(channels, ratio, 1)]


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


def sparsify(weight: Tensor, sparsity: float) -> Tensor:
    """The share `sparsity` of smallest magnitudes set to zero."""
    count = round(sparsity * weight.numel())
    if count == 0:
        return weight
    smallest = weight.abs().flatten().argsort(stable=True)[:count]
    return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)


def reconstruct(weight: Tensor, rank: float) -> Tensor:
    """The weight that its truncated singular value decomposition gives back: plain for linear, spatial for conv."""
    if weight.ndim == 2:
        matrix, kept = weight, linear_rank(rank, weight.shape[1], weight.shape[0])
    else:
        c_out, c_in, kh, kw = weight.shape
        matrix = weight.permute(1, 2, 0, 3).reshape(c_in * kh, c_out * kw)
        kept = spatial_rank(rank, (kh, kw), c_in, c_out)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    low: Tensor = (u[:, :kept] * s[:kept]) @ v[:kept]
    return low if weight.ndim == 2 else low.view(c_in, kh, c_out, kw).permute(2, 0, 1, 3).contiguous()


def fake_quantize(weight: Tensor, bits: float) -> Tensor:
    """Rounded to a symmetric grid of `bits` bits per output channel (axis 0); values stay float."""
    top = 2 ** (int(bits) - 1) - 1
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12) / top
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    rounded: Tensor = (weight / scale).round().clamp(-top, top) * scale
    return rounded


def perturb(module: nn.Module, profile: Profile, plan: Plan) -> Weights:
    """The weights that differ once every setting of `plan` is applied, technique by technique in fixed order."""
    changed: Weights = {}
    for technique in ORDER:
        for (name, key), level in plan.items():
            if key != technique:
                continue
            if technique == "prune_channels":
                removed = least_important(module, profile, name, level)
                for layer in consumers(profile, name):
                    before = changed.get(layer.name, weight_of(module, layer.name))
                    changed[layer.name] = remove_channels(before, layer, profile, name, removed)
            else:
                change = {"prune_weights": sparsify, "factorize": reconstruct, "quantize": fake_quantize}[technique]
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
def swapped(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with these weights in place of its own, for the length of the block."""
    kept = {name: weight_of(module, name) for name in weights}
    try:
        for name, weight in weights.items():
            module.get_submodule(name).weight.data = weight
        yield
    finally:
        for name, weight in kept.items():
            module.get_submodule(name).weight.data = weight
