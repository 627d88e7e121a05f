"""The search on a tiny real network: what it may see, when it stops, and what is left when it is stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.candidate import Latency
from core.engine import evaluate, judge, latency, optimize_job, tasks, worker
from core.engine.data import Images, make_data
from core.engine.formats import onnx_writer
from core.engine.optimize import Search, judged, trains, uncertainty
from core.errors import Cancelled, ModelError
from core.latency_table import INTEGER, LatencyTable, Operator
from core.ranks import Shape
from core.recipe import Recipe, Step
from core.recipe_latency import latency_path, stand_in
from core.strategy import Goal
from core.workspace import Workspace, write_json
from tests.tiny import CARD, draw, tiny_data, tiny_model

INT8 = Recipe((Step("quantize"),))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "FEWEST", 5)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A workspace with the tiny net and 200 images, labelled and not."""
    root = tmp_path_factory.mktemp("space")
    onnx_writer.export(tiny_model().module, CARD, root / "net.onnx")
    images = draw(200, 5)
    np.savez(root / "pets.npz", x=images.x, y=images.y)
    np.savez(root / "bare.npz", x=draw(200, 6).x)
    space = Workspace(root / "space")
    source = {"kind": "file", "path": str(root / "net.onnx"), "mean": [0.5] * 3, "std": [0.25] * 3}
    found: dict[str, Any] = {"space": space}
    for name in ("pets", "bare"):
        order = {"model": source, "data": {"kind": "file", "path": str(root / f"{name}.npz")}}
        ids = tasks.open_pair(space, order, lambda *_, **__: None)
        source = {"kind": "workspace", "id": ids["model"]}
        found |= {"model": ids["model"], name: ids["data"]}
    return found


class Clock:
    """Time that passes only when the search says that it does something."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        return self.now

    def report(self, fraction: float, message: str, **numbers: object) -> None:
        self.now += self.step


def search(
    opened: dict[str, Any], data: str = "pets", drop: float = 0.05, objective: str = "size", **more: Any
) -> Search:
    space, ids = opened["space"], (opened["model"], opened[data])
    model = tasks.open_model(space, {"kind": "workspace", "id": ids[0]})
    images = tasks.open_data(space, ids[1], model.card)
    return Search(space, ids, model, images, Goal(drop, objective), more.pop("report", lambda *_, **__: None), **more)


def test_a_search_finds_something_smaller_keeps_it_and_the_minutes(opened: dict[str, Any]) -> None:
    heard: list[tuple[float, dict[str, Any]]] = []
    clock = Clock(1.0)

    def report(fraction: float, message: str, **numbers: Any) -> None:
        clock.report(fraction, message)
        heard.append((fraction, numbers))

    order = {"model": opened["model"], "data": opened["pets"], "drop": 0.1, "objective": "macs", "minutes": 0.75}
    found = optimize_job.optimize(opened["space"], order, report, clock)
    assert found["found"]
    assert found["reason"] == "The time is up."
    assert 45 - 30 < found["seconds"] < 45 + 30  # less than a trial was left; a verification once begun may end
    made = opened["space"].candidate(found["candidate"])
    original = opened["space"].baseline(opened["model"], opened["pets"])
    assert made.scores.macs < 0.9 * original.macs
    assert made.scores.accuracy is not None
    assert made.scores.accuracy.count == 40  # the whole test part
    last = [row for row in found["trials"] if row["kept"]][-1]
    assert (last["candidate"], last["macs"]) == (made.id, made.scores.macs)
    assert all(row["why"] for row in found["trials"])
    fractions = [f for f, _ in heard]
    assert fractions == sorted(fractions)
    shown = [numbers["best"] for _, numbers in heard if "best" in numbers]
    assert shown[-1] == made.id
    json.dumps(found)


def test_the_test_part_is_seen_only_when_a_best_is_verified(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = search(opened)
    held = {image.tobytes() for image in looking.data.test.x}
    seen: list[tuple[bool, bool]] = []  # (whether a test image was in it, whether the whole part was)
    predict = evaluate.predict

    def watch(file: Path, images: Images, *rest: Any, **more: Any) -> Any:
        inside = sum(image.tobytes() in held for image in images.x)
        seen.append((inside > 0, inside == len(held) == len(images)))
        return predict(file, images, *rest, **more)

    monkeypatch.setattr(evaluate, "predict", watch)
    assert len(looking.blind.test) == 0
    assert not held & {image.tobytes() for image in looking.judged.x}
    assert looking.attempt(INT8).kept
    assert (True, True) in seen
    seen.clear()
    pruned = Recipe((Step("prune_channels", {"ratio": 0.9, "repair": False}), Step("quantize")))
    assert not looking.attempt(pruned).kept
    assert seen == [(False, False)]  # judged on the validation images, refused, never verified
    assert pruned.id not in " ".join(opened["space"].candidates())


def test_the_choice_does_not_depend_on_the_test_labels(opened: dict[str, Any]) -> None:
    """With every test label wrong the same trials are made, judged and kept: so few images are asked nothing."""
    recipes = (INT8, Recipe((Step("prune_channels", {"ratio": 0.5}), Step("quantize"))))
    rows = []
    for wrong in (False, True):
        looking = search(opened)
        if wrong:
            test = looking.data.test
            assert test.y is not None
            looking.data = replace(looking.data, test=Images(test.x, (test.y + 1) % 4))
        found = [looking.attempt(recipe) for recipe in recipes]
        rows.append([(t.loss, t.kept) for t in found])
    assert rows[0] == rows[1]


def test_with_many_test_images_losses_are_those_of_images_the_original_has_not_seen(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own answers to them, and only those: no trial's."""
    assert search(opened).unseen is None
    monkeypatch.setattr(judge, "TELLING", 40)
    looking = search(opened)
    assert looking.unseen is not None
    noise = np.random.default_rng(0).standard_normal(looking.before.shape).astype(np.float32)
    expected = judge.unseen_losses(looking.before, looking.before + noise, looking.unseen)
    assert len(expected) == len(looking.data.test) == 40
    assert np.array_equal(looking._losses(looking.before + noise, trained=False), expected)
    counted = judge.counted_losses(looking.before, looking.before + noise, looking.judged.y)
    assert np.array_equal(looking._losses(looking.before + noise, trained=True), counted)
    assert search(opened, "bare").unseen is None


def test_the_first_trial_is_finished_however_little_time_there_is(opened: dict[str, Any]) -> None:
    clock = Clock(100.0)
    order = {"model": opened["model"], "data": opened["bare"], "objective": "size", "minutes": 0.5}
    found = optimize_job.optimize(opened["space"], order, clock.report, clock)
    assert len(found["trials"]) == 1
    assert opened["space"].candidate(found["candidate"]).title == "Quantize int8"
    assert worker.KINDS["optimize"] is tasks.optimize


def test_a_cancelled_search_leaves_its_best_and_nothing_half_done(opened: dict[str, Any]) -> None:
    best: list[str] = []

    def stop(fraction: float, message: str, **numbers: Any) -> None:
        best.extend(name for name in [numbers.get("best")] if name)
        if best and message.startswith("Trial 2") and "Writing the ONNX file" in message:
            raise Cancelled("Cancelled.")

    order = {"model": opened["model"], "data": opened["pets"], "drop": 0.05, "objective": "size"}
    before = {folder.name for folder in opened["space"].root.glob("candidates/*")}
    with pytest.raises(Cancelled):
        optimize_job.optimize(opened["space"], order, stop)
    assert best[-1] in opened["space"].candidates()
    assert {folder.name for folder in opened["space"].root.glob("candidates/*")} <= before | {best[-1]}


def test_without_labels_agreement_is_kept_and_all_unused_images_judge(opened: dict[str, Any]) -> None:
    looking = search(opened, "bare", drop=0.02)
    assert len(looking.judged) == 80  # 30 for validation, and 50 that could train nothing
    trial = looking.attempt(INT8)
    assert trial.kept
    scores = opened["space"].candidate(looking.rows[0].candidate).scores
    assert scores.accuracy is None
    assert scores.agreement.count == 60
    assert looking.training() is None


def test_training_images_judge_nothing_where_something_may_learn_from_them() -> None:
    parts = [Images(part.x, None) for part in (draw(2000, 1), draw(60, 2))]
    many = make_data("many", parts[0], parts[1], ())
    assert len(judged(many)) == len(many.validation) == 200
    assert len(judged(tiny_data())) == len(tiny_data().validation)


def test_what_cannot_be_made_is_a_row_and_the_search_goes_on(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ModelError("The network cannot be exported to ONNX: a reason.")

    monkeypatch.setattr("core.engine.optimize.build", fail)
    looking = search(opened)
    trial = looking.attempt(Recipe((Step("prune_channels", {"ratio": 0.15}),)))
    assert (trial.kept, trial.within, trial.gain) == (False, False, 0.0)
    assert looking.rows[0].why == "The network cannot be exported to ONNX: a reason."


@pytest.mark.parametrize(("speedup", "kept"), [(1.30, True), (1.10, False), (1.01, False)])
def test_a_faster_file_must_be_faster_than_the_spread(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, speedup: float, kept: bool
) -> None:
    """25 pairs whose ratios spread over 1.0: the median is uncertain by 1.0 / 5."""
    row = Latency(1, 1, 1.0, 1.0, speedup, speedup - 0.5, speedup + 0.5, 25)
    assert uncertainty(row) == pytest.approx(0.2)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: (row,))
    looking = search(opened, objective="latency")
    trial = looking.attempt(INT8)
    assert trial.kept is kept
    assert looking.rows[0].candidate  # the first is there to download in any case


def test_operator_times_are_known_or_measured_or_read_from_the_layers(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize_job, "OPERATOR_SECONDS", 0.0)
    now, space, model = [0.0], opened["space"], opened["model"]
    looking = search(opened, clock=lambda: now[0])
    measured = optimize_job.operator_times(looking, INTEGER)
    assert measured is not None
    assert {key.type for key in measured.times} == {INTEGER}
    assert min(measured.times.values()) > 0
    now[0] = looking.end - 1e-3  # no time is left
    read = optimize_job.operator_times(looking, INTEGER)
    assert read == stand_in(space.profile(model))
    known = LatencyTable({Operator(Shape("linear", 4, 4)): 1.0})
    write_json(latency_path(space, model), known.to_json())
    assert optimize_job.operator_times(looking, INTEGER) == known
    latency_path(space, model).unlink()


@pytest.mark.parametrize(("drop", "within"), [(0.029, False), (0.051, True)])
def test_a_loss_must_be_allowed_with_its_standard_error(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, drop: float, within: bool
) -> None:
    """One of 40 images: 2.5 points ± √(0.025 · 0.975 / 40) = 2.47 points."""
    looking = search(opened, drop=drop)
    losses = np.zeros(40)
    losses[0] = 1.0
    monkeypatch.setattr("core.engine.optimize.expected_losses", lambda *_: losses)
    trial = looking.attempt(INT8)
    assert trial.loss == pytest.approx(0.025)
    assert trial.within is within
    if not within:
        assert looking.rows[0].why == "Loses 2.50 ± 2.47 points, allowed are 2.9."


def test_training_follows_the_time_left(opened: dict[str, Any]) -> None:
    now = [0.0]
    looking = search(opened, clock=lambda: now[0])
    looking.data = replace(looking.data, train=draw(600, 3))
    looking.epoch_seconds, looking.slowest = 20.0, 20.0
    step = looking.training()
    assert step is not None
    assert (step.record.epochs, step.record.shift) == (
        7,
        1,
    )  # half of 280 of the 300 s, 20 each; an eighth of 12 pixels
    assert trains(Recipe((step, Step("quantize")))) == 7
    now[0] = 250.0
    assert looking.training() is None
