"""Maps, intervals and plans by hand; a forecast read back from a workspace."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from core.calibration import ERROR, Calibration, Point, half_width
from core.candidate import Candidate, Scores, Share
from core.cards import ModelCard
from core.errors import RecipeError
from core.forecast import Forecast, load, rank
from core.layers import Feed, Group, Layer, Profile
from core.measured_plans import calibration_point
from core.plan import RANKED, TRAINED, plan_of, plan_rows, steps_of
from core.recipe import Recipe, Step
from core.sensitivity_table import LEVELS, Cell, Plan, SensitivityTable, append_lines, row_of, severity, sum_kl
from core.workspace import Workspace, write_json


def layer(name: str, kind: str, c_in: int, c_out: int, feed: str) -> Layer:
    params = c_in * c_out * (9 if kind == "conv" else 1)
    size, kernel = ((8, 8), (3, 3)) if kind == "conv" else ((), (1, 1))
    macs = params * (64 if kind == "conv" else 1)
    shape = (c_out, *size)
    return Layer(
        name, kind, params, macs, c_in, c_out, kernel, 1, False, shape, 0, name, (Feed(feed),), None, (c_in, *size)
    )


PROFILE = Profile(
    (layer("a", "conv", 3, 32, "input"), layer("b", "conv", 32, 64, "a"), layer("c", "linear", 64, 10, "b")),
    (
        Group("input", 3, (), "The image."),
        Group("a", 32, ("a",)),
        Group("b", 64, ("b",)),
        Group("c", 10, ("c",), "The classes."),
    ),
    0, 0, 0, 0, 0,
)  # fmt: skip


def make_table(profile: Profile, scale: float = 1.0) -> SensitivityTable:
    """KL = scale × severity² everywhere, which the square and power laws read back exactly."""
    cells = {}
    for technique, levels in LEVELS.items():
        for x in profile.layers:
            for level in levels:
                kl = scale * severity(technique, level) ** 2
                cells[x.name, technique, level] = Cell(x.name, technique, level, kl=kl)
    return SensitivityTable({}, cells)


TABLE = make_table(PROFILE)


def points(count: int, noise: float = 0.0) -> tuple[Point, ...]:
    """Losses 0.05 × KL, with alternating noise."""
    kl = np.geomspace(0.01, 10, count)
    return tuple(Point(float(k), float(0.05 * k + noise * (-1) ** i), "calibration") for i, k in enumerate(kl))


def test_the_interval_is_the_conformal_quantile() -> None:
    """Of 10 errors the 11 × 0.8 = 8.8th; of 4 the 4th; of 3 it would be the 3.2nd, so the largest."""
    assert half_width(np.arange(1.0, 11.0)) == pytest.approx(8.8)
    assert half_width(np.array([3.0, 1.0, 2.0, 7.0])) == 7.0
    assert half_width(np.array([3.0, 1.0, 2.0])) == 3.0


def test_the_interval_grows_with_the_loss() -> None:
    """Ten points whose left-out errors are half of what one would expect: so is the half-width."""
    counted = tuple(replace(p, error=0.001 + p.drop / 10) for p in points(10))
    known = Calibration(counted)
    assert known.scale(np.array(0.0)) == pytest.approx(np.hypot(counted[0].error, 0.0))
    middle = (counted[3].error ** 2 + counted[4].error ** 2) / 2, (counted[3].drop + counted[4].drop) / 2
    assert known.scale(np.array(middle[1])) == pytest.approx(np.sqrt(middle[0] + (0.3 * middle[1]) ** 2))
    known.__dict__["left_out"] = np.geomspace(0.001, 0.09, 10)
    known.drop[:] = known.left_out + 0.5 * known.scale(known.left_out)
    assert known.width(0.02) == pytest.approx(0.5 * float(known.scale(np.array(0.02))))
    assert known.width(0.08) == pytest.approx(0.5 * float(known.scale(np.array(0.08))))
    assert known.width(0.08) > 2 * known.width(0.02) > 0
    assert Calibration(points(10)).scale(np.array(0.0)) == pytest.approx(ERROR)  # nothing said how many images


def test_the_interval_has_the_noise_of_the_images_that_will_be_counted() -> None:
    """Half-width 3 by plans whose count is 1 point off: 80 % of its noise is 1.2816. Over four times the images half of
    that comes in, over a quarter twice that; of plans that say not how many they were counted on nothing."""

    def width(images: int, measured: int = 2000) -> float:
        counted = tuple(replace(p, error=0.01, images=measured) for p in points(10))
        known = Calibration(counted, images)
        known.__dict__["_widths"] = (0.03 / float(known.scale(np.array(0.02))), 1.0)
        return known.width(0.02)

    assert width(0) == width(2000, 0) == pytest.approx(0.03)
    assert width(2000) == pytest.approx(np.hypot(0.03, 0.012816), rel=1e-3)
    assert width(8000) == pytest.approx(np.hypot(0.03, 0.012816 / 2), rel=1e-3)
    assert width(500) == pytest.approx(np.hypot(0.03, 0.012816 * 2), rel=1e-3)


def test_counted_and_expected_losses_are_weighted_by_what_each_may_be_off() -> None:
    """Counted 3 ± 0.4, expected 2 and thus perhaps 0.4 off: the middle. Where nothing can be off, the count."""
    assert Point(1.0, 0.03, "a", error=0.004, expected=0.02).estimate == pytest.approx(0.025)
    assert Point(1.0, 0.03, "a", error=0.0, expected=0.02).estimate == pytest.approx(0.03)
    assert Point(1.0, 0.03, "a", error=0.004).estimate == 0.03


def test_a_measured_plan_becomes_a_point() -> None:
    """Of 2,000 images 4 % changed and 1 % were lost. Of 5,000 unseen ones 9 % are expected to change, 3 % to be lost:
    0.42 points of error as a count, and 0.45, of the loss 15 %, as an expectation."""
    lost = {"agreement": 0.04, "accuracy": 0.01, "expected_accuracy": 0.012}
    row = {"plan": plan_rows({("a", "prune_channels"): 0.5}), "repaired": True, "images": 2000, "drop": lost}
    point = calibration_point(TABLE, row, "accuracy")
    assert point is not None
    assert (point.drop, point.expected, point.images, point.repaired) == (0.01, 0.012, 2000, True)
    assert point.error == pytest.approx(np.sqrt((0.04 - 0.01**2) / 2000))
    known = {**row, "unseen": 5000, "drop": {**lost, "unseen_agreement": 0.09, "unseen_accuracy": 0.03}}
    point = calibration_point(TABLE, known, "accuracy")
    assert point is not None
    assert (point.drop, point.expected, point.images) == (0.03, None, 5000)
    assert point.error == pytest.approx(np.hypot(0.00422, 0.0045), rel=1e-2)
    assert calibration_point(TABLE, {**row, "drop": {"agreement": 0.1}}, "accuracy") is None
    assert calibration_point(TABLE, {**row, "plan": [["gone", "factorize", 0.5]]}, "accuracy") is None


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=9))
def test_ranks_share_ties(values: list[float]) -> None:
    from scipy.stats import rankdata

    np.testing.assert_allclose(rank(np.array(values)), rankdata(values))


def test_prediction_sums_what_each_setting_costs_alone() -> None:
    forecast = Forecast(PROFILE, TABLE, points(16), baseline=0.9)
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5, "repair": False}), Step("quantize")))
    found = forecast.predict(recipe)
    kl = 2 * 0.5**2 + 3 * 2.0 ** (2 * (1 - 8))  # groups a and b at half, three layers at 8 bits
    assert found.kl == pytest.approx(kl)
    assert found.value == pytest.approx(0.9 - 0.05 * kl, abs=0.004)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.9 - 0.05 * kl < found.high
    assert not found.extrapolating
    untouched = forecast.predict(Recipe())
    assert (untouched.value, untouched.low, untouched.high) == (0.9, 0.9, 0.9)


def test_how_channels_add_up_is_read_from_measured_plans() -> None:
    """Roots add up: two layers at the same share lose four times what one does; bits lose what each does alone."""
    plans = [
        {(name, "prune_channels"): x for name in names} for x in (0.1, 0.2, 0.35, 0.5, 0.7) for names in ("a", "ab")
    ]
    plans += [{("a", "quantize"): float(bits), ("b", "quantize"): float(bits)} for bits in (3, 4, 5, 6, 7)]
    true = [sum(kl**0.5 for kl in kls) ** 2 if key == "prune_channels" else sum(kls) for key, kls in map(parts, plans)]
    known = tuple(Point(kl, 0.1 * kl, "calibration", False, plan) for plan, kl in zip(plans, true, strict=True))
    forecast = Forecast(PROFILE, TABLE, known, baseline=0.9)
    assert forecast.ways(False) == {"prune_channels": (1.0, 0.5)}
    assert forecast.predict_plan(plans[2]).kl == pytest.approx(0.2**2)
    assert forecast.predict_plan(plans[3]).kl == pytest.approx(4 * 0.2**2)
    mixed = {**plans[3], ("c", "quantize"): 5.0}
    assert forecast.predict_plan(mixed).kl == pytest.approx(4 * 0.2**2 + 2.0**-8)
    sums = forecast.sums(mixed, False)
    sums["prune_channels"] -= forecast.term(("a", "prune_channels"), 0.2, False)
    assert forecast.total(sums, False) == pytest.approx(0.2**2 + 2.0**-8)


def parts(plan: Plan) -> tuple[str, list[float]]:
    """(technique, KL of each setting) of a plan of one technique."""
    return next(iter(plan))[1], [TABLE.kl(*key, level) or 0.0 for key, level in plan.items()]


def test_repaired_channels_of_several_layers_lose_more_together() -> None:
    """A tenth of theirs counts, and the powers of 0.6 add up; factors are added as they are."""
    levels, both = (0.1, 0.2, 0.35, 0.5, 0.7), ("a", "ab")
    plans = [{(name, "prune_channels"): x for name in names} for x in levels for names in both]
    plans += [{(name, "factorize"): x for name in names} for x in levels for names in both]
    found = [(technique, np.array(kls)) for technique, kls in map(parts, plans)]
    true = [0.1 * (kls**0.6).sum() ** (1 / 0.6) if t == "prune_channels" else kls.sum() for t, kls in found]
    known = tuple(Point(kl, 0.1 * kl, "calibration", True, plan) for plan, kl in zip(plans, true, strict=True))
    ways = Forecast(PROFILE, TABLE, known, baseline=0.9).ways(True)
    assert (ways["prune_channels"], ways["factorize"]) == ((0.1, 0.6), (1.0, 1.0))


def test_what_repair_leaves_of_each_technique_is_read_from_measured_plans() -> None:
    """Pruned channels lose a tenth of what factors of the same KL do; at equal KL both are predicted right."""
    plans = [
        ({("a", technique): level}, share)
        for technique, share in (("prune_channels", 0.1), ("factorize", 1.0))
        for level in (0.2, 0.35, 0.5, 0.65, 0.8)
    ]
    kls = [sum_kl(TABLE, plan)[0] for plan, _ in plans]
    rows = zip(plans, kls, strict=True)
    mended = tuple(Point(kl, 0.2 * share * kl, "calibration", True, plan) for (plan, share), kl in rows)
    known = Forecast(PROFILE, TABLE, mended, baseline=0.9)
    assert known.ways(True)["prune_channels"] == (0.1, 1.0)
    for plan, point in zip(plans, mended, strict=True):
        found = known.predict_plan(plan[0], repair=True)
        assert found.kl == pytest.approx(plan[1] * point.kl)
        assert found.value == pytest.approx(0.9 - point.drop, abs=0.02)


def test_repaired_recipes_have_a_map_of_their_own() -> None:
    """Measured to lose a tenth of what the settings alone cost."""
    mended = tuple(Point(p.kl, p.drop / 10, "calibration", True) for p in points(16))
    forecast = Forecast(PROFILE, TABLE, (*points(16), *mended), baseline=0.9)
    plain, repaired = (
        forecast.predict(Recipe((Step("factorize", {"rank": 0.25, "repair": repair}),))) for repair in (False, True)
    )
    assert plain.kl == repaired.kl
    assert plain.value is not None
    assert repaired.value is not None
    assert 0.9 - plain.value == pytest.approx(10 * (0.9 - repaired.value), rel=0.05)
    assert Forecast(PROFILE, TABLE, points(16), 0.9).predict(Recipe((Step("factorize"),))).value is None


def test_a_plan_becomes_steps_and_back() -> None:
    plan = {
        ("a", "prune_channels"): 0.25,
        ("b", "factorize"): 0.25,
        ("c", "prune_weights"): 0.5,
        ("b", "quantize"): 8.0,
    }
    steps = steps_of(plan)
    assert [step.technique for step in steps] == ["prune_channels", "factorize", "prune_weights", "quantize"]
    assert plan_of(PROFILE, Recipe(steps)) == (plan, [])
    assert steps_of({("a", "quantize"): 32.0}) == ()
    with pytest.raises(RecipeError, match="accepted is 8, 32"):
        steps_of({("a", "quantize"): 4.0})


def test_beyond_the_measured_range_it_says_so() -> None:
    forecast = Forecast(PROFILE, make_table(PROFILE, 40.0), points(16), baseline=0.9)
    assert forecast.predict(
        Recipe((Step("prune_weights", {"sparsity": 0.9, "scope": "layer", "repair": False}),))
    ).extrapolating


def test_no_accuracy_is_below_none() -> None:
    """A binary classifier of which half can be lost, far beyond what was measured."""
    ruined = [Point(kl, min(0.5, 0.3 * kl), "calibration") for kl in np.geomspace(0.05, 2.0, 16).tolist()]
    forecast = Forecast(PROFILE, TABLE, tuple(ruined), baseline=0.5)
    found = [forecast.predict_kl(kl) for kl in (0.5, 10.0, 1000.0)]
    values = [prediction.value or 0.0 for prediction in found]
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 0.5 for value in values)
    assert found[-1].low == 0.0
    assert found[-1].extrapolating


def test_intervals_near_and_far_are_kept_apart() -> None:
    """Errors of 1 point near the original and of 10 far from it."""
    near = [Point(0.01 * 1.2**i, 0.02 + 0.01 * (-1) ** i, "calibration") for i in range(12)]
    far = [Point(5.0 * 1.2**i, 0.5 + 0.1 * (-1) ** i, "calibration") for i in range(12)]
    forecast = Forecast(PROFILE, TABLE, (*near, *far), baseline=0.9)
    small, large = (forecast.predict_plan({("a", "prune_channels"): kl**0.5}) for kl in (0.03, 20.0))
    assert small.high is not None
    assert large.high is not None
    assert small.value is not None
    assert large.value is not None
    assert small.high - small.value < 0.03 < 0.08 < large.high - large.value


def test_rank_only_before_there_are_measurements() -> None:
    found = Forecast(PROFILE, TABLE, points(5), baseline=0.9).predict(Recipe((Step("quantize"),)))
    assert found.value is None
    assert found.kl > 0
    assert "5 of at least 6" in found.reason
    partial = SensitivityTable({}, {k: c for k, c in TABLE.cells.items() if c.layer != "b"})
    missing = Forecast(PROFILE, partial, points(16), 0.9).predict(Recipe((Step("quantize"),)))
    assert missing.value is None
    assert "b is not measured yet" in missing.reason


def test_what_a_plan_leaves_out_is_said() -> None:
    steps = (Step("prune_weights", {"scope": "global"}), Step("distill"))
    assert plan_of(PROFILE, Recipe(steps))[1] == [RANKED, TRAINED]


def test_plans_follow_the_techniques_own_rules() -> None:
    recipe = Recipe(
        (
            Step("prune_channels", {"ratio": 0.3, "multiple": 8}, {"b": 0.0}),
            Step("factorize", {"rank": 0.25}),
            Step("prune_weights", {"sparsity": 0.4, "scope": "layer"}),
            Step("prune_weights", {"sparsity": 0.2, "scope": "layer"}),
            Step("quantize", {}, {"a": 32}),
        )
    )
    plan, _ = plan_of(PROFILE, recipe)
    assert plan["a", "prune_channels"] == 0.25  # 22.4 of 32 channels are left: 24 in blocks of 8
    assert ("b", "prune_channels") not in plan
    assert ("c", "prune_channels") not in plan  # blocked
    assert plan["b", "factorize"] == 0.25
    assert plan["a", "prune_weights"] == 0.4  # the stronger of two steps
    assert ("a", "quantize") not in plan
    assert plan["b", "quantize"] == 8.0


def test_track_judges_each_point_by_the_others() -> None:
    track = Forecast(PROFILE, TABLE, points(16, noise=0.002), 0.9).track()
    assert track is not None
    assert track.count == 16
    assert 0 < track.error < 0.05
    checks = Forecast(PROFILE, TABLE, points(16, noise=0.002), 0.9).checks
    expected = spearmanr([c.predicted for c in checks], [c.point.drop for c in checks])[0]
    assert track.rank_correlation == pytest.approx(expected)
    assert Forecast(PROFILE, TABLE, (), 0.9).track() is None


def share(value: float) -> Share:
    return Share(value, value, value, 100)


def scores(accuracy: float, agreement: float) -> Scores:
    return Scores(share(accuracy), share(agreement), 1, 1, 1, 1, ())


def put(workspace: Workspace, name: str, recipe: Recipe, accuracy: float) -> None:
    folder = workspace.folder("candidates", name)
    folder.mkdir()
    found = Candidate(name, "m", "d", recipe.to_yaml(), name, scores(accuracy, 0.9), (), {}, {}, 0.0, 0.0, {})
    write_json(folder / "candidate.json", found.to_json())


def test_a_workspace_gives_calibration_and_what_was_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.folder("models", "m")
    folder.mkdir()
    assert load(workspace, "m", "d") is None
    write_json(folder / "profile.json", PROFILE.to_json())
    write_json(folder / "card.json", ModelCard("m", "m", (3, 8, 8), ("x",)).to_json())
    write_json(folder / "baseline-d.json", asdict(scores(0.8, 1.0)))
    append_lines(folder / "sensitivity-d.jsonl", [{"model": "m"}, *map(row_of, TABLE.cells.values())])
    plan = [["a", "quantize", 2.0]]
    rows = [{"plan": plan, "drop": {"accuracy": 0.1, "agreement": 0.2}}]
    append_lines(folder / "calibration-d.jsonl", [{"about": {}}, *rows])
    put(workspace, "pruned", Recipe((Step("prune_channels", {"ratio": 0.5, "repair": False}),)), 0.7)
    put(workspace, "trained", Recipe((Step("prune_channels", {"ratio": 0.5, "repair": False}), Step("distill"))), 0.8)
    found = load(workspace, "m", "d")
    assert found is not None
    assert found.baseline == 0.8
    assert [(p.source, pytest.approx(p.drop)) for p in found.points] == [("calibration", 0.1), ("pruned", 0.1)]
    assert found.points[0].kl == pytest.approx(0.25)
    assert found.points[1].kl == pytest.approx(0.5)
    assert log(found.calibration(False).kl.max()) == pytest.approx(log(0.5))


def test_no_interval_reaches_further_above_the_original_than_a_count_may() -> None:
    """Losses that scatter widely give a wide interval, on the side of what is lost."""
    kl = np.geomspace(0.05, 2.0, 12)
    wild = tuple(Point(float(k), float(0.2 * k * (1 + 0.8 * (-1) ** i)), "calibration") for i, k in enumerate(kl))
    forecast = Forecast(PROFILE, TABLE, wild, baseline=0.9)
    found = forecast.predict_kl(1.0)
    assert found.value is not None
    assert found.low is not None
    assert found.high == pytest.approx(0.9 + forecast.calibration(False).width(0.0))
    assert found.value - found.low > found.high - found.value


def test_plans_of_the_same_nats_still_have_an_interval() -> None:
    same = tuple(Point(0.1, 0.01 * i, "calibration") for i in range(6))
    assert Calibration(same).width(0.02) > 0
