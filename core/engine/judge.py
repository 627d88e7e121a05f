"""How much of the accuracy or agreement a changed file is expected to lose, from few images.

Counting changed answers is too coarse to choose by: of 80 images, one is 1.25 points. What a change does to the margins
can be seen on every image, though. A margin m, how far the wanted answer is ahead, moves by a + b · m and by chance,
with variance c + d · m²: answers grow less sure as a whole, sure ones by more. a to d are fitted by least squares, each
image weighted by its variance and by how near its margin comes to 0: what becomes of the sure ones, which are most,
decides nothing, and of ResNet-56, whose doubtful answers move more, it made losses look as small as 0.6 of what they
are. An image is then lost with probability Φ(-(m + a + b · m) / √(c + d · m²)). The mean
over the images is that of the count and scatters less, as if there were half as many again. It takes the change for
noise, which training is not, so trained files are counted.

A network is sure of images that it was trained on, which may be the very images that are looked at: of ResNet-56, right
on all of 5,000 CIFAR-10 training images and on 93.4 % of the test images, a plan that loses 1.06 points seemed to lose
0.28. How margins move is much the same on both, though. So where there are many labelled images that chose nothing, the
original's own margins on those are taken, and what each answer is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import ndtr

from core.compare import read_logits
from core.engine.data import Images
from core.engine.softmax import as_logits

Array = NDArray[np.float64]
TELLING = 1000  # unseen images from which margins tell more than on the images that are looked at
ROUNDS = 4  # of weighting images by what was found
NEAR = 1.5  # standard deviations of its move within which a margin that ends there is near 0
NEAREST = 100  # images that are near at least
LEAST_VARIANCE = 1e-9  # of a margin, in weights
MEMORY = 0.02  # how much more often a network is right on images that it was trained on, at least


def expected_loss(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64] | None) -> float:
    """Share of images expected to be lost. Logits (n, classes) of the original and the changed file; labels y (n,), or
    None to ask for the original's own answers. Equal logits lose 0."""
    return float(expected_losses(before, after, y).mean())


def counted_loss(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64] | None) -> float:
    """Share of images lost, counted: those won are set against them where there are labels."""
    return float(counted_losses(before, after, y).mean())


def expected_losses(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64] | None) -> Array:
    """What each image adds to `expected_loss`, (n,)."""
    wanted = before.argmax(1) if y is None else y
    old, new = margins(before, wanted), margins(after, wanted)
    lost: Array = Move.of(old, new).below(old) - (old <= 0)
    return lost


@dataclass(frozen=True)
class Move:
    """What a change does to a margin m: it moves by shift + slope · m, with variance floor + share · m²."""

    shift: float
    slope: float
    floor: float
    share: float

    @classmethod
    def of(cls, old: Array, new: Array) -> Move:
        """Fitted to margins (n,) before and after."""
        moved, line = new - old, np.stack([np.ones_like(old), old], 1)
        mean, spread = np.zeros(2), np.array([float(moved.var()), 0.0])
        for _ in range(ROUNDS):
            variance = np.maximum(line**2 @ spread, LEAST_VARIANCE)
            near = _near(np.abs(old + line @ mean), np.sqrt(variance))
            weight = near / np.sqrt(variance)
            mean = np.linalg.lstsq(line * weight[:, None], moved * weight)[0]
            weight = near / variance
            spread = nnls(line**2 * weight[:, None], (moved - line @ mean) ** 2 * weight)[0]
        return cls(*mean.tolist(), *spread.tolist())

    def below(self, margins: Array) -> Array:
        """The probability that each of these margins (n,) ends at 0 or below."""
        mean, deviation = margins + self.shift + self.slope * margins, np.sqrt(self.floor + self.share * margins**2)
        certain = np.where(mean > 0, np.inf, -np.inf)
        chance: Array = ndtr(-np.divide(mean, deviation, out=certain, where=deviation > 0))
        return chance


def _near(far: Array, deviation: Array) -> Array:
    """(n,) the root of each image's weight, by how far from 0 its margin is expected to end."""
    few = min(NEAREST, len(far) - 1)
    reach = np.maximum(NEAR * deviation, max(np.partition(far, few)[few], LEAST_VARIANCE))
    found: Array = np.exp(-0.25 * (far / reach) ** 2)
    return found


@dataclass(frozen=True)
class Unseen:
    """The original's answers to images that it was not trained on: how far each is ahead of the runner-up, and what
    losing it costs: 1 where it is right, -1 where the runner-up is, 0 where neither is. Both (n,)."""

    margins: Array
    worth: Array

    @classmethod
    def of(cls, logits: NDArray[np.float32], y: NDArray[np.int64]) -> Unseen:
        """Logits (n, classes) and labels (n,)."""
        first = logits.argmax(1)
        others = logits.astype(np.float64)
        others[np.arange(len(logits)), first] = -np.inf
        return cls(margins(logits, first), (first == y) - (others.argmax(1) == y).astype(np.float64))

    @classmethod
    def read(cls, answers: Path, images: Images) -> Unseen | None:
        """From the kept answers to `images`; None where these are few or have no labels."""
        if images.y is None or len(images) < TELLING or not answers.exists():
            return None
        return cls.of(read_logits(answers), images.y)


def remembered(before: NDArray[np.float32], y: NDArray[np.int64] | None, unseen: Unseen | None) -> bool:
    """Whether the original was probably trained on these images: it is right on more of them than of unseen ones, by
    MEMORY and three standard errors. Logits (n, classes), labels (n,)."""
    if y is None or unseen is None:
        return False
    here, there = before.argmax(1) == y, unseen.worth == 1
    more = float(here.mean() - there.mean())
    return more > max(MEMORY, 3 * float(np.hypot(standard_error(here), standard_error(there))))


def unseen_losses(before: NDArray[np.float32], after: NDArray[np.float32], unseen: Unseen) -> Array:
    """What each unseen image is expected to add to the loss of accuracy, (n,), from logits of other images."""
    return unseen_changes(before, after, unseen) * unseen.worth


def unseen_changes(before: NDArray[np.float32], after: NDArray[np.float32], unseen: Unseen) -> Array:
    """How probable it is that the answer to each unseen image changes, (n,)."""
    wanted = before.argmax(1)
    return Move.of(margins(before, wanted), margins(after, wanted)).below(unseen.margins)


def counted_losses(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64] | None) -> Array:
    """1 for each image that was lost, -1 for each that was won, (n,)."""
    wanted = before.argmax(1) if y is None else y
    lost: Array = (before.argmax(1) == wanted).astype(np.float64) - (after.argmax(1) == wanted)
    return lost


def standard_error(losses: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    """Of their mean."""
    return float(losses.std() / np.sqrt(len(losses)))


def margins(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> Array:
    """(n,): the wanted class's logit above the largest of the others; negative where another is higher."""
    rows, own = np.arange(len(logits)), as_logits(logits).astype(np.float64)
    others = own.copy()
    others[rows, wanted] = -np.inf
    margin: Array = own[rows, wanted] - others.max(1)
    return margin
