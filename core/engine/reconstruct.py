"""Closed-form repair: after a network was changed, each layer is solved again so that it gives what it used to give.

Original and changed network run side by side, operator by operator. A layer of the changed one sees the inputs that the
already repaired layers before it produce, and its target is the original's output there (the kept channels of it).
Where that output goes straight into a sum, as at the end of a residual block, the target is the original's sum less the
other summand of the changed network, so a block also makes up for what its shortcut lost. No labels, no training.

Channel Pruning for Accelerating Very Deep Neural Networks, He et al. 2017, sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor, fx, nn

from core.cards import ModelCard
from core.engine.counterparts import Unit, find_units, touched_nodes
from core.engine.data import Images, to_tensor
from core.engine.least_squares import ROWS, Normal, as_matrix, as_weight, best_change, patches, values
from core.engine.stream import Stream, trace
from core.engine.surgery import kind_of
from core.engine.zeros import surviving
from core.errors import ModelError

BATCH = 32
MEMORY_BYTES = 1 << 30  # of activations kept at once; a larger network is repaired with fewer images
FAINT = 1e-3  # of the largest BatchNorm scale: a channel below it does not matter, and dividing by it would
Report = Callable[..., None]
Settle = Callable[[str, nn.Conv2d | nn.Linear, Tensor], None]


@torch.no_grad()
def repair(
    changed: nn.Module,
    original: nn.Module,
    images: Images,
    card: ModelCard,
    kept: Mapping[str, Sequence[int]] | None = None,
    report: Report = lambda *_, **__: None,
    settle: Settle | None = None,
) -> str:
    """Solve every layer of `changed` from the first change on, in place. Returns why it could not, "" when it did.

    `kept` says which output channels pruning left: layer → their numbers in `original`; layers that kept all may be
    absent. Zeros of pruned weights stay zero. `images` need no labels; a few hundred suffice.
    `settle(name, layer, covariance)` may change each layer's solved weight, as rounding does; the layers behind then
    make up for it, and every layer is solved. The covariance is that of `patches`, (groups, d, d).
    """
    if len(images) < 2:
        return f"Not repaired: received {len(images)} calibration images, accepted are 2 or more."
    try:
        graph, reference = trace(changed.eval()), trace(original.eval())
    except ModelError as error:
        return f"Not repaired: {error}."
    units = find_units(changed, graph, original, reference)
    touched = touched_nodes(changed, graph, original, reference)
    batches = _batches(original, reference, images, card)
    goals = Stream(original, reference, batches, [unit.goal for unit in units.values()])

    def before(node: fx.Node) -> None:
        if node in units:
            goal = goals.take(units[node].goal)
            if settle is not None or node in touched or units[node].other in touched:
                report(len(stream.done) / len(stream.uses), f"Repairing {units[node].name}")
                _repair_unit(units[node], stream, goal, (kept or {}).get(units[node].name), settle)

    stream = Stream(changed, graph, batches, before=before)
    stream.run()
    return ""


def _batches(module: nn.Module, graph: fx.Graph, images: Images, card: ModelCard) -> list[Tensor]:
    """At least two batches of as many images as memory allows, spread over all of them."""
    probe, largest = Stream(module, graph, [to_tensor(images.x[:1], card)]), 1
    for node in graph.nodes:
        probe.compute(node)
        largest = max(largest, probe.nbytes)
    count = min(len(images), max(2, MEMORY_BYTES // (3 * largest)))
    x = to_tensor(images.x[np.linspace(0, len(images) - 1, count).round().astype(np.int64)], card)
    return list(x.tensor_split(max(2, math.ceil(count / BATCH))))


def _repair_unit(
    unit: Unit, stream: Stream, goal: list[Tensor], kept: Sequence[int] | None, settle: Settle | None
) -> None:
    """Solve one layer on what it reads in `stream` for `goal`; both hold a tensor for each batch."""
    inputs = stream.compute(unit.node.all_input_nodes[0])
    others = None if unit.other is None else stream.compute(unit.other)
    layer, scale, bias, chance = unit.layer, _scale(unit), _bias(unit), torch.Generator().manual_seed(0)

    def normal(i: int) -> Normal:
        wanted = goal[i] if kept is None else goal[i][:, kept]
        wanted = values(layer, wanted if others is None else wanted - others[i])
        rows = torch.randperm(len(wanted), generator=chance)[: math.ceil(ROWS * layer.weight[0].numel() / len(goal))]
        u = patches(layer, inputs[i], rows)
        r = (wanted[rows] - _output(unit, u)) * (scale != 0).reshape(wanted.shape[1:])
        return Normal.of(u, r, shifts=bias is not None)

    halves = [reduce(operator.add, map(normal, range(start, len(goal), 2))) for start in (0, 1)]
    free = None if kind_of(layer) == "shortcut" else surviving(layer.weight)
    free = None if free is None else as_matrix(layer, free)
    whole, old, wide = halves[0] + halves[1], layer.weight.clone(), scale.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.weight += as_weight(layer, best_change(halves[0], halves[1], free)) / torch.where(wide == 0, 1.0, wide)
    if settle is not None:
        settle(unit.name, layer, whole.centred()[0])
    if bias is not None:
        bias += whole.shift(as_matrix(layer, (layer.weight.double() - old) * wide)).flatten()


def _output(unit: Unit, u: Tensor) -> Tensor:
    """What a layer and its norm give for `patches` u, in the order of `values`."""
    y = (u.transpose(0, 1) @ as_matrix(unit.layer, unit.layer.weight)).transpose(0, 1)
    if unit.layer.bias is not None:
        y = y + unit.layer.bias.reshape(y.shape[1:])
    if unit.norm is None:
        return y
    flat = y.reshape(len(y), -1, *[1] * (unit.layer.weight.ndim - 2))
    normed: Tensor = unit.norm(flat)
    return normed.reshape(y.shape)


def _scale(unit: Unit) -> Tensor:
    """What the norm multiplies each output channel by, (c_out,); 0 where it is too faint to divide by."""
    if unit.norm is None:
        return torch.ones(len(unit.layer.weight))
    assert unit.norm.running_var is not None
    scale = (unit.norm.running_var + unit.norm.eps).rsqrt()
    scale = scale if unit.norm.weight is None else unit.norm.weight * scale
    return torch.where(scale.abs() > FAINT * scale.abs().max(), scale, 0.0)


def _bias(unit: Unit) -> Tensor | None:
    """The last thing that is added to each output channel, (c_out,)."""
    return unit.layer.bias if unit.norm is None else unit.norm.bias
