"""Weight pruning: sets single weights to zero, by magnitude or by LAMP, network-wide, per layer or in an N:M pattern.

LAMP divides the square of each weight by the sum of the squares of its layer that are at least as large, so that one
ranking of the whole network also decides how much every layer gives. Biases and normalization are never touched.

Layer-adaptive Sparsity for the Magnitude-based Pruning, Lee et al. 2021; N:M: Mishra et al. 2021, Accelerating Sparse
Deep Neural Networks. Zeros survive later training because `distill` keeps every zero of a sparse layer at zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.candidate import Skip
from core.engine.context import Context, Outcome
from core.engine.reconstruct import repair
from core.engine.surgery import copy_model, kind_of
from core.layers import dial_for
from core.options import PruneWeights

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
Scores = NDArray[np.float64]


def score_magnitude(weight: Tensor) -> Scores:
    """|w|, in the shape of the weight."""
    return weight.detach().abs().double().cpu().numpy()


def score_lamp(weight: Tensor) -> Scores:
    """w² over the sum of the squares of the layer from w² upward, in the shape of the weight; the largest scores 1.

    Equal magnitudes count in the order they are stored, as in the paper's index map.
    """
    squares = weight.detach().double().cpu().numpy().ravel() ** 2
    order = np.argsort(squares, kind="stable")
    upward = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    scores[order] = np.divide(squares[order], upward, out=np.zeros_like(upward), where=upward > 0)
    return scores.reshape(weight.shape)


CRITERIA = {"magnitude": score_magnitude, "lamp": score_lamp}


def lowest(scores: Scores, sparsity: float) -> NDArray[np.bool_]:
    """True at exactly round(sparsity × n) of the lowest scores; of equal ones the first stored go first."""
    flat = scores.ravel()
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = True
    return chosen.reshape(scores.shape)


def beyond_pattern(scores: Scores, keep: int, block: int) -> NDArray[np.bool_]:
    """True at all but the `keep` highest of every `block` neighbours along the input channels, axis 1.

    `scores` is (c_out, c_in, …) and c_in a multiple of `block`.
    """
    rows = np.moveaxis(scores, 1, -1)
    blocks = rows.reshape(-1, block)
    chosen = np.zeros(blocks.shape, bool)
    np.put_along_axis(chosen, np.argsort(blocks, axis=1, kind="stable")[:, : block - keep], True, axis=1)
    return np.moveaxis(chosen.reshape(rows.shape), -1, 1)


def apply(model: nn.Module, options: PruneWeights, layers: Mapping[str, float], context: Context) -> Outcome:
    """Zero the lowest weights of `model` in place, and let the others make up for it where calibration images exist.

    A layer in `layers` gets exactly its own sparsity; with scope "global" the others are ranked together. A pattern
    fixes the share, so there the dial only says whether a layer takes part (0: it does not).
    """
    before = copy_model(model)
    parts = {n: part for n, part in model.named_modules() if isinstance(part, KINDS) and kind_of(part) != "shortcut"}
    own = {name: dial_for(layers, name, None) for name in parts}
    wanted = {name: options.sparsity if value is None else value for name, value in own.items()}
    taking = {name: parts[name] for name, sparsity in wanted.items() if sparsity > 0}
    scores = {name: CRITERIA[options.criterion](part.weight) for name, part in taking.items()}
    skipped: list[Skip] = []
    if options.pattern != "any":
        zeros, skipped = _by_pattern(taking, scores, options.pattern)
    else:
        together = [name for name in taking if options.scope == "global" and own[name] is None]
        zeros = {name: lowest(scores[name], wanted[name]) for name in taking if name not in together}
        zeros |= _together({name: scores[name] for name in together}, options.sparsity)
    with torch.no_grad():
        for name, zero in zeros.items():
            taking[name].weight.masked_fill_(torch.from_numpy(zero).to(taking[name].weight.device), 0.0)
    if options.repair and zeros:
        reason = repair(model, before, context.calibration, context.card, report=context.report)
        skipped += [Skip("prune_weights", "repair", reason)] if reason else []
    context.report(1.0, f"Zeroed weights in {len(zeros)} layers")
    return Outcome(model, tuple(skipped))


def _together(scores: dict[str, Scores], sparsity: float) -> dict[str, NDArray[np.bool_]]:
    """Rank the weights of all these layers at once."""
    if not scores:
        return {}
    chosen = lowest(np.concatenate([score.ravel() for score in scores.values()]), sparsity)
    cuts = np.cumsum([score.size for score in scores.values()])[:-1]
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, np.split(chosen, cuts), strict=True)}


def _by_pattern(
    parts: Mapping[str, nn.Module], scores: Mapping[str, Scores], pattern: str
) -> tuple[dict[str, NDArray[np.bool_]], list[Skip]]:
    keep, block = map(int, pattern.split(":"))
    zeros, skipped = {}, []
    for name, score in scores.items():
        if isinstance(parts[name], nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            skipped.append(
                Skip("prune_weights", name, "Kept: N:M patterns are not defined for transposed convolution.")
            )
        elif score.shape[1] % block:
            reason = f"Kept: {score.shape[1]} input channels are not a multiple of {block}, as {pattern} needs."
            skipped.append(Skip("prune_weights", name, reason))
        else:
            zeros[name] = beyond_pattern(score, keep, block)
    return zeros, skipped
