"""What to try next to make a model faster or smaller within an allowed loss. It builds recipes and runs none.

From the surest gain to the dearest: number types alone, then channels and whole residual branches removed by the exact
plan of falling budgets, or evenly where no sensitivity is known, then factors, then training. Each family is a ladder
of recipes from gentle to strong, on which bisection finds the strongest rung that keeps the loss; a rung is asked for
only where it costs less than the best so far.

Costs and budgets are of what is asked for: bytes, MACs, or for speed the milliseconds of the operators that are left,
in the number type of the file. MACs say little there: narrow layers may take as long as wide ones, removed ones none.

    asking = Strategy(profile, goal, table, training).ask()
    recipe = next(asking)
    recipe = asking.send(trial)      # until StopIteration, whose value says why nothing is left to try
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from core.choices import Choices
from core.errors import StudioError
from core.latency_table import FLOAT, INTEGER, LatencyTable
from core.layers import Profile
from core.plan import steps_of
from core.predict import costs
from core.recipe import Recipe, Step
from core.recipe_latency import layer_times
from core.sensitivity_table import LEVELS, SensitivityTable

DROPS = {"accuracy": 0.005, "agreement": 0.02}  # allowed by default; int8 alone changes about 1 % of the answers
TAILS: dict[str, tuple[Step, ...]] = {  # number types by objective, to compare
    "latency": (Step("quantize"),),
    "size": (Step("quantize"), Step("quantize_weights")),
    "macs": (),
}
GENTLER = Step("quantize", {"calibration": "auto"})  # where plain int8 loses too much
RATIOS = tuple(i / 20 for i in range(1, 17))  # of the channels
BUDGETS = tuple(np.geomspace(0.95, 0.2, 16).tolist())  # shares of the original's cost
RANKS = (0.75, 0.6, 0.5, 0.4, 0.3, 0.2)
LESS = 0.97  # a rung must cost at most this share of the best's to be worth a trial
SLOWER = 0.95  # of the best's gain: below it, a difference is more than noise
AIM = 0.7  # of the best's cost, that training is first asked to win back
DONE = "Everything worth trying was tried."


@dataclass(frozen=True)
class Goal:
    """`drop` is the share of images that may be lost: of accuracy, or of agreement without labels."""

    drop: float
    objective: str = "latency"
    minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.objective not in TAILS:
            raise StudioError(f"Unknown objective: received {self.objective!r}, accepted are {', '.join(TAILS)}.")
        if not 0 <= self.drop < 1:
            raise StudioError(f"The allowed loss is {100 * self.drop:g} points; accepted are 0 to below 100.")
        if self.minutes <= 0:
            raise StudioError(f"The time is {self.minutes:g} minutes; accepted is more than 0.")


@dataclass(frozen=True)
class Trial:
    """A recipe that was made and measured on the validation images."""

    recipe: Recipe
    loss: float  # share of the images, expected
    gain: float  # original over this: how many times faster or smaller
    within: bool  # whether the loss is allowed
    kept: bool  # whether it is the best so far


Asking = Generator[Recipe, Trial, str]
Answer = Generator[Recipe, Trial, None]


class Strategy:
    """Asks for trials. `table` measures the sensitivity of channels, about as long as one trial, or returns None;
    `training` is the step that there is time for, or None; `times` measures this machine's operators of a number type,
    or returns None, and then speed is planned by MACs."""

    def __init__(
        self,
        profile: Profile,
        goal: Goal,
        table: Callable[[], SensitivityTable | None],
        training: Callable[[], Step | None],
        times: Callable[[str], LatencyTable | None] = lambda kind: None,
    ) -> None:
        self.profile, self.goal, self.table, self.training, self.times = profile, goal, table, training, times
        self.kind = "weight_bytes" if goal.objective == "size" else "macs"
        self.operators: LatencyTable | None = None  # of the chosen number type, once it is known
        self.tail: tuple[Step, ...] = ()
        self.least = 1.0  # cost of the cheapest steps before the tail that kept the loss, a share of the original's
        self.gain = 1.0  # of the best so far
        self.plans: list[Step] = []  # ways to remove channels, from gentle to strong
        self.seen: dict[str, Trial] = {}  # by the recipe's id

    def ask(self) -> Asking:
        yield from self._choose_tail()
        if self.goal.objective == "latency":
            kind = INTEGER if self.tail else FLOAT
            found = self.times(kind)
            self.operators = found and found.all_in(kind)
        yield from self._climb(self._allocated() or [Step("prune_channels", {"ratio": ratio}) for ratio in RATIOS])
        yield from self._climb([Step("factorize", {"rank": rank}) for rank in RANKS])
        yield from self._train()
        return DONE

    def cost(self, *steps: Step) -> float:
        """What steps leave of the objective's cost, as a share of the original's: counted, or read from the table."""
        return self._amount(Recipe(steps)) / self._amount(Recipe())

    def _amount(self, recipe: Recipe) -> float:
        if self.operators:
            return max(0.0, self.operators.whole(sum(layer_times(self.profile, recipe, self.operators).values())))
        return float(getattr(costs(self.profile, recipe), self.kind))

    def _try(self, *steps: Step) -> Generator[Recipe, Trial, Trial]:
        recipe = Recipe((*steps, *self.tail))
        if recipe.id not in self.seen:
            trial = self.seen[recipe.id] = yield recipe
            self.gain = trial.gain if trial.kept else self.gain
        return self.seen[recipe.id]

    def _choose_tail(self) -> Answer:
        """The number type that gains most within the loss; none where float is better."""
        options = TAILS[self.goal.objective]
        found: tuple[Step, ...] = ()
        for step in options:
            self.tail = (step,)
            trial = yield from self._try()
            if not trial.within and step == options[0]:
                self.tail = (GENTLER,)
                trial = yield from self._try()
            found = self.tail if trial.kept else found
        self.tail = found

    def _climb(self, rungs: Sequence[Step]) -> Answer:
        """Find the strongest rung that keeps the loss."""
        ladder = self._ladder(rungs)
        if ladder and ladder[0].technique == "prune_channels":
            self.plans = ladder
        low, high, at = -1, len(ladder), len(ladder) // 4
        while high - low > 1:
            trial = yield from self._try(ladder[at])
            if trial.within:
                low, self.least = at, min(self.least, self.cost(ladder[at]))
            elif trial.gain < SLOWER * self.gain:
                return  # even this strong it gains nothing over the best, so gentler ones do not either
            else:
                high = at
            at = (low + high) // 2

    def _ladder(self, rungs: Sequence[Step]) -> list[Step]:
        """The rungs that are worth a trial, each cheaper than the one before."""
        ladder: list[Step] = []
        bound = LESS * self.least
        for step in sorted(rungs, key=self.cost, reverse=True):
            if self.cost(step) <= bound:
                ladder.append(step)
                bound = LESS * self.cost(step)
        return ladder

    def _allocated(self) -> list[Step]:
        """Channels by the exact plan of falling budgets; nothing where no sensitivity is known."""
        table = self.table()
        if table is None or not any(key[1] == "prune_channels" for key in table.curves):
            return []
        levels = {"prune_channels": LEVELS["prune_channels"]}
        choices, steps = Choices(self.profile, table.repaired, levels, latency=self.operators, multiple=8), []
        kind = "latency_ms" if self.operators else self.kind
        whole = choices.of(kind, {})
        for share in BUDGETS:
            try:
                plan = choices.spend({kind: share * whole}).levels
            except StudioError:  # smaller than the smallest plan, and so are the rest
                break
            steps += [step for step in steps_of(plan) if step.technique == "prune_channels"]
        return steps

    def _train(self) -> Answer:
        """Cut more than the loss allows and let training win it back; halve the step where it does not."""
        share = AIM
        while share < LESS:
            step, cut = self.training(), self._cut_to(share * self.least)
            if step is None or cut is None:
                return
            trial = yield from self._try(cut, step)
            if trial.within:
                self.least = self.cost(cut)
            else:
                share = sqrt(share)

    def _cut_to(self, cost: float) -> Step | None:
        """The gentlest plan that costs at most so much, or the strongest there is; None where none is cheaper."""
        fitting = [step for step in self.plans if self.cost(step) <= cost]
        last = self.plans[-1:] if self.plans and self.cost(self.plans[-1]) <= LESS * self.least else []
        return next(iter([*fitting, *last]), None)
