"""Weight pruning: sets single weights to zero, by magnitude or by LAMP, network-wide, per layer or in an N:M pattern.

With epochs, the zeros grow while the network trains, fast at first and ever more slowly, and are chosen anew on the
way; then they stay and the rest learns to live without them. Without, what remains is repaired in closed form.

LAMP divides the square of each weight by the sum of the squares of its layer that are at least as large, so that one
ranking of the whole network also decides how much every layer gives. Biases and normalization are never touched.

Layer-adaptive Sparsity for the Magnitude-based Pruning, Lee et al. 2021; N:M: Accelerating Sparse Deep Neural Networks,
Mishra et al. 2021; growing zeros: To Prune, or Not to Prune, Zhu & Gupta 2018. Zeros survive later training because it
keeps every zero of a sparse layer at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.candidate import Skip
from core.engine.batchnorm import fold_batchnorm, has_batchnorm, insert_batchnorm
from core.engine.context import Context, Outcome
from core.engine.data import to_tensor
from core.engine.reconstruct import repair
from core.engine.schedule import Epoch, Plan
from core.engine.surgery import copy_model, kind_of
from core.engine.teaching import checkpoint_of, keep_zeros, learn, make_lesson
from core.layers import dial_for
from core.options import PruneWeights

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
RISE, STAGES = 0.6, 20  # share of a training in which zeros grow, and how often they are chosen anew in it
SHIFT, CLIP, SAMPLE = 4, 1.0, 512  # of the training, as in distillation
Scores = NDArray[np.float64]
Zeros = dict[str, NDArray[np.bool_]]  # layer → True where its weight is to be zero


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
    parts = {n: part for n, part in model.named_modules() if isinstance(part, KINDS) and kind_of(part) != "shortcut"}
    own = {name: dial_for(layers, name, None) for name in parts}
    wanted = {name: options.sparsity if value is None else value for name, value in own.items()}
    asked: dict[str, nn.Module] = {n: parts[n] for n, sparsity in wanted.items() if sparsity > 0}
    taking, skipped = _fitting(asked, options.pattern)
    together = [name for name in taking if options.scope == "global" and own[name] is None]

    def choose(share: float) -> Zeros:
        """The weights to zero when so much of what is wanted is."""
        scores = {name: CRITERIA[options.criterion](_weight(part)) for name, part in taking.items()}
        if options.pattern != "any":
            keep, block = map(int, options.pattern.split(":"))
            left = block - round(share * (block - keep))
            return {name: beyond_pattern(score, left, block) for name, score in scores.items()}
        zeros = {name: lowest(scores[name], share * wanted[name]) for name in taking if name not in together}
        return zeros | _together({name: scores[name] for name in together}, share * options.sparsity)

    curve: tuple[Epoch, ...] = ()
    if options.epochs and taking:
        curve = _train(model, Growing(taking, choose), options, context)
    else:
        before = copy_model(model)
        put_zeros(taking, choose(1.0))
        if options.repair and taking:
            reason = repair(model, before, context.calibration, context.card, report=context.report)
            skipped += [Skip("prune_weights", "repair", reason)] if reason else []
    context.report(1.0, f"Zeroed weights in {len(taking)} layers")
    return Outcome(model, tuple(skipped), curve)


def _weight(part: nn.Module) -> Tensor:
    weight = part.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def put_zeros(parts: Mapping[str, nn.Module], zeros: Zeros) -> None:
    """Set the chosen weights to zero, in place."""
    for name, chosen in zeros.items():
        weight = _weight(parts[name])
        weight.masked_fill_(torch.from_numpy(chosen).to(weight.device), 0.0)


class Growing:
    """Zeros after each update: more and more, chosen anew at every stage, until RISE of the training is over."""

    def __init__(self, parts: Mapping[str, nn.Module], choose: Callable[[float], Zeros]) -> None:
        self.parts, self.choose = parts, choose
        self.stage, self.zeros = -1, Zeros()

    def __call__(self, progress: float) -> None:
        stage = min(int(progress / RISE * STAGES), STAGES)
        if stage != self.stage:  # also where a killed run goes on: the zeros that are there score lowest
            self.stage, self.zeros = stage, self.choose(grown(stage / STAGES))
        put_zeros(self.parts, self.zeros)


def grown(progress: float) -> float:
    """The share of the zeros that is there after `progress` (0..1) of their growth.

    >>> grown(0.0), grown(0.5), grown(1.0)
    (0.0, 0.875, 1.0)
    """
    return 1 - (1 - progress) ** 3


def _train(model: nn.Module, growing: Growing, options: PruneWeights, context: Context) -> tuple[Epoch, ...]:
    """Train while the zeros grow and after; only epochs that end with all of them count."""
    lesson = make_lesson(context, "prune_weights", teacher=context.teacher is not None)
    plan = Plan(
        options.epochs,
        options.learning_rate,
        shift=min(SHIFT, min(context.card.input_shape[1:]) // 8),
        flip=context.flip,
        first=math.ceil(RISE * options.epochs),
        clip=CLIP,
        seed=context.seed,
    )
    path = checkpoint_of(model, "prune_weights", options, context)
    inserted = () if has_batchnorm(model) else insert_batchnorm(model, to_tensor(lesson.train.x[:SAMPLE], context.card))
    keep = keep_zeros(model)

    def after_step(changed: nn.Module, progress: float) -> None:
        keep(changed, progress)  # those of earlier steps
        growing(progress)

    curve = learn(model, lesson, plan, context, checkpoint=path, after_step=after_step)
    fold_batchnorm(model, inserted)
    return curve


def _together(scores: dict[str, Scores], sparsity: float) -> dict[str, NDArray[np.bool_]]:
    """Rank the weights of all these layers at once."""
    if not scores:
        return {}
    chosen = lowest(np.concatenate([score.ravel() for score in scores.values()]), sparsity)
    cuts = np.cumsum([score.size for score in scores.values()])[:-1]
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, np.split(chosen, cuts), strict=True)}


def _fitting(parts: Mapping[str, nn.Module], pattern: str) -> tuple[dict[str, nn.Module], list[Skip]]:
    """The layers that can have the pattern, and why the others cannot."""
    reasons: dict[str, str] = {}
    for name, part in parts.items() if pattern != "any" else ():
        block, inputs = int(pattern.split(":")[1]), _weight(part).shape[1]
        if isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            reasons[name] = "Kept: N:M patterns are not defined for transposed convolution."
        elif inputs % block:
            reasons[name] = f"Kept: {inputs} input channels are not a multiple of {block}, as {pattern} needs."
    fitting = {name: part for name, part in parts.items() if name not in reasons}
    return fitting, [Skip("prune_weights", name, reason) for name, reason in reasons.items()]
