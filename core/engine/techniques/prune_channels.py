"""Channel pruning: whole channels leave, with everything coupled to them, so the network becomes smaller and faster.

What must be cut together comes from the dependency graph (DepGraph, Fang et al. 2023), what is unimportant from one of
torch-pruning's criteria, and how much from the dial; three separate questions.

l1, l2: Pruning Filters for Efficient ConvNets, Li et al. 2017. bn_scale: Network Slimming, Liu et al. 2017.
taylor: Importance Estimation for Neural Network Pruning, Molchanov et al. 2019. fpgm: Filter Pruning via Geometric
Median, He et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn

from core.candidate import Skip
from core.engine.branches import remove_branches
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.graph import Structure, trace
from core.engine.reconstruct import repair
from core.engine.reestimate import reestimate
from core.engine.surgery import copy_model, remove_channels
from core.errors import RecipeError
from core.layers import Group, dial_for, kept_channels, width_after
from core.options import PruneChannels

KEY = "prune_channels"
IMAGES, BATCH = 256, 32  # calibration images that Taylor reads, and how many at once
CRITERIA: dict[str, Callable[[], tp.importance.Importance]] = {
    "l1": lambda: tp.importance.MagnitudeImportance(p=1),
    "l2": lambda: tp.importance.MagnitudeImportance(p=2),
    "bn_scale": tp.importance.BNScaleImportance,
    "taylor": tp.importance.TaylorImportance,
    "fpgm": tp.importance.FPGMImportance,
}
Scores = dict[str, NDArray[np.float64]]  # group → importance of each channel; mean 1 over the group


def apply(model: nn.Module, options: PruneChannels, layers: Mapping[str, float], context: Context) -> Outcome:
    """Cut `model`, which is not to be used afterwards. A group follows the dial of its first layer, whose name it has;
    blocked ones are skipped. A group without which a residual branch does nothing takes it along at 100 %.

    Raises RecipeError for bn_scale on a network without BatchNorm.
    """
    context.report(0.0, "Finding which channels belong together")
    before = copy_model(model)
    structure = trace(model, torch.zeros(1, *context.card.input_shape))
    ratios = {group.name: dial_for(layers, group.name, options.ratio) for group in structure.groups}
    led = {layer: group.name for group in structure.groups for layer in group.layers}
    gone = [group for group in structure.open if width_after(group, group.channels, ratios[group.name], 1) == 0]
    if gone:
        model = remove_branches(model, gone)
        structure = trace(model, torch.zeros(1, *context.card.input_shape))
        ratios = {group.name: ratios[led.get(group.name, group.name)] for group in structure.groups}
    skipped = [Skip(KEY, g.name, g.blocked) for g in structure.groups if g.blocked and g.layers and ratios[g.name] > 0]
    wanted = [group for group in structure.open if ratios[group.name] > 0]
    context.report(0.2, "Scoring channels")
    scores = score(model, structure, wanted, options.criterion, context)
    skipped += [Skip(KEY, g.name, f"No BatchNorm scales {g.name}.") for g in wanted if g.name not in scores]
    together = [n for n in scores if options.scope == "global" and not _has_own(layers, n)]
    ratios |= rank_together({name: scores[name] for name in together}, options.ratio)
    kept = {name: _highest(values, ratios[name], options.multiple) for name, values in scores.items()}
    for done, (name, channels) in enumerate(kept.items()):
        context.report(0.3 + 0.2 * done / len(scores), f"Pruning {name}")
        lost = set(range(len(scores[name]))).difference(channels)
        remove_channels(structure.dependency, model.get_submodule(name), lost)
    if kept or gone:
        of_layer = {layer: kept[g.name] for g in structure.groups if g.name in kept for layer in g.layers}
        skipped += _mend(model, before, of_layer, options, context)
    return Outcome(model.eval(), tuple(skipped))


def _mend(
    model: nn.Module, before: nn.Module, kept: Mapping[str, list[int]], options: PruneChannels, context: Context
) -> list[Skip]:
    """Solve what remains again and measure BatchNorm again, where the options say so; what could not be done."""
    skipped = []
    if options.repair:

        def report(done: float, message: str) -> None:
            context.report(0.5 + 0.3 * done, message)

        reason = repair(model, before, context.calibration, context.card, kept, report)
        skipped += [Skip(KEY, "repair", reason)] if reason else []
    if options.reestimate:
        context.report(0.8, "Measuring BatchNorm again")
        reason = reestimate(model, context.teacher or before, context)
        skipped += [Skip(KEY, "BatchNorm", reason)] if reason else []
    return skipped


def score(
    model: nn.Module, structure: Structure, groups: list[Group], criterion: str, context: Context
) -> dict[str, NDArray[np.float64]]:
    """Importance of every channel of every group that the criterion can judge."""
    if criterion == "bn_scale" and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise RecipeError(
            "The criterion bn_scale needs BatchNorm, which this model does not have; accepted are l1, l2, taylor, fpgm."
        )
    if criterion == "taylor" and groups:
        _collect_gradients(model, context)
    judge, found = CRITERIA[criterion](), {}
    for group in groups:
        layer = model.get_submodule(group.name)
        prune = structure.dependency.get_pruner_of_module(layer).prune_out_channels
        coupled = structure.dependency.get_pruning_group(layer, prune, list(range(group.channels)))
        importance: Tensor | None = judge(coupled)
        if importance is not None:
            found[group.name] = np.nan_to_num(importance.double().numpy())  # all zero: torch-pruning divides by zero
    model.zero_grad(set_to_none=True)
    return found


def rank_together(scores: Scores, ratio: float) -> dict[str, float]:
    """Group → share removed, when exactly round(ratio × all) of the lowest channels of all groups go."""
    if not scores:
        return {}
    owner = np.repeat(np.arange(len(scores)), [len(values) for values in scores.values()])
    order = np.argsort(np.concatenate(list(scores.values())), kind="stable")
    counts = np.bincount(owner[order[: round(ratio * len(owner))]], minlength=len(scores))
    return {name: count / len(values) for (name, values), count in zip(scores.items(), counts.tolist(), strict=True)}


def _highest(importance: NDArray[np.float64], ratio: float, multiple: int) -> list[int]:
    """The channels that stay, in their order."""
    keep = kept_channels(len(importance), ratio, multiple)
    return sorted(np.argsort(importance, kind="stable")[len(importance) - keep :].tolist())


def _has_own(layers: Mapping[str, float], name: str) -> bool:
    return dial_for(layers, name, None) is not None


def _collect_gradients(model: nn.Module, context: Context) -> None:
    """Gradients of the cross-entropy over the calibration images; the model's own answers stand in for labels."""
    images = context.calibration.take(slice(0, IMAGES))
    model.eval().zero_grad(set_to_none=True)
    with torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        for start in range(0, len(images), BATCH):
            part = images.take(slice(start, start + BATCH))
            logits = model(to_tensor(part.x, context.card))
            labels = logits.argmax(1) if part.y is None else torch.from_numpy(part.y)
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(images)
            loss.backward()  # type: ignore[no-untyped-call]
