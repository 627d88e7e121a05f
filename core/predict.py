"""Recipe → parameters, MACs and bytes of every layer, at once and exactly, from the profile alone: no tensor, no run.

Each step changes a small model of the network (the widths of its channel groups, its layers, their zeros and bits) just
as the technique changes the real one; the rules are shared (`width_after`, `ranks`), so the sums are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from core.layers import Feed, Group, Layer, Profile, dial_for, width_after
from core.ranks import ANSWER, Shape, factors, refusal
from core.recipe import Recipe, Step


@dataclass(frozen=True)
class LayerCost:
    """One layer of the original; where it was split, the sum of its factors."""

    name: str
    params: int
    macs: int
    weight_bytes: int
    in_channels: int
    out_channels: int
    note: str = ""  # why a step left the layer as it was, as a sentence
    nonzero: int = 0  # parameters that are not pruned to zero


@dataclass(frozen=True)
class Costs:
    """Totals equal the sums of the rows. `weight_bytes` are the stored parameters, not the whole file."""

    params: int
    macs: int
    weight_bytes: int
    nonzero: int
    exact: bool  # False where a step ranks the whole network, so that only a run knows each layer's share
    layers: tuple[LayerCost, ...]


def costs(profile: Profile, recipe: Recipe) -> Costs:
    """What the recipe leaves of the model. Exact unless `exact` says otherwise."""
    net = network_after(profile, recipe)
    rows = tuple(net.cost(layer.name) for layer in profile.layers)
    params, macs, size, nonzero = (
        sum(getattr(r, k) for r in rows) for k in ("params", "macs", "weight_bytes", "nonzero")
    )
    return Costs(params, macs, size, nonzero, net.exact, rows)


def network_after(profile: Profile, recipe: Recipe) -> Network:
    """The network as the recipe's steps leave it."""
    net = Network(profile)
    for step in recipe.active:
        if step.technique in STEPS:
            STEPS[step.technique](net, step)
    return net


class _Size(NamedTuple):
    """Of one layer or factor at the present widths."""

    into: int  # input channels
    out: int
    weights: int
    params: int
    macs: int


class Network:
    """The network as the steps so far have left it. `parts` maps an original layer's name to what stands there now."""

    def __init__(self, profile: Profile) -> None:
        self.parts: dict[str, list[Layer]] = {layer.name: [layer] for layer in profile.layers}
        self.groups: dict[str, Group] = {group.name: group for group in profile.groups}
        self.width: dict[str, int] = {group.name: group.channels for group in profile.groups}
        self.zeros: dict[str, tuple[int, int]] = {}  # layer or factor → (zeros, of so many weights at that time)
        self.bits: dict[str, int] = {}  # layer or factor → 3 to 8 or 16 where not 32
        self.gone: set[str] = set()  # layers and factors that disappeared
        self.notes: dict[str, str] = {}
        self.exact = True

    @property
    def layers(self) -> list[Layer]:
        return [part for parts in self.parts.values() for part in parts]

    def channels(self, layer: Layer) -> tuple[int, int]:
        """Input and output channels now."""
        into = layer.in_channels
        if layer.inputs:
            into = 0
            for feed in layer.inputs:
                into += self.width[feed.group] * feed.repeat
        if layer.group in self.width:
            return into, self.width[layer.group]
        return into, into if layer.kind in ("norm", "depthwise") and layer.inputs else layer.out_channels

    def size(self, layer: Layer) -> _Size:
        """What the layer is now. Weights are without biases, and 0 where it is no convolution and not linear."""
        if layer.name in self.gone:
            return _Size(0, 0, 0, 0, 0)
        into, out = self.channels(layer)
        if layer.kind in ("norm", "other"):
            follows = layer.out_channels and (layer.group in self.width or layer.kind == "norm")
            params = layer.params * out // layer.out_channels if follows else layer.params
            return _Size(into, out, 0, params, layer.macs)
        if layer.kind == "shortcut":  # a copy costs nothing; once cut it is a 1×1 convolution
            weights = 0 if (into, out) == (layer.in_channels, layer.out_channels) else into * out
            return _Size(into, out, weights, weights, weights * layer.output_shape[1] * layer.output_shape[2])
        groups = out if layer.kind == "depthwise" else layer.groups
        weights = into // groups * out * layer.kernel[0] * layer.kernel[1]
        macs = layer.macs * weights // (layer.params - layer.bias * layer.out_channels)
        return _Size(into, out, weights, weights + layer.bias * out, macs)

    def zeros_in(self, layer: Layer, weights: int) -> int:
        """Where channels went after the zeros came, only their share is known."""
        zeros, of = self.zeros.get(layer.name, (0, weights))
        self.exact &= weights == of
        return zeros if weights == of else round(zeros * weights / of)

    def bytes_of(self, layer: Layer, size: _Size) -> int:
        """Integer weights come with a float scale for each channel; biases and norms take four bytes all the same."""
        bits = self.bits.get(layer.name, 32)
        if bits <= 8 and size.weights:
            packed = -(-size.weights * bits // 8) if bits in (4, 8) else bits * -(-size.weights // 8)  # types or planes
            return packed + 4 * (size.params - size.weights) + 4 * size.out
        return 2 * size.params if bits == 16 else 4 * size.params

    def cost(self, name: str) -> LayerCost:
        params = macs = stored = zeros = 0
        sizes = [self.size(part) for part in self.parts[name]]
        for part, size in zip(self.parts[name], sizes, strict=True):
            params += size.params
            macs += size.macs
            stored += self.bytes_of(part, size)
            zeros += self.zeros_in(part, size.weights)
        into, out, note = sizes[0].into, sizes[-1].out, self.notes.get(name, "")
        return LayerCost(name, params, macs, stored, into, out, note, params - zeros)


def _prune_channels(net: Network, step: Step) -> None:
    options = step.record
    normed = {feed.group for layer in net.layers if layer.kind == "norm" for feed in layer.inputs}
    for name, group in net.groups.items():
        ratio = dial_for(step.layers, name, options.ratio)
        if group.blocked and ratio > 0:
            net.notes |= dict.fromkeys(group.layers, group.blocked)
            continue
        width = width_after(group, net.width[name], ratio, options.multiple)
        if not width or options.criterion != "bn_scale" or name in normed:
            net.width[name] = width
            net.gone |= {
                part.name for layer in group.branch if not net.width[name] for part in net.parts.get(layer, ())
            }
    net.exact &= options.scope == "layer" or options.ratio == 0


def _prune_weights(net: Network, step: Step) -> None:
    options = step.record
    for layer in net.layers:
        into, _, weights, _, _ = net.size(layer)
        sparsity = dial_for(step.layers, layer.name, options.sparsity)
        if not weights or sparsity <= 0 or layer.kind == "shortcut":
            continue
        zeros = round(sparsity * weights)
        if options.pattern != "any":
            keep, block = map(int, options.pattern.split(":"))
            across = 1 if layer.kind == "depthwise" else into // layer.groups
            fits = layer.kind != "conv_transpose" and across % block == 0
            zeros = weights // block * (block - keep) if fits else 0
        net.zeros[layer.name] = (max(zeros, net.zeros_in(layer, weights)), weights)


def _factorize(net: Network, step: Step) -> None:
    options = step.record
    last = next((x.name for x in reversed(net.layers) if x.kind not in ("shortcut", "norm", "other")), "")
    for origin, parts in net.parts.items():
        found = []
        for layer in parts:
            own = dial_for(step.layers, layer.name, None)
            rank = options.rank if own is None else own
            if layer.name == last and own is None and layer.kind == "linear" and rank < 1:
                net.notes[origin] = ANSWER
                rank = 1.0
            found += [layer] if rank >= 1 else _split(net, origin, layer, options.method, rank)
        net.parts[origin] = found


def _split(net: Network, origin: str, layer: Layer, method: str, rank: float) -> list[Layer]:
    if layer.kind in ("shortcut", "norm", "other") or layer.name in net.gone:
        return [layer]
    shape = shape_of(layer, *net.channels(layer))
    reason = refusal(shape, method, rank)
    if reason:
        net.notes[origin] = reason
        return [layer]
    pieces, feeds, found = factors(shape, method, rank), layer.inputs, []
    for i, piece in enumerate(pieces):
        name, last = f"{layer.name}.{i}", i == len(pieces) - 1
        if not last:
            net.groups[name] = Group(name, piece.out_channels, (name,))
            net.width[name] = piece.out_channels
        found.append(
            replace(
                layer,
                name=name,
                params=piece.params,
                macs=piece.macs,
                in_channels=piece.in_channels,
                out_channels=piece.out_channels,
                kernel=piece.kernel,
                bias=piece.bias,
                group=layer.group if last else name,
                inputs=feeds,
                input_shape=(piece.in_channels, *piece.in_size),
                output_shape=(piece.out_channels, *piece.out_size),
            )
        )
        feeds = (Feed(name),)
    return found


def shape_of(layer: Layer, in_channels: int, out_channels: int) -> Shape:
    """A layer at the widths that earlier steps left, as `core.ranks` takes it."""
    kernel, groups = layer.kernel, out_channels if layer.kind == "depthwise" else layer.groups
    if layer.kind == "linear":
        weights = layer.params - layer.bias * layer.out_channels
        pixels = (layer.macs // weights, 1)
        return Shape("linear", in_channels, out_channels, out_size=pixels, bias=layer.bias)
    before, after = layer.input_shape[-2:], layer.output_shape[-2:]
    return Shape(layer.kind, in_channels, out_channels, kernel, groups, before, after, layer.bias)  # type: ignore[arg-type]


def _quantize(net: Network, step: Step) -> None:
    options = step.record
    for layer in net.layers:
        if dial_for(step.layers, layer.name, options.bits) == 8:
            net.bits[layer.name] = 16 if options.mode == "float16" else 8


def _quantize_weights(net: Network, step: Step) -> None:
    for layer in net.layers:
        if layer.kind in ("conv", "depthwise", "linear", "shortcut"):
            net.bits[layer.name] = dial_for(step.layers, layer.name, step.record.bits)


STEPS: dict[str, Callable[[Network, Step], None]] = {
    "prune_channels": _prune_channels,
    "prune_weights": _prune_weights,
    "factorize": _factorize,
    "quantize": _quantize,
    "quantize_weights": _quantize_weights,
}  # distill changes no size
