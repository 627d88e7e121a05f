"""How the KL divergences of a plan's settings, each measured alone, add up to one number. NumPy only.

A technique adds its settings up to (Σ (s · KL)^p)^(1/p), and techniques are summed. A power p below 1 is for errors
that have one direction, as where channels go from many layers of a deep network; a share s for what repair leaves.
Which `WAYS` hold for a network is what makes its measured plans predict each other best (`core/forecast.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import fsum

import numpy as np
from numpy.typing import NDArray

from core import alike
from core.sensitivity_table import Key, Plan, SensitivityTable

Array = NDArray[np.float64]
Way = tuple[float, float]  # share s, power p
Ways = Mapping[str, Way]  # technique → how its settings add up; absent: ALONE
ALONE: Way = (1.0, 1.0)
WAYS: dict[bool, dict[str, tuple[Way, ...]]] = {  # tried without repair and with it; factors are the best there are
    False: {"prune_channels": tuple((1.0, power) for power in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5))},
    True: {
        "prune_channels": tuple(product((1.0, 0.3, 0.1, 0.03), (1.0, 0.6))),
        "factorize": tuple(product((1.0, 0.3, 0.1), (1.0, 0.6))),
        "prune_weights": tuple(product((1.0, 0.3, 0.1, 0.03), (1.0,))),
    },
}


@dataclass(frozen=True)
class Nats:
    """Of the settings of one table; d is the number of its curves."""

    table: SensitivityTable

    @cached_property
    def places(self) -> dict[Key, int]:
        return {key: i for i, key in enumerate(self.table.curves)}

    @cached_property
    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Technique → where its settings are in a row."""
        kinds = [technique for _, technique in self.places]
        return {kind: np.flatnonzero(np.array(kinds) == kind) for kind in dict.fromkeys(kinds)}

    def rows(self, plans: Sequence[Plan]) -> Array:
        """(n, d) what each setting of each plan costs alone."""
        found = np.zeros((len(plans), len(self.places)))
        for row, plan in zip(found, plans, strict=True):
            for key, level in plan.items():
                if key in self.places:  # a setting that changes nothing may not be measured
                    row[self.places[key]] = self.table.kl(*key, level) or 0.0
        return found

    def totals(self, rows: Array, ways: Ways) -> Array:
        """(n,) what rows (n, d) add up to."""
        found = np.zeros(len(rows))
        for technique, columns in self.columns.items():
            share, power = ways.get(technique, ALONE)
            found += ((share * rows[:, columns]) ** power).sum(1) ** (1 / power)
        return found

    def traits(self, rows: Array, ways: Ways) -> Array:
        """(n, d) where rows (n, d) are spent, as `core/alike.py` has it."""
        shares = np.array([ways.get(technique, ALONE)[0] for _, technique in self.places])
        return alike.traits(rows * shares)

    def sums(self, plan: Plan, ways: Ways) -> dict[str, float]:
        """Technique → sum over its settings of (s · KL)^p."""
        found = dict[str, float]()
        for key, level in plan.items():
            share, power = ways.get(key[1], ALONE)
            found[key[1]] = found.get(key[1], 0.0) + (share * (self.table.kl(*key, level) or 0.0)) ** power
        return found


def total(sums: Mapping[str, float], ways: Ways) -> float:
    """Nats, from what `sums` gave."""
    return fsum(max(found, 0.0) ** (1 / ways.get(technique, ALONE)[1]) for technique, found in sums.items())
