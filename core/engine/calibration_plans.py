"""The whole-network plans that tier 2 measures: on the allocation's own path, where users will look, beside uniform and
weight-error plans of the same cost; the rest are random mixes of techniques, spread evenly over the logarithm of
predicted KL. The most telling come first: the ends of the range, then the middles of what is left.

How many answers a nat changes differs from network to network: 0.02 nats are 2 % of a MobileNet's and 10 % of
ResNet-56's, where errors of many layers meet. Two scouts find out, so that the others lie where there is something left
to lose: from one changed answer in a hundred to six in ten.

With repair also what one slider for all layers makes, just as its step makes it: at the same KL it loses less than the
allocation's plans, which take most where the table happens to be too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from core.allocate import Allocation
from core.catalog import CATALOG
from core.choices import Choices
from core.engine.sensitivity import rows_of
from core.errors import StudioError
from core.layers import Profile
from core.plan import key_levels, plan_of, plan_rows, steps_of
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, Key, Plan, SensitivityTable, severity, sum_kl
from core.spending import KINDS

Settings = frozenset[tuple[Key, float]]
COUNT = 16  # fewer leave the interval useless
SCOUTED = (0.02, 0.1)  # summed KL in nats of the scouts
REACH = (0.01, 0.6)  # of the answers that change, between which plans lie
LIMITS = (0.0005, 3.0)  # nats, however few or many that are
RANGE = (0.02, 1.0)  # nats, where there are no scouts
MENDED_RANGE = (0.01, 2.0)  # the same; pruned weights stand more where the rest is solved again
MENDED = ("prune_channels", "factorize", "prune_weights")  # the techniques that repair
ATTEMPTS = 8  # at a random plan that is not there yet
AT_ONCE = 2  # techniques of a random plan that is repaired: each repairs the whole network
SHARE_LEFT = 0.4  # of the layers that a random plan leaves alone, per technique group
PATHS = {  # kind of cost, technique, plans on the path, how many of them get rivals; without repair and with
    False: (("macs", "prune_channels", 3, 0), ("weight_bytes", "quantize", 3, 1)),
    True: (("macs", "prune_channels", 3, 1), ("weight_bytes", "factorize", 2, 0)),
}
SLIDERS = (  # technique, what its slider for all layers is set to
    ("prune_channels", 0.25), ("prune_channels", 0.4), ("factorize", 0.375), ("prune_weights", 0.5),
    ("prune_weights", 0.7),
)  # fmt: skip
UNIFORM = {"prune_channels": tuple(i / 40 for i in range(1, 39))}  # finer than the table's own levels


def scouts(profile: Profile, table: SensitivityTable) -> list[Plan]:
    """Random mixes of little and of some divergence, the same every time."""
    rng, found = np.random.default_rng(0), dict[Settings, Plan]()
    for aim in SCOUTED:
        _add_random(found, profile, table, aim, rng)
    return list(found.values())


def reach(scouted: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Nats between which plans of a network lie whose scouts, of so many nats, changed this share of the answers, if
    answers change in proportion."""
    known = [share / kl for kl, share in scouted if share > 0 and kl > 0]
    if not known:
        return RANGE
    pace = float(np.exp(np.mean(np.log(known))))
    low, high = np.clip(np.array(REACH) / pace, *LIMITS)
    return float(low), float(high)


def calibration_plans(
    profile: Profile,
    table: SensitivityTable,
    mended: bool = False,
    within: tuple[float, float] | None = None,
    besides: Sequence[Plan] = (),
) -> list[Plan]:
    """The same plans every time, for the same table: COUNT of them together with those that are there `besides`."""
    rng, within = np.random.default_rng(1), within or (MENDED_RANGE if mended else RANGE)
    there: dict[Settings, Plan] = {_settings(plan): plan for plan in besides}
    plans = path_plans(profile, table, within, mended) + (of_sliders(profile) if mended else [])
    found = there | {_settings(plan): plan for plan in plans[: COUNT - len(there)]}
    for aim in np.geomspace(*within, COUNT - len(found)):
        techniques = rng.permutation(MENDED)[:AT_ONCE].tolist() if mended else tuple(LEVELS)
        _add_random(found, profile, table, float(aim), rng, techniques)
    plans = [plan for settings, plan in found.items() if settings not in there]
    plans.sort(key=lambda plan: sum_kl(table, plan)[0])
    return [plans[i] for i in spread_first(len(plans))]


def _add_random(
    found: dict[Settings, Plan],
    profile: Profile,
    table: SensitivityTable,
    aim: float,
    rng: np.random.Generator,
    techniques: Sequence[str] = tuple(LEVELS),
) -> None:
    """One more plan; in a tiny network one may be drawn twice, or change nothing."""
    for _ in range(ATTEMPTS):
        plan = random_plan(profile, table, aim, rng, techniques)
        if _settings(plan) and _settings(plan) not in found:
            found[_settings(plan)] = plan
            break


def of_sliders(profile: Profile) -> list[Plan]:
    """What one slider makes of all layers: widths in blocks, the answer's layer and what would not get smaller left."""
    plans = (plan_of(profile, recipe)[0] for recipe in _recipes())
    return [plan for plan in plans if _settings(plan)]


def steps_for(profile: Profile, plan: Plan) -> tuple[Step, ...]:
    """The steps that make a plan: those of a slider where it is one's, which ranks weights over the whole network."""
    for recipe in _recipes():
        if _settings(plan_of(profile, recipe)[0]) == _settings(plan):
            return recipe.steps
    return steps_of(plan)


def _recipes() -> list[Recipe]:
    return [Recipe((Step(key, {str(CATALOG[key].dial): level}),)) for key, level in SLIDERS]


def _settings(plan: Plan) -> Settings:
    """What a plan changes: two with the same are one."""
    return frozenset(key_levels(plan_rows(plan)).items())


def spread_first(count: int) -> list[int]:
    """0 … count - 1: both ends, then each next one in the middle of a widest gap.

    >>> spread_first(7)
    [6, 0, 3, 2, 5, 1, 4]
    """
    order, gaps = [count - 1, 0][:count], [(1, count - 1)]
    while gaps:
        first, last = gaps.pop(0)
        if first < last:
            middle = (first + last) // 2
            order.append(middle)
            gaps += [(first, middle), (middle + 1, last)]
    return order


def random_plan(
    profile: Profile,
    table: SensitivityTable,
    kl: float,
    rng: np.random.Generator,
    techniques: Sequence[str] = tuple(LEVELS),
) -> dict[Key, float]:
    """A mix of techniques over random layers and groups, whose summed KL is near `kl` (nats) and not above it."""
    rows = [(name, technique) for technique in techniques for name in rows_of(profile, technique)]
    rng.shuffle(rows)
    plan: dict[Key, float] = {}
    taken: set[str] = set()
    left = kl
    for name, technique in rows:
        key = (str(name), str(technique))
        if (key[0] in taken and technique != "quantize") or rng.random() < SHARE_LEFT:
            continue
        share = left * rng.beta(1, 4)
        fitting = [x for x in LEVELS[technique] if (table.kl(*key, x) or np.inf) <= share]
        if fitting:
            plan[key] = max(fitting, key=lambda x: table.kl(*key, x) or 0.0)
            taken.add(key[0])
            left -= table.kl(*key, plan[key]) or 0.0
    return plan


def path_plans(profile: Profile, table: SensitivityTable, within: tuple[float, float], mended: bool) -> list[Plan]:
    """Plans of the allocation's own: falling MACs by channels; falling bytes by bits, or by rank where they mend."""
    plans: list[Plan] = []
    low, high = within
    for kind, technique, wanted, compared in PATHS[mended]:
        if not rows_of(profile, technique):
            continue
        choices = Choices(profile, table, {technique: LEVELS[technique]})
        if not choices.items({}):  # nothing of it is measured
            continue
        inside = [a for a in choices.front(kind, 256) if low <= a.loss <= high]
        found = spread(inside, wanted)
        plans += [a.levels for a in found]
        for allocation in found[1 : 1 + compared]:
            plans += rivals(choices, technique, kind, allocation.costs[KINDS.index(kind)])
    return plans


def spread(found: Sequence[Allocation], count: int) -> list[Allocation]:
    """`count` of them, evenly spaced in the logarithm of their loss, smallest loss first."""
    found = sorted(found, key=lambda a: a.loss)
    if len(found) <= count:
        return found
    x = np.log([a.loss for a in found])
    aims = np.linspace(x.min(), x.max(), count)
    return [found[i] for i in dict.fromkeys(int(np.abs(x - aim).argmin()) for aim in aims)]


def rivals(choices: Choices, technique: str, kind: str, budget: float) -> list[Plan]:
    """The same level everywhere and the plan of least weight error, each within the budget."""
    plans: list[Plan] = []
    levels = UNIFORM.get(technique, choices.levels[technique])
    for level in sorted(levels, key=lambda x: severity(technique, x)):
        plan = {(name, technique): float(level) for name in rows_of(choices.profile, technique)}
        if choices.cost_of(plan)[KINDS.index(kind)] <= budget:
            plans.append(plan)
            break
    with suppress(StudioError):  # no plan is that small
        plans.append(Choices(choices.profile, by_weights(choices.table), choices.levels).spend({kind: budget}).levels)
    return plans


def by_weights(table: SensitivityTable) -> SensitivityTable:
    """The table with the weight error in the place of KL, of the cells that have both."""
    return SensitivityTable(
        table.about,
        {
            key: replace(cell, kl=max(cell.weight_error, 1e-12))
            for key, cell in table.cells.items()
            if cell.kl is not None and cell.weight_error is not None
        },
    )
