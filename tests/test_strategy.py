"""What is asked for, with trials that a formula answers: no network, no file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.errors import StudioError
from core.latency_table import FLOAT, INTEGER, LatencyTable, Operator
from core.predict import costs, shape_of
from core.recipe import Recipe, Step
from core.sensitivity_table import Cell, SensitivityTable
from core.strategy import DONE, RATIOS, Goal, Strategy, Trial
from tests.forecasts import make_table
from tests.profiles import resnet

PROFILE = resnet(1)
Answers = Callable[[Recipe, float], tuple[float, float]]  # recipe, its share of the MACs → loss, gain


def play(
    answers: Answers,
    goal: Goal | None = None,
    training: Step | None = None,
    table: SensitivityTable | None = None,
    times: Callable[[str], LatencyTable | None] = lambda kind: None,
) -> tuple[list[Trial], str]:
    """All trials, the best kept by the largest gain, and why it ended."""
    goal = goal or Goal(0.005)
    asking = Strategy(PROFILE, goal, lambda: table, lambda: training, times).ask()
    trials: list[Trial] = []
    best, recipe = 1.0, next(asking)
    while True:
        macs = costs(PROFILE, recipe).macs / PROFILE.macs
        loss, gain = answers(recipe, macs)
        kept = loss <= goal.drop and gain > best * 1.02
        best = gain if kept else best
        trials.append(Trial(recipe, loss, gain, loss <= goal.drop, kept))
        assert len(trials) < 60
        try:
            recipe = asking.send(trials[-1])
        except StopIteration as stop:
            return trials, stop.value


def names(trial: Trial) -> list[str]:
    return [step.technique for step in trial.recipe.steps]


def smooth(recipe: Recipe, macs: float) -> tuple[float, float]:
    """Speed follows the MACs, int8 doubles it; up to 30 % of the MACs go for nothing."""
    return max(0.0, 0.7 - macs) / 10, (2 if "quantize" in str(recipe) else 1) / macs


def test_int8_alone_comes_first_and_the_strongest_pruning_within_the_loss_is_found() -> None:
    trials, reason = play(smooth)
    assert names(trials[0]) == ["quantize"]
    assert reason == DONE
    best = max((t for t in trials if t.kept), key=lambda t: t.gain)
    assert names(best) == ["prune_channels", "quantize"]
    uniform = [Recipe((Step("prune_channels", {"ratio": ratio}),)) for ratio in RATIOS]
    shares = [costs(PROFILE, recipe).macs / PROFILE.macs for recipe in uniform]
    assert costs(PROFILE, best.recipe).macs / PROFILE.macs == min(s for s in shares if s >= 0.65)  # loss 0.005 at 0.65
    assert any(not t.within for t in trials)  # stronger was tried and refused
    assert len({t.recipe.id for t in trials}) == len(trials)


def test_the_exact_plan_of_a_budget_comes_instead_of_even_shares_where_sensitivity_is_known() -> None:
    """Of two groups one is a hundred times as sensitive: only the other is cut at first."""
    groups = [group.name for group in PROFILE.groups if not group.blocked]
    cells = {
        (name, "prune_channels", level): Cell(
            name, "prune_channels", level, kl=level**2 * (1 if name == groups[0] else 0.01)
        )
        for name in groups
        for level in (0.25, 0.5, 0.75)
    }
    trials, _ = play(smooth, table=SensitivityTable({}, cells))
    pruned = [t.recipe.steps[0] for t in trials if "prune_channels" in names(t)]
    assert pruned
    assert all(step.record.ratio == 0 and step.layers for step in pruned)
    assert any(not step.layers.get(groups[0]) for step in pruned)


def flat(kinds: list[str]) -> Callable[[str], LatencyTable]:
    """Operators of the kind asked for take 1 ms at any width, those of the other kind as long as their MACs."""

    def times(kind: str) -> LatencyTable:
        kinds.append(kind)
        grid = [
            shape_of(x, a, b) for x in PROFILE.tunable for a in widths(x.in_channels) for b in widths(x.out_channels)
        ]
        other = FLOAT if kind == INTEGER else INTEGER
        return LatencyTable({Operator(s, kind): 1.0 for s in grid} | {Operator(s, other): s.macs / 1e6 for s in grid})

    return times


def widths(channels: int) -> list[int]:
    return [channels] if channels < 16 else [channels // 4, channels // 2, channels]


def test_speed_is_planned_by_the_milliseconds_of_the_number_type_and_only_removed_branches_save_any() -> None:
    """Where every width takes as long, a budget of milliseconds removes branches whole and narrows nothing."""
    sensitive = make_table(PROFILE)
    gone = {(g.name, "prune_channels", 1.0) for g in PROFILE.groups if g.branch}
    cells = sensitive.cells | {key: Cell(*key, kl=1.0) for key in gone}
    for number_type, quick in ((INTEGER, 2), (FLOAT, 0.5)):
        kinds: list[str] = []
        trials, _ = play(
            lambda recipe, macs, quick=quick: (0.0, (quick if "quantize" in str(recipe) else 1) / macs),
            table=SensitivityTable({}, cells),
            times=flat(kinds),
        )
        plans = [step for t in trials for step in t.recipe.steps if step.technique == "prune_channels"]
        assert kinds == [number_type]
        assert plans
        assert all(set(step.layers.values()) <= {0.0, 1.0} for step in plans)
        strongest = max(plans, key=lambda step: sum(step.layers.values()))
        assert (
            sum(strongest.layers.values()) == 3
        )  # every block's branch: 8 of 10 operators were theirs or the stream's
        assert not any(step.technique == "factorize" for t in trials for step in t.recipe.steps)  # two for one: slower


def test_smaller_files_and_fewer_macs_ask_for_no_times() -> None:
    kinds: list[str] = []
    for objective in ("size", "macs"):
        play(smooth, Goal(0.005, objective), times=flat(kinds))
    assert kinds == []


def test_float_is_kept_where_int8_is_slower() -> None:
    trials, _ = play(lambda recipe, macs: (0.0, (0.7 if "quantize" in str(recipe) else 1) / macs))
    assert [names(t) for t in trials[:1]] == [["quantize"]]
    assert all("quantize" not in names(t) for t in trials[1:])
    assert any(t.kept for t in trials[1:])


def test_a_gentler_calibration_is_tried_where_int8_loses_too_much() -> None:
    trials, _ = play(lambda recipe, macs: (0.02 if "minmax" in str(recipe.steps[-1].record) else 0.0, 2.0))
    assert [dict(t.recipe.steps[-1].options) for t in trials[:2]] == [{}, {"calibration": "auto"}]
    assert all(t.recipe.steps[-1].options.get("calibration") == "auto" for t in trials[1:])


def test_a_ladder_that_gains_nothing_is_left_at_once() -> None:
    """Every pruned or factorized model is slower than int8 alone and loses too much: one trial for each family."""
    trials, _ = play(lambda recipe, macs: (0.0, 2.0) if len(recipe.steps) == 1 else (0.5, 1.0))
    assert [names(t)[0] for t in trials] == ["quantize", "prune_channels", "factorize"]


def test_training_is_asked_for_only_where_there_is_time() -> None:
    assert all("distill" not in names(t) for t in play(smooth)[0])

    def won_back(recipe: Recipe, macs: float) -> tuple[float, float]:
        loss, gain = smooth(recipe, macs)
        return (0.0 if "distill" in str(recipe) and macs > 0.3 else loss), gain

    trials, _ = play(won_back, training=Step("distill", {"epochs": 3}))
    trained = [t for t in trials if "distill" in names(t)]
    assert all(t.recipe.steps[1].record.epochs == 3 for t in trained)
    best = max((t for t in trials if t.kept), key=lambda t: t.gain)
    assert names(best) == ["prune_channels", "distill", "quantize"]
    assert costs(PROFILE, best.recipe).macs / PROFILE.macs < 0.5


def test_macs_need_no_number_type_and_size_compares_two() -> None:
    trials, _ = play(smooth, Goal(0.005, "macs"))
    assert all(not {"quantize", "quantize_weights"} & set(names(t)) for t in trials)
    trials, _ = play(lambda recipe, macs: (0.0, 8.0 if "quantize_weights" in str(recipe) else 4.0), Goal(0.005, "size"))
    assert [names(t) for t in trials[:2]] == [["quantize"], ["quantize_weights"]]
    assert all(names(t)[-1] == "quantize_weights" for t in trials[2:])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"objective": "beauty"}, "received 'beauty', accepted are latency, size, macs"),
        ({"drop": 1.5}, "allowed loss is 150 points; accepted are 0 to below 100"),
        ({"minutes": 0.0}, "0 minutes; accepted is more than 0"),
    ],
)
def test_a_goal_that_cannot_be_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(StudioError, match=sentence):
        Goal(**{"drop": 0.01, **wrong})  # type: ignore[arg-type]
