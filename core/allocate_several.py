"""Several budgets at once: the multiple-choice knapsack as an integer programme, by SciPy's HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.errors import StudioError

if TYPE_CHECKING:
    from core.allocate import Item

GAP = 1e-3  # at most this share above the least loss; tables are not known better than that


def solve_several(items: Sequence[Item], ceiling: NDArray[np.float64], scale: float) -> list[int]:
    """`scale` is a loss that cannot be beaten: HiGHS's absolute tolerances become relative to it."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second: paid by those who need it
    from scipy.sparse import csr_array

    finite = np.isfinite(ceiling)
    room = ceiling - np.array([np.min(x.costs, axis=0) for x in items]).sum(0)  # above the smallest plan
    fits = [
        np.all(np.array(x.costs) - np.min(x.costs, axis=0) <= room + 1e-9 * (1 + np.abs(ceiling)), axis=1)
        for x in items
    ]
    counts = [len(x.levels) for x in items]
    owner = np.repeat(np.arange(len(items)), counts)
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    costs = np.concatenate([np.array(x.costs) for x in items])[:, finite]
    unit = np.where(costs.max(0) > 0, costs.max(0), 1.0)
    losses = np.concatenate([np.array(x.losses) for x in items])
    result = milp(
        losses / (scale or max(float(losses.max()), 1e-30)),
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, np.concatenate(fits).astype(float)),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.T / unit[:, None], -np.inf, ceiling[finite] / unit),
        ],
        options={"mip_rel_gap": GAP},
    )
    if result.x is None:
        raise StudioError("No plan keeps within all budgets together; raise one of them.")
    starts = np.cumsum([0, *counts])
    return [int(result.x[a:b].argmax()) for a, b in pairwise(starts)]
