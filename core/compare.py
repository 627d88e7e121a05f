"""Original against candidate, answer by answer and setting by setting. NumPy only, on predictions that were saved.

The two files answered the same images, so the test of their difference is paired: McNemar's, in its exact form (a sign
test on the images only one of them got right; Dietterich, Approximate Statistical Tests, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.candidate import Latency, Scores
from core.errors import DataError


@dataclass(frozen=True)
class Answers:
    """What two files answered on the same n images. Without labels, `label` is None and nothing is right or wrong."""

    original: NDArray[np.int64]  # (n,) class indices
    candidate: NDArray[np.int64]
    label: NDArray[np.int64] | None

    @property
    def changed(self) -> NDArray[np.int64]:
        """Indices of the images whose answer is not the same, in order."""
        return np.flatnonzero(self.original != self.candidate).astype(np.int64)

    @property
    def lost(self) -> NDArray[np.int64]:
        """Indices that only the original got right."""
        return self._only(self.original, self.candidate)

    @property
    def won(self) -> NDArray[np.int64]:
        """Indices that only the candidate got right."""
        return self._only(self.candidate, self.original)

    @property
    def p_value(self) -> float | None:
        """Probability of a difference at least this large if both were equally accurate; None without labels."""
        return None if self.label is None else mcnemar(len(self.lost), len(self.won))

    def _only(self, right: NDArray[np.int64], wrong: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.label is None:
            return np.empty(0, np.int64)
        return np.flatnonzero((right == self.label) & (wrong != self.label)).astype(np.int64)


def answers(original: NDArray[np.float32], candidate: NDArray[np.float32], label: NDArray[np.int64] | None) -> Answers:
    """From logits (n, classes) each and labels (n,). Raises DataError when they are not of the same images."""
    counts = {len(original), len(candidate), len(original if label is None else label)}
    if len(counts) > 1:
        raise DataError(f"Predictions must be of the same images; received {', '.join(map(str, sorted(counts)))}.")
    return Answers(original.argmax(1), candidate.argmax(1), label)


def read_logits(path: Path) -> NDArray[np.float32]:
    """The saved predictions of one file, (n, classes). Raises DataError when there are none."""
    if not path.exists():
        raise DataError(f"The predictions of {path.parent.name} are not in the workspace ({path.name} is missing).")
    with np.load(path) as saved:
        return np.asarray(saved["logits"], np.float32)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value: P(at most min heads or at least max heads of lost + won fair coins).

    >>> mcnemar(0, 0), mcnemar(5, 0), mcnemar(1, 3)
    (1.0, 0.0625, 0.625)
    """
    coins, term, tail = lost + won, 1, 1
    for heads in range(min(lost, won)):
        term = term * (coins - heads) // (heads + 1)  # whole numbers: no rounding however many coins
        tail += term
    return min(1.0, 2 * tail / (1 << coins))


def setting(row: Latency) -> str:
    """'batch 32, 1 thread'."""
    return f"batch {row.batch}, {row.threads} thread{'s' if row.threads != 1 else ''}"


def speed_sentence(candidate: Scores, original: Scores) -> str:
    """What the latency rows say, honestly: a gain or a loss counts only where its whole spread is on one side of 1."""
    rows = candidate.latency
    gains, losses = [row for row in rows if row.speedup_low > 1], [row for row in rows if row.speedup_high < 1]
    smaller = candidate.size_bytes < original.size_bytes
    if not rows:
        return "Latency was not measured."
    if len(gains) == len(rows):
        least, most = min(row.speedup for row in gains), max(row.speedup for row in gains)
        return f"Faster in every setting measured, {least:.2f} to {most:.2f} times."
    if gains:
        rest = f"but slower with {_listed(losses)}" if losses else "elsewhere no more than the spread of the runs"
        return f"Faster with {_listed(gains)}, {rest}."
    if losses:
        return f"{'Smaller but slower' if smaller else 'Slower'} with {_listed(losses)}."
    return f"{'Smaller but not' if smaller else 'Not'} faster: the differences are within the spread of the runs."


def _listed(rows: Sequence[Latency]) -> str:
    *first, last = map(setting, rows)
    return f"{'; '.join(first)} and {last}" if first else last
