"""How the answers move when weights change, to first order, for every setting of every layer at once.

The gradient of each image's answer by a layer's weight is the product of the layer's input patches and its output
gradient, so that one forward pass and a backward pass for each question serve all settings, however deep the network.

Tier 0 asks for the cross-entropy: full empirical Fisher E[(gradient · change)²] (for its limits: Kunstner et al. 2019).
`second_order` asks for the likely classes' logits and gives the KL divergence as far as the Fisher information of the
answers tells it, ½ Σ p (δz - E δz)² (Martens, New Insights and Perspectives on the Natural Gradient Method, 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.engine.perturb import Network, Weights, perturb, weight_of
from core.engine.telling import answers
from core.sensitivity_table import Cell, Key

Told = Callable[[str], None]  # hears what is being done; raises Cancelled
Altered = tuple[Weights, Weights]  # a setting's new weights and biases
Stacks = dict[str, tuple[list[int], Tensor]]  # layer → (the settings that change it, their changes (settings, weights))
BATCH = 16  # images at once: their unfolded patches stay in the cache
FIRST_BYTES, MEMORY_BYTES = 1 << 28, 1 << 29  # that the weights of the settings which are followed at once may take
GRADIENTS = 1 << 25  # numbers: most that the gradients of single images may take at once
CLASSES = 4  # the likeliest, between which nearly all doubt is


@dataclass(frozen=True)
class Setting:
    """One row of the table and what it alters; where there is a second, with what remains solved again."""

    key: Key
    level: float
    altered: tuple[Altered, ...]


def unheard(message: str) -> None:
    """Nobody listens."""


def parcels(settings: Iterable[Setting]) -> Iterator[list[Setting]]:
    """In their order, each time twice as many as fit, up to MEMORY_BYTES: of a large network the first come soon."""
    parcel, size, most = list[Setting](), 0, FIRST_BYTES
    for setting in settings:
        parcel.append(setting)
        size += sum(weight.nbytes for weights, _ in setting.altered for weight in weights.values())
        if size > most:
            yield parcel
            parcel, size, most = [], 0, min(2 * most, MEMORY_BYTES)
    if parcel:
        yield parcel


def rank_cells(network: Network, x: Tensor, y: Tensor | None, cells: list[tuple[Key, float]]) -> list[Cell]:
    """Tier 0 for every setting: Fisher and relative weight error.

    x (n, c, h, w). Without labels `y` (n,) the model's own answers, drawn by its probabilities, stand in.
    """
    module, found = network.module, list[Cell]()
    probabilities = answers(module, x).softmax(1)
    if y is None:
        y = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    of_loss = probabilities - F.one_hot(y, probabilities.shape[1])
    settings = (Setting(key, level, ((perturb(network, {key: level}), {}),)) for key, level in cells)
    for parcel in parcels(settings):
        moved = moves(network, x, [setting.altered[0] for setting in parcel], of_loss[None])[0]
        for setting, fisher in zip(parcel, moved.square().mean(0).tolist(), strict=True):
            error = _weight_error(module, setting.altered[0][0])
            found.append(Cell(*setting.key, setting.level, fisher=fisher, weight_error=error))
    return found


def _weight_error(module: nn.Module, weights: Weights) -> float:
    """Squared change as a share of the squared weights."""
    pairs = [(weight, weight_of(module, name)) for name, weight in weights.items()]
    size = sum(float(before.square().sum()) for _, before in pairs)
    return sum(float((after - before).square().sum()) for after, before in pairs) / max(size, 1e-30)


def second_order(
    network: Network, x: Tensor, logits: Tensor, altered: Sequence[Altered], temperature: float, told: Told = unheard
) -> Tensor:
    """(n, settings) KL of each image's softened answer, nats, to second order and among its CLASSES likeliest classes.

    x (n, c, h, w) with the network's `logits` (n, classes).
    """
    shares, classes = (logits / temperature).softmax(1).topk(min(CLASSES, logits.shape[1]))
    asked = F.one_hot(classes.T, logits.shape[1]) / temperature
    moved, share = moves(network, x, altered, asked, told), shares.T[..., None]
    mean = (share * moved).sum(0) / share.sum(0)
    found: Tensor = (share * (moved - mean).square()).sum(0) / 2
    return found


def moves(network: Network, x: Tensor, altered: Sequence[Altered], asked: Tensor, told: Told = unheard) -> Tensor:
    """(questions, n, settings): by how much each question's sum Σ asked · logits moves with each setting's change.

    x (n, c, h, w), asked (questions, n, classes).
    """
    twin, inputs, grads = copy.deepcopy(network.module).eval(), dict[str, Tensor](), dict[str, list[Tensor]]()

    def watch(name: str) -> Any:
        def hook(_: nn.Module, read: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], grads[name] = read[0].detach(), []
            output.register_hook(grads[name].append)  # type: ignore[no-untyped-call]

        return hook

    stacks = _stacks(network.module, altered)
    for name in stacks:
        twin.get_submodule(name).register_forward_hook(watch(name))
    found = torch.zeros(len(asked), len(x), len(altered))
    for start in range(0, len(x), BATCH):
        if start:
            told(f"Following gradients: {start} of {len(x)} images")
        rows = slice(start, start + BATCH)
        with torch.enable_grad():
            images = x[rows].detach().clone().requires_grad_()
            logits = twin(images)
            for question in asked[:, rows]:
                torch.autograd.grad(logits, images, question.to(logits.dtype), retain_graph=True)
        for name, (settings, stack) in stacks.items():
            if grads.get(name):
                found[:, rows, settings] += _products(
                    twin.get_submodule(name), inputs[name], torch.stack(grads[name]), stack
                )
    return found


def _stacks(module: nn.Module, altered: Sequence[Altered]) -> Stacks:
    """A change of the bias stands behind that of the weight."""
    changes: dict[str, list[tuple[int, Tensor]]] = {}
    for i, (weights, biases) in enumerate(altered):
        for name, weight in weights.items():
            part = module.get_submodule(name)
            assert isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            bias = torch.zeros(part.out_features if isinstance(part, nn.Linear) else part.out_channels)
            if name in biases and part.bias is not None:
                bias = biases[name] - part.bias.detach()
            changes.setdefault(name, []).append((i, torch.cat([(weight - weight_of(module, name)).flatten(), bias])))
    return {name: ([i for i, _ in rows], torch.stack([c for _, c in rows])) for name, rows in changes.items()}


def _products(part: nn.Module, inputs: Tensor, grads: Tensor, stack: Tensor) -> Tensor:
    """(questions, n, settings) each image's gradient times each change (settings, weights and biases)."""
    if isinstance(part, nn.Linear):  # few positions: what each change does to the output is less than the gradients
        before = inputs.reshape(len(inputs), -1, part.in_features)
        after = grads.reshape(*grads.shape[:2], -1, part.out_features)
        weights, biases = stack[:, : part.weight.numel()], stack[:, part.weight.numel() :]
        moved = [(before @ weight.view_as(part.weight).T * after).sum((2, 3)) for weight in weights]
        return torch.stack(moved, 2) + after.sum(2) @ biases.T
    assert isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
    few = max(1, GRADIENTS // (len(grads) * part.weight.numel()))
    pieces = zip(torch.split(inputs, few), torch.split(grads, few, 1), strict=True)
    return torch.cat([torch.cat([_per_image(part, x, g), g.sum((3, 4))], 2) @ stack.T for x, g in pieces], 1)


def _per_image(part: nn.Conv2d | nn.ConvTranspose2d, inputs: Tensor, grads: Tensor) -> Tensor:
    """Each question's and image's gradient of a convolution's weight, flattened (questions, n, weights)."""
    assert not isinstance(part.padding, str)
    size: Any = part.kernel_size
    settings: Any = (size, part.dilation, part.padding, part.stride)
    (questions, n), groups = grads.shape[:2], part.groups
    if isinstance(part, nn.ConvTranspose2d):  # its weight's gradient is that of the convolution it is the adjoint of
        patches = F.unfold(grads.flatten(0, 1), *settings)
        patches = patches.reshape(questions, n, groups, -1, patches.shape[-1])
        found = torch.einsum("ngol,qngil->qngoi", inputs.reshape(n, groups, -1, patches.shape[-1]), patches)
    else:
        patches = F.unfold(inputs, *settings)
        patches = patches.reshape(n, groups, -1, patches.shape[-1])
        found = torch.einsum("qngol,ngil->qngoi", grads.reshape(questions, n, groups, -1, patches.shape[-1]), patches)
    return found.flatten(2)
