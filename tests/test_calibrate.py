"""Whole-network plans: where they lie, what they lose, and the job that leaves a forecast in the workspace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.choices import Choices
from core.engine import calibrate as measuring
from core.engine import latency_job
from core.engine.calibrate import calibrate, lost, measure_plan, mend
from core.engine.calibration_plans import (
    COUNT,
    LIMITS,
    RANGE,
    calibration_plans,
    of_sliders,
    random_plan,
    reach,
    rivals,
    scouts,
    steps_for,
)
from core.engine.data import Images, make_data, to_tensor
from core.engine.data_sets import save_data
from core.engine.formats import onnx_writer
from core.engine.graph import trace
from core.engine.judge import Unseen
from core.engine.latency_table import operators_of
from core.engine.models import Model, open_model
from core.engine.perturb import Network, describe
from core.engine.profile import profile
from core.engine.sensitivity import settings
from core.engine.sensitivity_job import measure_sensitivity
from core.engine.tasks import bring_model, measure
from core.engine.telling import answers
from core.engine.worker import KINDS
from core.errors import Cancelled
from core.forecast import load
from core.measured_plans import JUDGE
from core.plan import key_levels, plan_rows, steps_of
from core.recipe import Recipe, Step
from core.recipe_latency import load_latency, predict_latency
from core.sensitivity_table import LEVELS, Cell, SensitivityTable, read_lines, severity, sum_kl
from core.workspace import Workspace

CARD = ModelCard("tiny", "Tiny", (3, 8, 8), tuple("abc"))


def make_net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    net, file = make_net(), tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx_writer.export(net, CARD, file)
    return describe(net, CARD, profile(Model(net, CARD), file), Images(np.zeros((0, 8, 8, 3), np.uint8), None))


def make_table(network: Network) -> SensitivityTable:
    """KL of 3 × severity²; of single precision bits, 30 ×."""
    cells = {}
    for (name, technique), level in settings(network.profile):
        kl = (30 if technique == "quantize" else 3) * severity(technique, level) ** 2
        cells[name, technique, level] = Cell(name, technique, level, kl=kl)
    return SensitivityTable({}, cells)


def pictures(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def test_random_plans_reach_for_their_divergence(network: Network) -> None:
    table, rng = make_table(network), np.random.default_rng(0)
    for aim in (0.5, 5.0):
        found = [sum_kl(table, random_plan(network.profile, table, aim, rng)) for _ in range(20)]
        assert all(kl <= aim * (1 + 1e-9) and not missing for kl, missing in found)
        assert np.median([kl for kl, _ in found]) > aim / 10
    assert len({technique for _ in range(20) for _, technique in random_plan(network.profile, table, 5.0, rng)}) == 4


def test_calibration_spans_the_range_and_is_the_same_every_time(network: Network) -> None:
    table = make_table(network)
    plans = calibration_plans(network.profile, table)
    assert len(plans) == COUNT
    assert plans == calibration_plans(network.profile, table)
    kl = [sum_kl(table, plan)[0] for plan in plans]
    assert min(kl) < 10 * RANGE[0]
    assert RANGE[1] / 4 < max(kl) <= RANGE[1]


def test_scouts_tell_where_the_others_lie() -> None:
    """One answer in a hundred for each hundredth of a nat, then five of them."""
    assert reach([(0.02, 0.02), (0.1, 0.1)]) == pytest.approx((0.01, 0.6))
    assert reach([(0.02, 0.05), (0.1, 1.0)]) == pytest.approx((0.002, 0.12))  # 2.5 and 10 in a hundred: 5
    assert reach([(0.02, 0.0), (0.1, 0.1)]) == pytest.approx((0.01, 0.6))
    assert reach([(0.02, 0.0), (0.1, 0.0)]) == RANGE
    assert reach([(0.02, 1e-9)]) == (LIMITS[1], LIMITS[1])


@pytest.mark.parametrize("share", [0.5, 0.002])
def test_the_others_lie_where_there_is_something_to_lose(
    share: float, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, table, (x, y) = tmp_path / "calibration.jsonl", make_table(network), pictures(40)
    found = {"agreement": share, "expected_agreement": share, "accuracy": share, "expected_accuracy": share}
    monkeypatch.setattr(measuring, "measure_plan", lambda *_: found)
    calibrate(network, table, x, y, path, {})
    _, *rows = read_lines(path)
    first = [key_levels(row["plan"]) for row in rows[:2]]
    assert first == [key_levels(plan_rows(plan)) for plan in scouts(network.profile, table)]
    low, high = reach([(row["kl"], share) for row in rows[:2]])
    kl = sorted(row["kl"] for row in rows[2:])
    assert low < np.median(kl) < high
    assert read_lines(path)[0]["finished"]
    calibrate(network, table, x, y, path, {})  # nothing is left to measure
    assert read_lines(path)[1:] == rows


def test_where_nothing_can_be_planned_nothing_is_left_to_measure(network: Network, tmp_path: Path) -> None:
    path, (x, y) = tmp_path / "calibration.jsonl", pictures(40)
    assert calibrate(network, SensitivityTable({}, {}), x, y, path, {}) == []
    assert read_lines(path) == [{"about": {"judge": JUDGE}, "finished": True}]


def test_each_plan_is_measured_once_and_the_first_ones_span_the_range(network: Network) -> None:
    table = make_table(network)
    for mended in (False, True):
        plans = calibration_plans(network.profile, table, mended=mended)
        settings = {frozenset(key_levels(plan_rows(plan)).items()) for plan in plans}
        assert len(settings) == len(plans)
        assert COUNT // 2 < len(plans) <= COUNT  # a network of three layers has few ways to mend little
        kl = [sum_kl(table, plan)[0] for plan in plans]
        assert (kl[0], kl[1]) == (max(kl), min(kl))
        assert sorted(kl[:6])[1] < sorted(kl)[len(kl) // 2] < sorted(kl[:6])[4]


def test_what_one_slider_makes_is_among_the_repaired_plans(network: Network) -> None:
    """Widths in blocks of 8: of 16 channels 25 % less is 16, 40 % is 8. The layer that answers keeps its rank."""
    found = of_sliders(network.profile)
    plans = calibration_plans(network.profile, make_table(network), mended=True)
    assert [plan in plans for plan in found] == [True] * 4
    assert plan_rows(found[0]) == [["0", "prune_channels", 0.5], ["2", "prune_channels", 0.5]]
    assert found[1] == {("0", "factorize"): 0.375, ("2", "factorize"): 0.375}
    assert found[3] == {(name, "prune_weights"): 0.7 for name in ("0", "2", "5")}
    assert steps_for(network.profile, found[3]) == (Step("prune_weights", {"sparsity": 0.7}),)  # ranked all together
    assert [step.record.scope for step in steps_for(network.profile, {("0", "prune_weights"): 0.7})] == ["layer"]
    assert not any(plan in calibration_plans(network.profile, make_table(network)) for plan in found)


def test_rivals_keep_within_the_budget(network: Network) -> None:
    """The gentlest uniform share that fits, and the least weight error, which here only later layers pay for."""
    table = make_table(network)
    cells = {k: replace(c, weight_error=(c.kl or 0.0) * (9 if c.layer == "0" else 1)) for k, c in table.cells.items()}
    choices = Choices(network.profile, SensitivityTable({}, cells), {"prune_channels": LEVELS["prune_channels"]})
    budget = 0.6 * choices.cost_of({})[0]
    uniform, weights = rivals(choices, "prune_channels", "macs", budget)
    assert max(choices.cost_of(plan)[0] for plan in (uniform, weights)) <= budget
    (level,) = set(uniform.values())
    assert choices.cost_of(dict.fromkeys(uniform, level - 0.0626))[0] > budget  # one channel more is too much
    assert weights["0", "prune_channels"] < weights["2", "prune_channels"]


def test_what_a_plan_loses(network: Network) -> None:
    """Without its last layer's weights every image gets the answer of the largest bias."""
    x, y = pictures(300)
    before = answers(network.module, x)
    assert set(measure_plan(network, {}, x, y, before).values()) == {0.0}
    bias = network.module.get_submodule("5").bias
    assert isinstance(bias, Tensor)
    only, right = int(bias.argmax()), before.argmax(1)
    lost = measure_plan(network, {("5", "prune_weights"): 1.0}, x, y, before)
    assert lost["agreement"] == pytest.approx(float((right != only).double().mean()))
    assert lost["accuracy"] == pytest.approx(float((right == y).double().mean() - (y == only).double().mean()))
    unlabelled = measure_plan(network, {("5", "prune_weights"): 1.0}, x, None, before)
    assert unlabelled.keys() == {"agreement", "expected_agreement"}


def test_calibration_goes_on_after_a_stop(network: Network, tmp_path: Path) -> None:
    path, table, (x, y) = tmp_path / "calibration.jsonl", make_table(network), pictures(40)
    seen: list[str] = []

    def stop_at_five(fraction: float, message: str, **_: object) -> None:
        seen.append(message)
        if len(seen) == 5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        calibrate(network, table, x, y, path, {"images": 40}, stop_at_five)
    assert len(read_lines(path)) == 1 + 4
    assert "finished" not in read_lines(path)[0]
    first = read_lines(path)[1:]
    calibrate(network, table, x, y, path, {"images": 40})
    assert read_lines(path)[1:5] == first
    assert len(read_lines(path)) == 1 + COUNT
    calibrate(network, table, x[:20], y[:20], path, {"images": 20})
    assert {row["images"] for row in read_lines(path)[1:]} == {20}


def test_what_unseen_images_lose_is_kept_where_validation_images_are_known_by_heart(
    network: Network, tmp_path: Path
) -> None:
    """Its own answers as labels: right on all of them, while of unseen images, all barely, it is right on half."""
    path, table, (x, _) = tmp_path / "calibration.jsonl", make_table(network), pictures(200)
    before = answers(network.module, x)
    unseen = Unseen(np.full(1000, 0.001), np.where(np.arange(1000) < 500, 1.0, 0.0))
    calibrate(network, table, x, before.argmax(1), path, {}, unseen=unseen)
    head, *rows = read_lines(path)
    assert head["remembered"] == 1.0
    for row in rows:
        assert row["unseen"] == 1000
        assert row["drop"]["unseen_accuracy"] == pytest.approx(row["drop"]["unseen_agreement"] / 2)
    plan = key_levels(rows[0]["plan"])
    assert rows[0]["drop"] == measure_plan(network, plan, x, before.argmax(1), before, unseen)
    calibrate(network, table, x, before.argmax(1), path, {})  # without them it is another calibration
    head, *rows = read_lines(path)
    assert "remembered" not in head
    assert all("unseen_accuracy" not in row["drop"] and "unseen" not in row for row in rows)


def test_the_job_leaves_a_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RATIOS": (0.5,), "ROUNDS": 1, "SECONDS": 0.001, "WHOLE_SECONDS": 0.01}.items():
        monkeypatch.setattr(latency_job, name, value)
    workspace, rng = Workspace(tmp_path / "home"), np.random.default_rng(0)
    y = np.arange(400) % 3
    x = rng.integers(0, 80, (400, 8, 8, 3)).astype(np.uint8) + (y * 80)[:, None, None, None].astype(np.uint8)
    data = make_data("shades", Images(x, y.astype(np.int64)), None, tuple("abc"))
    workspace.folder("data", "shades").mkdir()
    save_data(data, workspace.folder("data", "shades"))
    file = tmp_path / "tiny.onnx"
    onnx_writer.export(make_net(), CARD, file)
    source = {"kind": "file", "path": str(file), "classes": ["a", "b", "c"]}
    model = open_model(source)
    name = bring_model(workspace, source, model, lambda *_: None)
    assert load(workspace, name, "shades") is None
    measure(workspace, name, model, "shades", data, lambda *_: None)
    seen: list[float] = []
    made = measure_sensitivity(workspace, name, "shades", lambda fraction, *_, **__: seen.append(fraction))
    assert seen == sorted(seen)
    forecast = load(workspace, name, "shades")
    assert forecast is not None
    assert forecast.finished
    plans = [len(calibration_plans(forecast.profile, forecast.table, mended=mended)) for mended in (False, True)]
    assert made == {"cells": len(settings(forecast.profile)), "plans": sum(plans)}
    assert [sum(p.repaired is r for p in forecast.points) for r in (False, True)] == plans
    rows = read_lines(workspace.folder("models", name) / "calibration-shades.jsonl")
    row = max((r for r in rows[1:] if r["repaired"]), key=lambda r: r["drop"]["agreement"])
    x, y = to_tensor(data.validation.x, model.card), torch.from_numpy(data.validation.y)
    mended = mend(steps_for(forecast.profile, key_levels(row["plan"])), model, data, tmp_path)
    assert row["drop"] == lost(answers(mended, x), y, answers(model.module, x))
    times = load_latency(workspace, name)
    assert times is not None
    assert set(times.times) == set(operators_of(workspace.profile(name)))
    speed = predict_latency(workspace.profile(name), Recipe(), times)
    assert speed.latency_ms is not None
    assert 0 < speed.latency_ms < 100
    assert speed.original_ms == times.original_ms, "the uploaded file's own time"
    found = forecast.predict(Recipe((Step("quantize"),)))
    assert found.value is not None
    assert found.low is not None
    assert found.low <= found.value <= (found.high or 0)
    again: list[str] = []
    KINDS["sensitivity"](workspace, {"model": name, "data": "shades"}, lambda _, message, **__: again.append(message))
    assert not any("at" in message.split() for message in again)  # no cell is measured twice


def test_a_mended_plan_is_what_the_techniques_make(network: Network, tmp_path: Path) -> None:
    """Repaired factors answer more like the original than the settings alone."""
    pixels = Images(np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3)).astype(np.uint8), None)
    data = make_data("noise", pixels, None, tuple("abc"))
    plan = {("2", "factorize"): 0.2, ("5", "prune_weights"): 0.5}
    model = Model(network.module, CARD)
    mended = mend(steps_of(plan), model, data, tmp_path)
    assert isinstance(mended.get_submodule("2"), nn.Sequential)
    assert float((mended.get_submodule("5").weight == 0).double().mean()) == pytest.approx(0.5)  # type: ignore[union-attr]
    x, _ = pictures(200)
    before = answers(network.module, x)
    assert (
        lost(answers(mended, x), None, before)["agreement"] < measure_plan(network, plan, x, None, before)["agreement"]
    )


def test_profile_and_structure_agree(network: Network) -> None:
    """The groups that importance is known for are the profile's open ones."""
    structure = trace(network.module, torch.zeros(1, 3, 8, 8))
    assert set(network.importance) == {group.name for group in structure.open}
