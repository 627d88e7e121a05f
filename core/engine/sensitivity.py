"""Measure the sensitivity table: layer × technique × level, coarse to fine, each cell saved as it is measured.

Tier 0 (`rank_cells`): full empirical Fisher E[(gradient · change)²] (for its limits: Kunstner et al. 2019) and the
relative weight error. The gradient of each image is the product of a layer's input patches and its output gradient, so
one forward and one backward pass over all images serve every cell.

Tier 1 (`measure_cells`): KL divergence of the answers from the original's on the unlabelled images that tell most
(`core/engine/telling.py`), both softened by a temperature as in distillation (Hinton et al. 2015), the suffix alone run
again. Softened, a few doubtful images weigh less, and what several settings do together is nearer to the sum of what
each does alone. It stops when `report` raises Cancelled and goes on where it, or a killed process, stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.context import Report, silent
from core.engine.perturb import Network, consumers, perturb, repair, splittable, weight_of
from core.engine.replay import Replay
from core.engine.telling import answers, telling
from core.layers import Layer, Profile
from core.sensitivity_table import (
    LEVELS,
    Cell,
    Key,
    SensitivityTable,
    append_lines,
    read_lines,
    read_table,
    row_of,
)

MEMORY_BYTES = 1 << 30  # most that the kept activations may take; larger networks are measured on fewer images
SMALLEST_BATCH = 8
IMAGES, LEAST_IMAGES = 64, 16
LAYERS = 58  # a deeper network is measured on fewer images, so that time grows with its layers, not with their square
TEMPERATURE = 2.0  # that the answers are softened by
RANKED = 96  # images of tier 0; more rank no better
VERSION = 4  # of what a cell means: tables of another are measured anew
PATCHES = 16  # images whose unfolded patches are held at once: they stay in the cache


def settings(profile: Profile) -> list[tuple[Key, float]]:
    """Every ((layer or group, technique), level) worth measuring, coarse levels first."""
    found = []
    for turn in range(max(map(len, LEVELS.values()))):
        for technique, levels in LEVELS.items():
            if turn < len(levels):
                found += [((name, technique), levels[turn]) for name in rows_of(profile, technique)]
        if turn == 0:
            found += [
                ((g.name, "prune_channels"), 1.0) for g in profile.groups if g.branch and consumers(profile, g.name)
            ]
    return found


def rows_of(profile: Profile, technique: str) -> list[str]:
    """The layers, or for prune_channels the groups, that a technique can act on."""
    if technique == "prune_channels":
        return [g.name for g in profile.groups if not g.blocked and g.channels > 1 and consumers(profile, g.name)]
    return [x.name for x in (splittable(profile) if technique == "factorize" else profile.tunable)]


def rank_cells(network: Network, x: Tensor, y: Tensor | None) -> list[Cell]:
    """Tier 0 for every setting. Without labels `y` (n,) the model's own answers, drawn by its probabilities, stand in.

    x (n, c, h, w); RANKED images rank as well as more.
    """
    module, profile = network.module, network.profile
    changes: dict[str, list[tuple[int, Tensor]]] = {}  # layer → (cell, change of its weight)
    cells = settings(profile)
    energy = torch.zeros(len(cells), 2)  # squared change and squared weight
    for i, (key, level) in enumerate(cells):
        for name, weight in perturb(network, {key: level}).items():
            change = weight - weight_of(module, name)
            changes.setdefault(name, []).append((i, change))
            energy[i] += torch.stack([change.square().sum(), weight_of(module, name).square().sum()])
    moves = torch.zeros(len(x), len(cells))  # gradient · change, per image
    for name, gradient in _gradients(module, profile, x, y, changes):
        index, stack = zip(*changes[name], strict=True)
        moves[:, list(index)] += gradient @ torch.stack(stack).flatten(1).T
    fisher, error = moves.square().mean(0), energy[:, 0] / energy[:, 1].clamp_min(1e-30)
    return [
        Cell(layer, technique, level, fisher=float(fisher[i]), weight_error=float(error[i]))
        for i, ((layer, technique), level) in enumerate(cells)
    ]


def _gradients(
    module: nn.Module, profile: Profile, x: Tensor, y: Tensor | None, layers: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """(layer, gradient (n, weights) of each image's cross-entropy), one layer at a time to bound the memory."""
    twin, seen = copy.deepcopy(module).eval(), dict[str, tuple[Tensor, Tensor]]()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            keep = seen.__setitem__
            output.register_hook(lambda grad: keep(name, (inputs[0].detach(), grad)))  # type: ignore[no-untyped-call]

        return hook

    for name in layers:
        twin.get_submodule(name).register_forward_hook(watch(name))
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = twin(images)
        if y is None:
            y = torch.multinomial(logits.detach().softmax(1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
        torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), images)
    for name, (inputs, grad) in seen.items():
        part = twin.get_submodule(name)
        pieces = zip(torch.split(inputs, PATCHES), torch.split(grad, PATCHES), strict=True)
        yield name, torch.cat([_per_image(part, profile.layer(name), *piece) for piece in pieces])


def _per_image(part: nn.Module, layer: Layer, inputs: Tensor, grad: Tensor) -> Tensor:
    """Each image's gradient of the layer's weight, flattened (n, weights)."""
    if isinstance(part, nn.Linear):
        before, after = (t.reshape(len(t), -1, t.shape[-1]) for t in (inputs, grad))
        return (after.transpose(1, 2) @ before).flatten(1)
    if isinstance(part, nn.ConvTranspose2d):  # its weight's gradient is that of the convolution it is the adjoint of
        inputs, grad = grad, inputs
    assert isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    assert not isinstance(part.padding, str)
    size: Any = part.kernel_size
    patches = F.unfold(inputs, size, part.dilation, part.padding, part.stride)
    patches = patches.view(len(inputs), layer.groups, -1, patches.shape[-1])
    rows = grad.reshape(len(grad), layer.groups, -1, patches.shape[-1])
    return (rows @ patches.transpose(2, 3)).flatten(1)


def measure_cells(
    network: Network,
    x: Tensor,
    y: Tensor | None,
    path: Path,
    about: Mapping[str, Any],
    report: Report = silent,
    techniques: Sequence[str] = tuple(LEVELS),
) -> SensitivityTable:
    """Both tiers into `path` and back as a table. What is already there, for the same `about`, is not measured again.

    Tier 1 is measured for `techniques` alone; another time adds others. It picks IMAGES of x (n, c, h, w); fewer for
    deep networks, and when their activations would not fit in MEMORY_BYTES.
    """
    table = _begun(network, x, y, path, about, report)
    todo = [row for row in settings(network.profile) if row[0][1] in techniques]
    done = {key for key, cell in table.cells.items() if cell.kl is not None}
    if all((*key, level) in done for key, level in todo):
        return table
    replay, index, weight = _replay_that_tells(network, x, report)
    labels = None if y is None else y[index]
    for i, ((layer, technique), level) in enumerate(todo):
        if (layer, technique, level) in done:
            continue
        report(i / len(todo), f"Measuring {layer}, {technique} at {level:g}")
        measures = compare(replay, *replay.run(perturb(network, {(layer, technique): level})), labels, weight)
        if technique == "prune_channels":
            measures["kl_repaired"] = compare(replay, *replay.run(*repair(network, layer, level)), None, weight)["kl"]
        append_lines(path, [row_of(Cell(layer, technique, level, **measures))])
    report(1.0, "Sensitivity measured")
    return _begun(network, x, y, path, about, report)


def _begun(
    network: Network, x: Tensor, y: Tensor | None, path: Path, about: Mapping[str, Any], report: Report
) -> SensitivityTable:
    """What `path` holds of these circumstances; tier 0 at least."""
    rows = read_lines(path)
    if not rows or any(rows[0].get(k) != v for k, v in about.items()):
        path.unlink(missing_ok=True)
        append_lines(path, [dict(about)])
        report(0.0, "Ranking layers")
        append_lines(path, map(row_of, rank_cells(network, x[:RANKED], None if y is None else y[:RANKED])))
    table = read_table(path)
    assert table is not None
    return table


def enough_images(profile: Profile) -> int:
    """24 of ResNet-56 are off by 36 % of the mean KL over 500 images, 64 by 20 %."""
    return max(LEAST_IMAGES, min(IMAGES, IMAGES * LAYERS // max(1, len(profile.tunable))))


def compare(
    replay: Replay, logits: Tensor, features: Tensor, y: Tensor | None, weight: Tensor | None = None
) -> dict[str, float]:
    """KL of softened answers (nats), SQNR of logits (dB, at most 99), cosine of features; accuracy loss with labels.

    Means over the images, each with its `weight` (n,), which sum to 1; all alike without.
    """
    w = torch.full((len(logits),), 1 / len(logits)) if weight is None else weight
    after, before = ((answer / TEMPERATURE).log_softmax(1) for answer in (logits, replay.logits))
    kl = w @ F.kl_div(after, before, reduction="none", log_target=True).sum(1)
    noise = (w @ (logits - replay.logits).square().sum(1)).clamp_min(1e-30)
    measures = {
        "kl": max(0.0, float(kl)),
        "sqnr_db": min(99.0, float(10 * ((w @ replay.logits.square().sum(1)) / noise).log10())),
        "cosine": float(w @ F.cosine_similarity(features.flatten(1), replay.features.flatten(1))),
    }
    if y is not None:
        before_right, after_right = ((answer.argmax(1) == y).float() for answer in (replay.logits, logits))
        measures["accuracy_loss"] = float(w @ (before_right - after_right))
    return measures


def _replay_that_tells(network: Network, x: Tensor, report: Report) -> tuple[Replay, Tensor, Tensor]:
    """With the images that tell most, their index among x and the weight of each."""
    module, layers = network.module, {x.name for x in network.profile.weighing}
    one = Replay(module, x[:1], layers).kept_bytes
    count = min(enough_images(network.profile), max(SMALLEST_BATCH, MEMORY_BYTES // max(1, one)))
    index, weight = telling(answers(module, x, report), count, TEMPERATURE)
    return Replay(module, x[index], layers), index, weight
