"""A recipe run from end to end on a tiny trained network."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from core.candidate import Candidate, Skip
from core.compare import read_logits
from core.engine import evaluate, latency
from core.engine.calibrated import weight_bits
from core.engine.context import Context, Outcome
from core.engine.data import Images
from core.engine.formats import onnx_writer
from core.engine.run import measure_original, run
from core.errors import Cancelled, DataError, ModelError, RecipeError
from core.options import Quantize
from core.recipe import Recipe, Step
from core.workspace import Workspace
from tests.tiny import CARD, tiny_data, tiny_model

PRUNED = Recipe((Step("prune_channels", {"ratio": 0.5}), Step("quantize")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "FEWEST", 5)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's own file, as a workspace keeps it."""
    path = tmp_path_factory.mktemp("original") / "model.onnx"
    onnx_writer.export(tiny_model().module, CARD, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, Path, list[tuple[float, str]]]:
    folder, heard = tmp_path_factory.mktemp("run") / "candidate", []
    candidate = run(PRUNED, tiny_model(), tiny_data(), folder, report=lambda f, m, **_: heard.append((f, m)))
    return candidate, folder, heard


def fake(monkeypatch: pytest.MonkeyPatch, apply: Any) -> None:
    """Put another function in the place of prune_weights."""
    module = ModuleType("core.engine.techniques.prune_weights")
    module.apply = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


ONE = Recipe((Step("prune_weights"),))


def test_the_folder_holds_the_candidate_and_nothing_else(made: tuple[Candidate, Path, Any]) -> None:
    candidate, folder, _ = made
    assert sorted(p.name for p in folder.iterdir()) == [
        "candidate.json",
        "model.onnx",
        "model.onnx.xz",
        "predictions.npz",
        "recipe.yaml",
    ]
    assert candidate.scores.packed_bytes == (folder / "model.onnx.xz").stat().st_size
    assert Recipe.from_yaml((folder / "recipe.yaml").read_text()).id == PRUNED.id
    (folder.parent / "candidates").mkdir(exist_ok=True)
    space = Workspace(folder.parent)
    folder.rename(folder.parent / "candidates" / candidate.id)
    assert space.candidate(candidate.id) == candidate
    (folder.parent / "candidates" / candidate.id).rename(folder)


def test_scores_are_those_of_the_file(made: tuple[Candidate, Path, Any]) -> None:
    candidate, folder, _ = made
    test = tiny_data().test
    logits = evaluate.predict(folder / "model.onnx", test, CARD)
    np.testing.assert_array_equal(read_logits(folder / "predictions.npz"), logits)
    with torch.no_grad():
        x = torch.from_numpy(((test.x / np.float32(255) - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2))
        original = tiny_model().module(x).numpy().argmax(1)
    assert candidate.scores.accuracy is not None
    assert candidate.scores.accuracy.value == (logits.argmax(1) == test.y).mean()
    assert candidate.scores.agreement.value == pytest.approx((logits.argmax(1) == original).mean(), abs=1 / 160)
    assert candidate.scores.size_bytes == (folder / "model.onnx").stat().st_size
    assert candidate.scores.params < 0.7 * sum(p.numel() for p in tiny_model().module.parameters())
    assert candidate.title == "Prune channels 50% → Quantize int8"
    assert 0 < candidate.parity < 1e-3
    assert candidate.seconds > 0
    assert {row.batch for row in candidate.scores.latency} == {1, 32}
    assert candidate.provenance["data_hash"] == tiny_data().card.hash
    assert candidate.provenance["quantization"] == f"int8, {weight_bits(Quantize())}-bit weights"
    assert bool(candidate.caution) == (weight_bits(Quantize()) == 8)


def test_progress_only_grows_ends_at_one_and_reads_well(made: tuple[Candidate, Path, list[tuple[float, str]]]) -> None:
    heard = made[2]
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    messages = [message for _, message in heard]
    assert messages[0] == "Step 1 of 2, Prune channels: Starting"
    assert "Step 2 of 2, Quantize: Calibrating on image 1 of 32" in messages


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_another_candidate(
    made: tuple[Candidate, Path, Any], tmp_path: Path
) -> None:
    again = run(PRUNED, tiny_model(), tiny_data(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == (made[1] / "model.onnx").read_bytes()
    assert again.id == made[0].id
    assert replace(again, seconds=0, scores=made[0].scores) == replace(made[0], seconds=0)
    assert replace(PRUNED, seed=1).id != PRUNED.id


def test_training_is_repeated_to_the_byte_and_follows_the_seed(original: Path, tmp_path: Path) -> None:
    files = [tmp_path / str(number) / "model.onnx" for number in range(3)]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        harmed = Step("prune_weights", {"sparsity": 0.9, "repair": False})  # so that there is something to win back
        trained = Recipe((harmed, Step("distill", {"epochs": 1, "shift": 1})), seed=seed)
        candidate = run(trained, replace(tiny_model(), file=original), tiny_data(), file.parent)
    assert files[0].read_bytes() == files[1].read_bytes()
    first, other = ({t.name: t.raw_data for t in onnx.load(file).graph.initializer} for file in files[1:])
    assert first["stem.weight"] != other["stem.weight"]
    assert candidate.curves["distill"][-1]["epoch"] == 1


def test_an_empty_recipe_is_the_original(original: Path, tmp_path: Path) -> None:
    model = replace(tiny_model(), file=original)
    candidate = run(Recipe((Step("quantize", enabled=False),)), model, tiny_data(), tmp_path)
    assert candidate.scores.agreement.value == 1.0
    assert candidate.title == "Original"
    assert set(candidate.layer_error.values()) == {0.0}


def test_the_model_that_came_is_not_changed(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wreck(model: nn.Module, options: Any, layers: Mapping[str, float], context: Context) -> Outcome:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return Outcome(model, (Skip("prune_weights", "stem", "Kept: a reason."),))

    fake(monkeypatch, wreck)
    model = replace(tiny_model(), file=original)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    candidate = run(ONE, model, tiny_data(), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert candidate.skipped == (Skip("prune_weights", "stem", "Kept: a reason."),)
    assert candidate.layer_error["stem"] > 0.1


def test_no_step_can_see_the_test_images(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Context] = []

    def look(model: nn.Module, options: Any, layers: Mapping[str, float], context: Context) -> Outcome:
        seen.append(context)
        return Outcome(model)

    fake(monkeypatch, look)
    data = tiny_data()
    run(ONE, replace(tiny_model(), file=original), data, tmp_path)
    held = {image.tobytes() for image in data.test.x}
    parts = [value for value in vars(seen[0]).values() if isinstance(value, Images)]
    assert len(parts) == 3
    assert not any(image.tobytes() in held for part in parts for image in part.x)


def broken(kind: str) -> Any:
    def apply(model: nn.Module, options: Any, layers: Mapping[str, float], context: Context) -> Outcome:
        if kind == "narrow":
            return Outcome(nn.Sequential(model, nn.Linear(4, 3)))
        with torch.no_grad():
            next(model.parameters()).fill_(float("inf"))
        return Outcome(model)

    return apply


@pytest.mark.parametrize(("kind", "sentence"), [("narrow", r"is \(16, 3\), not \(16, 4\)"), ("hot", "not finite")])
def test_a_step_that_breaks_the_model_is_stopped(
    kind: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, broken(kind))
    with pytest.raises(ModelError, match=f"After prune_weights .*{sentence}"):
        run(ONE, tiny_model(), tiny_data(), tmp_path)
    assert not (tmp_path / "candidate.json").exists()


def test_a_layer_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    recipe = Recipe((Step("prune_weights", layers={"stemm": 0.5}),))
    with pytest.raises(RecipeError, match=r"names the layer 'stemm', which is not there; layers are block.0, .*stem"):
        run(recipe, tiny_model(), tiny_data(), tmp_path)


def test_images_or_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = tiny_data()
    small = replace(data, test=Images(data.test.x[:, :8, :8], data.test.y))
    with pytest.raises(DataError, match="takes images of 3 × 12 × 12; received 3 × 8 × 8"):
        run(Recipe(), tiny_model(), small, tmp_path)
    many = replace(data, test=Images(data.test.x, data.test.y + 2))  # type: ignore[operator]
    with pytest.raises(DataError, match="knows 4 classes; received label 5, accepted are 0 to 3"):
        run(Recipe(), tiny_model(), many, tmp_path)


def test_a_run_that_is_stopped_leaves_no_candidate(original: Path, tmp_path: Path) -> None:
    def stop(fraction: float, message: str, **numbers: object) -> None:
        if message.startswith("Answers of the candidate"):
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        run(Recipe(), replace(tiny_model(), file=original), tiny_data(), tmp_path, report=stop)
    assert not (tmp_path / "candidate.json").exists()


def test_the_original_is_measured_once_and_its_known_answers_are_used(original: Path, tmp_path: Path) -> None:
    scores, logits = measure_original(original, CARD, tiny_data())
    right = logits.argmax(1) == tiny_data().test.y
    assert scores.accuracy is not None
    assert (scores.agreement.value, scores.accuracy.value) == (1.0, right.mean())
    evaluate.save_predictions(tmp_path / "known.npz", np.roll(logits, 1, axis=1))  # answers that no file gives
    model, ids = replace(tiny_model(), file=original), ("m-1", "d-1")
    candidate = run(Recipe(), model, tiny_data(), tmp_path / "out", ids=ids, baseline=tmp_path / "known.npz")
    assert candidate.scores.agreement.value == 0.0
    assert (candidate.model, candidate.data) == ids


def test_without_labels_a_candidate_has_agreement_alone(original: Path, tmp_path: Path) -> None:
    data = tiny_data()
    bare = replace(
        data,
        **{part: Images(getattr(data, part).x, None) for part in ("train", "calibration", "validation", "test")},
    )
    candidate = run(Recipe((Step("quantize"),)), replace(tiny_model(), file=original), bare, tmp_path)
    assert candidate.scores.accuracy is None
    assert candidate.scores.agreement.value > 0.95
