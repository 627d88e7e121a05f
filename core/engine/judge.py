"""How much of the accuracy or agreement a changed file is expected to lose, from few images.

Counting changed answers is too coarse to choose by: of 80 images, one is 1.25 points. What a change does to the margins
can be seen on every image, though: where it moves them by a ± s, an image whose margin was m is answered as the
reference says with probability Φ((m + a) / s). a and s are those of the half of the images with the smallest margins:
larger ones move further, and are not lost. The mean over the images has the expectation of the count, to within a
fifth of it, at two thirds of its standard deviation: as if there were twice as many images. It takes the change for
noise, which training is not, so trained files are counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]


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
    moved = (new - old)[np.abs(old) <= np.median(np.abs(old))]
    moved = moved if np.ptp(moved) > 0 else new - old
    if not np.ptp(moved) > 0:  # not moved, or nothing to choose between
        return np.zeros(len(old))
    lost: Array = (old > 0) - ndtr((old + moved.mean()) / moved.std())
    return lost


def counted_losses(before: NDArray[np.float32], after: NDArray[np.float32], y: NDArray[np.int64] | None) -> Array:
    """1 for each image that was lost, -1 for each that was won, (n,)."""
    wanted = before.argmax(1) if y is None else y
    lost: Array = (before.argmax(1) == wanted).astype(np.float64) - (after.argmax(1) == wanted)
    return lost


def standard_error(losses: Array) -> float:
    """Of their mean."""
    return float(losses.std() / np.sqrt(len(losses)))


def margins(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> Array:
    """(n,): the wanted class's logit above the largest of the others; negative where another is higher."""
    rows, own = np.arange(len(logits)), logits.astype(np.float64)
    others = own.copy()
    others[rows, wanted] = -np.inf
    margin: Array = own[rows, wanted] - others.max(1)
    return margin
