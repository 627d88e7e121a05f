"""A Softmax at the end of an upload: left out of what is worked on, and in every file that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from core.engine import evaluate, runtime
from core.engine.data import to_tensor
from core.engine.formats import onnx_writer
from core.engine.identity import fingerprint
from core.engine.judge import expected_loss
from core.engine.models import Model, open_model
from core.engine.run import run
from core.engine.softmax import as_logits, leave_out
from core.engine.tasks import bring_model
from core.engine.tasks import open_model as open_kept
from core.recipe import Recipe, Step
from core.workspace import Workspace
from tests.onnx_files import export_dynamo
from tests.tiny import CARD, tiny_data, tiny_model

X = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 12, 12)).astype(np.float32))
STEPS = {
    "float": (Step("prune_channels", {"ratio": 0.3}),),
    "int8": (Step("quantize", {}),),
    "trained": (Step("prune_channels", {"ratio": 0.3}), Step("distill", {"epochs": 1})),
}


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as Keras would have written it."""
    network = nn.Sequential(tiny_model().module, nn.Softmax(-1)).eval()
    return export_dynamo(network, X, tmp_path_factory.mktemp("upload") / "soft.onnx")


@pytest.fixture(scope="module")
def model(uploaded: Path) -> Model:
    opened = open_model({"kind": "file", "path": uploaded, "mean": CARD.mean, "std": CARD.std})
    return Model(opened.module, opened.card.with_(classes=CARD.classes), opened.file)


def test_the_network_gives_logits_and_its_card_says_so(model: Model) -> None:
    assert model.card.probabilities
    assert "Softmax" in model.card.description
    with torch.no_grad():
        torch.testing.assert_close(model.module(X), tiny_model().module(X), atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", STEPS)
def test_a_candidate_answers_with_probabilities(how: str, model: Model, tmp_path: Path) -> None:
    candidate = run(Recipe(STEPS[how]), model, tiny_data(), tmp_path)
    answers = evaluate.predict(tmp_path / "model.onnx", tiny_data().test, model.card)
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-3)
    assert answers.min() >= 0
    assert candidate.scores.agreement.value > 0.8
    plain = run(Recipe(STEPS[how]), Model(tiny_model().module, CARD), tiny_data(), tmp_path / "plain")
    assert candidate.scores.accuracy
    assert plain.scores.accuracy
    assert candidate.scores.accuracy.value == pytest.approx(plain.scores.accuracy.value, abs=0.02)


def test_parity_is_that_of_the_probabilities(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    onnx_writer.export(model.module, model.card, file)
    assert onnx_writer.verify(model.module, model.card, file, X.numpy()) < 1e-5
    with torch.no_grad():
        expected = tiny_model().module(X).softmax(1)
    np.testing.assert_allclose(runtime.run(runtime.open_file(file), X.numpy()), expected, atol=1e-5)


def test_a_workspace_from_before_is_opened_alike(uploaded: Path, model: Model, tmp_path: Path) -> None:
    """Its card does not say that there is a Softmax; files must have it all the same."""
    workspace = Workspace(tmp_path)
    source = {"kind": "file", "path": str(uploaded)}
    name = bring_model(workspace, source, model, lambda *_, **__: None)
    path = workspace.folder("models", name) / "card.json"
    card = json.loads(path.read_text())
    del card["probabilities"]
    path.write_text(json.dumps(card))
    assert open_kept(workspace, {"kind": "workspace", "id": name}).card.probabilities


def test_a_fact_that_is_new_renames_no_model(model: Model) -> None:
    plain = Model(model.module, model.card.with_(probabilities=False))
    without = {key: value for key, value in plain.card.to_json().items() if key != "probabilities"}

    class Before:
        """A card as it was before."""

        def to_json(self) -> dict[str, object]:
            return without

    assert fingerprint(plain) == fingerprint(Model(model.module, Before()))  # type: ignore[arg-type]
    assert fingerprint(plain) != fingerprint(Model(model.module, model.card))


def graph(*layers: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(*layers).eval())


@pytest.mark.parametrize(
    "module",
    [
        graph(nn.Flatten(), nn.Linear(4, 3)),
        graph(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(0)),
        graph(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 3)),
        graph(nn.Flatten(), nn.Linear(4, 3), nn.LogSoftmax(1)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)),
    ],
    ids=["none", "over images", "inside", "logarithm", "no graph"],
)
def test_nothing_else_is_left_out(module: nn.Module) -> None:
    x = torch.randn(5, 2, 2)
    before = module(x)
    assert not leave_out(module)
    torch.testing.assert_close(module(x), before)


def test_margins_of_probabilities_are_those_of_logits() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 3, (200, 5)).astype(np.float32)
    after = before + rng.normal(0, 1, before.shape).astype(np.float32)
    soft = [(torch.from_numpy(z).softmax(1)).numpy() for z in (before, after)]
    assert expected_loss(*soft, None) == pytest.approx(expected_loss(before, after, None), rel=1e-3)
    np.testing.assert_array_equal(as_logits(before), before)
    rounded = as_logits(soft[0].astype(np.float16).astype(np.float32))  # as a file of 16-bit floats answers
    assert rounded.max() <= 0


def test_a_certain_answer_has_a_logit(model: Model) -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert np.isfinite(as_logits(sure)).all()
    images = to_tensor(tiny_data().test.x[:8], model.card)
    with torch.no_grad():
        assert model.module(images).abs().max() > 1  # logits, not shares
