"""Which layers stay in float so that enough answers stay the same: by what each costs for the time that it saves.

A layer's cost is the share of answers that are expected to change when it alone is in integers, seen in the margins of
few validation images; its gain is the time of its nodes in float less that in integers. Layers go back to float in the
order of cost per gain. How many of them must is found by halving, on the share of validation answers that whole files
keep, so what is promised was counted on a file as it is exported.

Order by loss for time as for mixed precision in HAWQ-V3, Yao et al. 2021, with measured times; the loss by margins is
that of `core/engine/judge.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from core.engine import runtime
from core.engine.context import Context, Report
from core.engine.data import to_input
from core.engine.judge import expected_loss

VALIDATED = 512  # validation images whose answers are counted, at most
LOOKED_AT = 64  # and those whose margins are looked at
BATCH = 32  # images at once, so that memory stays small
LEAST = 1e-3  # of all that integers save: a layer that saves less counts as if it saved this


class Answers:
    """What `model`, in float, answers on the validation images; computed when it is first asked for."""

    def __init__(self, model: ModelProto, context: Context) -> None:
        self.model, self.context = model, context
        self.known: NDArray[np.float32] | None = None

    def agreement(self, file: ModelProto) -> float:
        """Share of the answers that `file` gives too."""
        return float((self._expected().argmax(1) == self._logits(file, VALIDATED).argmax(1)).mean())

    def expected_loss(self, file: ModelProto, images: int = LOOKED_AT) -> float:
        """Share of the answers that `file` is expected to change, by the margins on the first `images`.

        Steadier than a count of changed answers, so that files are told apart by it: of 90 images one is 1.1 points.
        """
        return expected_loss(self._expected()[:images], self._logits(file, images), None)

    def _expected(self) -> NDArray[np.float32]:
        if self.known is None:
            self.known = self._logits(self.model, VALIDATED)
        return self.known

    def _logits(self, model: ModelProto, count: int) -> NDArray[np.float32]:
        session, x = runtime.open_file(model.SerializeToString()), self.context.validation.x[:count]
        batches = (to_input(x[start : start + BATCH], self.context.card) for start in range(0, len(x), BATCH))
        return np.concatenate([runtime.run(session, batch) for batch in batches])


def order_of_return(
    losses: Mapping[str, float], in_float: Mapping[str, float], in_integers: Mapping[str, float]
) -> list[str]:
    """The layers, first those whose integers cost most answers for the time they save."""
    gains = {name: in_float[name] - in_integers[name] for name in losses}
    least = LEAST * max(sum(gain for gain in gains.values() if gain > 0), 1e-9)
    return sorted(losses, key=lambda name: losses[name] / max(gains[name], least), reverse=True)


def fewest(
    order: Sequence[str], agreement: Callable[[Sequence[str]], float], wanted: float, report: Report
) -> tuple[tuple[str, ...], float]:
    """The fewest first layers of `order` that must be in float for an `agreement` of `wanted`, and what they give.

    Found by halving, which takes more layers in float to agree more. All of them where no fewer suffice.
    """
    low, high = -1, len(order)  # too few, enough
    given = {high: 1.0}
    while high - low > 1:
        middle = (low + high) // 2
        report(1 - (high - low) / (len(order) + 1), f"Counting answers with {middle} of {len(order)} layers in float")
        given[middle] = agreement(order[:middle])
        low, high = (low, middle) if given[middle] >= wanted else (middle, high)
    return tuple(order[:high]), given[high]
