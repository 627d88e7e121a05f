"""Recipe → parameters, MACs and bytes of every layer, at once and exactly, from the profile alone: no tensor, no run.

Each step changes a small model of the network (the widths of its channel groups, its layers, their zeros and bits) just
as the technique changes the real one; the rules are shared (`width_after`, `ranks`), so the sums are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.layers import Feed, Group, Layer, Profile, dial_for, width_after
from core.memory import peak_after
from core.network import LayerCost, Network
from core.ranks import ANSWER, Shape, factors, refusal
from core.recipe import Recipe, Step


@dataclass(frozen=True)
class Costs:
    """Totals equal the sums of the rows. `weight_bytes` are the stored parameters, not the whole file."""

    params: int
    macs: int
    weight_bytes: int
    nonzero: int
    exact: bool  # False where a step ranks the whole network, so that only a run knows each layer's share
    layers: tuple[LayerCost, ...]
    peak_bytes: int | None = None  # of activations, at once; None where only a run can tell
    peak_exact: bool = True  # False in int8


def costs(profile: Profile, recipe: Recipe) -> Costs:
    """What the recipe leaves of the model. Exact unless `exact` says otherwise."""
    net = network_after(profile, recipe)
    rows = tuple(net.cost(layer.name) for layer in profile.layers)
    params, macs, size, nonzero = (
        sum(getattr(r, k) for r in rows) for k in ("params", "macs", "weight_bytes", "nonzero")
    )
    peak = peak_after(profile.operators, net)
    return Costs(params, macs, size, nonzero, net.exact, rows, peak, net.exact and not net.integer)


def network_after(profile: Profile, recipe: Recipe) -> Network:
    """The network as the recipe's steps leave it."""
    net = Network(profile)
    for step in recipe.active:
        if step.technique in STEPS:
            STEPS[step.technique](net, step)
    return net


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
    net.exact &= options.ranks == "share"
    last = next((x.name for x in reversed(net.layers) if x.kind not in ("shortcut", "norm", "other")), "")
    for origin, parts in net.parts.items():
        found = []
        for layer in parts:
            own = dial_for(step.layers, layer.name, None)
            rank = options.rank if own is None else own
            if layer.name == last and own is None and layer.kind == "linear" and rank < 1:
                net.notes[origin] = ANSWER
                rank = 1.0
            found += [layer] if rank >= 1 else split_layer(net, origin, layer, options.method, rank)
        net.parts[origin] = found


def split_layer(net: Network, origin: str, layer: Layer, method: str, rank: float) -> list[Layer]:
    """The factors that stand in a layer's place, their groups added; the layer where it stays whole, with a note."""
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
        group = layer.group if last else feeds[0].group if piece.kind == "depthwise" else name
        if group == name:
            net.groups[name] = Group(name, piece.out_channels, (name,))
            net.width[name] = piece.out_channels
        found.append(
            replace(
                layer,
                name=name,
                kind=piece.kind,
                groups=piece.groups,
                params=piece.params,
                macs=piece.macs,
                in_channels=piece.in_channels,
                out_channels=piece.out_channels,
                kernel=piece.kernel,
                bias=piece.bias,
                group=group,
                inputs=feeds,
                input_shape=(piece.in_channels, *piece.in_size),
                output_shape=(piece.out_channels, *piece.out_size),
            )
        )
        feeds = (Feed(group),)
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
            net.peak_known &= options.mode == "int8"
            net.integer.add(layer.name)
    net.exact &= options.agreement == 0 or options.mode != "int8"


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
