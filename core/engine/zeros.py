"""Which layers count as pruned weight by weight: their zeros are kept by everything that changes weights later."""

from __future__ import annotations

from torch import Tensor

SPARSE = 0.05  # share of exact zeros above which they are taken for pruned weights, not for chance


def surviving(weight: Tensor) -> Tensor | None:
    """True where a pruned layer's weight may change; None for a layer that was not pruned."""
    alive = weight.detach() != 0
    return alive if float((~alive).double().mean()) > SPARSE else None
