"""How much of the accuracy or agreement a changed file is expected to lose, from few images.

Counting changed answers is too coarse to choose by: of 80 images, one is 1.25 points. What a change does to the margins
can be seen on every image, though: where it moves them by a ± s, an image whose margin was m is answered as the
reference says with probability Φ((m + a) / s). a and s are those of the half of the images with the smallest margins:
larger ones move further, and are not lost. The mean over the images has the expectation of the count, to within a
fifth of it, at two thirds of its standard deviation: as if there were twice as many images. It takes the change for
noise, which training is not, so trained files are counted.

A network is sure of images that it was trained on, which may be the very images that are looked at: of ResNet-56, right
on all of 5,000 CIFAR-10 training images and on 93.4 % of the test images, a plan that loses 1.06 points seemed to lose
0.28. How far margins move is much the same on both, though. So where there are many labelled images that chose nothing,
the original's own margins on those are taken, and what each answer is worth: 0.96. Losses that are foretold so for
calibration, with a quarter of the margins and the count of large moves, are 1.5 times the truth below 2 points, 1.06
times up to 15 and .99 times above (37 plans of ResNet-20, 10,000 test images); of 16 plans of ResNet-56 1.18 and .97.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from core.compare import read_logits
from core.engine.data import Images
from core.engine.softmax import logits_of

Array = NDArray[np.float64]
TELLING = 1000  # unseen images from which margins tell more than on the images that are looked at
HALF = 0.5  # of the margins are looked at,
QUARTER = 0.25  # or fewer where large moves are counted as well
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
    moved = _moved(old, new)
    if not np.ptp(moved) > 0:  # not moved, or nothing to choose between
        return np.zeros(len(old))
    lost: Array = (old > 0) - ndtr((old + moved.mean()) / moved.std())
    return lost


def _moved(old: Array, new: Array, share: float = HALF) -> Array:
    """How far the smallest `share` of the margins went; all of them where those did not move."""
    moved = (new - old)[np.abs(old) <= np.quantile(np.abs(old), share)]
    return moved if np.ptp(moved) > 0 else new - old


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
    return unseen_changes(before, after, unseen, HALF) * unseen.worth


def unseen_loss(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64], unseen: Unseen) -> float:
    """Loss of accuracy expected on unseen images, from logits and labels of images that are known by heart.

    From margins, and at least as many of the right answers as were counted to go, less the wrong ones that are won: of
    a ruined network the moves of small margins do not tell.
    """
    changes = unseen_changes(before, after, unseen)
    right = float((before.argmax(1) == y).mean())
    counted = counted_loss(before, after, y) * float((unseen.worth == 1).mean()) / right
    won = float((changes * (unseen.worth == -1)).mean())
    return max(float((changes * unseen.worth).mean()), counted - won)


def unseen_changes(
    before: NDArray[np.float32], after: NDArray[np.float32], unseen: Unseen, share: float = QUARTER
) -> Array:
    """How probable it is that the answer to each unseen image changes, (n,), from this share of the margins."""
    wanted = before.argmax(1)
    moved = _moved(margins(before, wanted), margins(after, wanted), share)
    if not np.ptp(moved) > 0:
        return np.zeros(len(unseen.margins))
    changed: Array = ndtr(-(unseen.margins + moved.mean()) / moved.std())
    return changed


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
    rows, own = np.arange(len(logits)), logits_of(logits).astype(np.float64)
    others = own.copy()
    others[rows, wanted] = -np.inf
    margin: Array = own[rows, wanted] - others.max(1)
    return margin
