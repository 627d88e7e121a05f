"""One contract for every entry of the catalog: a new technique is held to it without a test of its own."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import nn

from core.catalog import CATALOG, Technique, check_options, option_fields
from core.engine.context import Outcome
from core.engine.data import to_input
from core.engine.formats import onnx_writer
from core.engine.models import Model
from core.engine.steps import check_layers
from core.engine.train import seed_all
from core.errors import RecipeError
from core.recipe import Recipe, Step
from tests.tiny import CARD, tiny_context, tiny_data, tiny_model

EVERY = pytest.mark.parametrize("key", CATALOG)
DIALLED = pytest.mark.parametrize("key", [key for key, entry in CATALOG.items() if entry.dial])
LAYERS = ("stem", "block.0", "block.2", "down", "head")
PARTS = {"repair", "BatchNorm"}  # what a step may leave undone besides a layer
X = to_input(tiny_data().test.x[:64], CARD)


@dataclass(frozen=True)
class Applied:
    """What a technique made of the tiny network, as a module or as a file's content."""

    outcome: Outcome
    fractions: tuple[float, ...]
    teacher_changed: bool


@cache
def exported() -> ModelProto:
    return export(tiny_model().module)


def export(module: nn.Module) -> ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        onnx_writer.export(module, CARD, Path(folder) / "x.onnx")
        return onnx.load(Path(folder) / "x.onnx")


def subject_of(key: str) -> Model:
    """The tiny network; where the step trains, with one class too likely: else there is nothing to learn."""
    model = tiny_model()
    if "train" in CATALOG[key].needs:
        with torch.no_grad():
            model.module.head.bias[0] += 1.0  # type: ignore[union-attr, index]
    return model


@cache
def exported_subject(key: str) -> ModelProto:
    return export(subject_of(key).module) if "train" in CATALOG[key].needs else exported()


@cache
def apply(key: str, layers: tuple[tuple[str, Any], ...] = (), again: int = 0) -> Applied:
    """At default options. `again` only makes another call of it."""
    entry, model, fractions = CATALOG[key], subject_of(key), []
    teacher = tiny_model()
    context = tiny_context(teacher, report=lambda fraction, message, **_: fractions.append(fraction))
    subject: Any = model.module
    if entry.acts_on == "file":
        subject = ModelProto()
        subject.CopyFrom(exported_subject(key))
    seed_all(0)
    technique = importlib.import_module(f"core.engine.techniques.{key}")
    outcome = technique.apply(subject, entry.options(), dict(layers), context)
    before, after = tiny_model().module.state_dict(), teacher.module.state_dict()
    changed = any(not torch.equal(value, after[name]) for name, value in before.items())
    return Applied(outcome, tuple(fractions), changed)


def content(outcome: Outcome) -> bytes | dict[str, bytes]:
    if isinstance(outcome.model, ModelProto):
        return outcome.model.SerializeToString(deterministic=True)
    return {name: value.numpy().tobytes() for name, value in outcome.model.state_dict().items()}


def answers(model: ModelProto) -> NDArray[np.float32]:
    """As a user runs it: a session with nothing set."""
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": X})[0]


@EVERY
def test_one_file_holds_it_with_one_function(key: str) -> None:
    technique = importlib.import_module(f"core.engine.techniques.{key}")
    assert list(inspect.signature(technique.apply).parameters) == ["model", "options", "layers", "context"]
    assert technique.__doc__
    assert CATALOG[key].help.endswith(".")
    assert CATALOG[key].summary(CATALOG[key].options())


@EVERY
def test_the_answer_keeps_its_shape_is_finite_and_the_teacher_is_untouched(key: str) -> None:
    made = apply(key)
    if CATALOG[key].acts_on == "model":
        with torch.no_grad():
            found = made.outcome.model.eval()(torch.from_numpy(X)).numpy()
    else:
        found = answers(made.outcome.model)
    assert found.shape == (64, 4)
    assert np.isfinite(found).all()
    assert not made.teacher_changed


@EVERY
def test_the_exported_file_runs_anywhere_and_agrees(key: str) -> None:
    made = apply(key).outcome
    if CATALOG[key].acts_on == "file":
        wanted, before, after = (answers(m).argmax(1) for m in (exported(), exported_subject(key), made.model))
        assert (after == wanted).mean() >= 0.9 * (before == wanted).mean()
        return
    with torch.no_grad():
        expected = made.model.eval()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(answers(export(made.model)), expected, atol=1e-3 * np.abs(expected).max())


@EVERY
def test_it_does_something_at_default_options(key: str) -> None:
    made, entry = apply(key).outcome, CATALOG[key]
    if entry.acts_on == "file":
        assert content(made) != exported_subject(key).SerializeToString(deterministic=True)
    else:
        assert content(made) != content(Outcome(subject_of(key).module))


@EVERY
def test_the_same_seed_gives_the_same_bytes(key: str) -> None:
    assert content(apply(key).outcome) == content(apply(key, again=1).outcome)


@EVERY
def test_progress_stays_in_range_and_skips_name_layers_and_reasons(key: str) -> None:
    made = apply(key)
    assert all(0 <= fraction <= 1 for fraction in made.fractions)
    known = {name for name, _ in tiny_model().module.named_modules()}
    for skip in made.outcome.skipped:
        assert skip.technique == key
        assert skip.layer in known | PARTS
        assert skip.reason.endswith(".")


@DIALLED
def test_a_layer_at_its_neutral_setting_keeps_its_weights(key: str) -> None:
    """The first layer: nothing before it can change what it takes in."""
    made = apply(key, (("stem", CATALOG[key].neutral),)).outcome
    if CATALOG[key].acts_on == "model":
        weight = made.model.get_submodule("stem").weight.detach().numpy()
        np.testing.assert_array_equal(weight, tiny_model().module.stem.weight.detach().numpy())  # type: ignore[union-attr]
        return
    stored = [{t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (exported(), made.model)]
    np.testing.assert_array_equal(stored[1]["stem.weight"], stored[0]["stem.weight"])


@DIALLED
def test_all_layers_at_their_neutral_setting_change_no_weight(key: str) -> None:
    entry = CATALOG[key]
    made = apply(key, tuple((layer, entry.neutral) for layer in LAYERS)).outcome
    if entry.acts_on == "file":
        assert content(made) == exported().SerializeToString(deterministic=True)
        return
    weights = {name: value for name, value in tiny_model().module.state_dict().items() if name.endswith("weight")}
    found = made.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@DIALLED
def test_a_layer_follows_its_own_setting_not_the_steps(key: str) -> None:
    """With every other layer neutral, a layer alone changes; a technique may have reasons to keep some layers."""
    neutral = CATALOG[key].neutral
    none = content(apply(key, tuple((layer, neutral) for layer in LAYERS)).outcome)
    alone = (tuple((other, neutral) for other in LAYERS if other != layer) for layer in LAYERS)
    assert any(content(apply(key, layers).outcome) != none for layers in alone)


def outside(entry: Technique) -> list[tuple[str, Any]]:
    """Values that no option of the technique accepts."""
    wrong: list[tuple[str, Any]] = [("no_such_option", 1)]
    for name, spec in option_fields(entry).items():
        limits = spec.metadata
        if limits["choices"]:
            wrong.append((name, "nonsense"))
        elif isinstance(spec.default, bool):
            wrong.append((name, 1))
        else:
            kind = type(spec.default)
            wrong += [(name, kind(limits["low"] - 1)), (name, kind(limits["high"] + 1)), (name, "many"), (name, True)]
    return wrong


@EVERY
def test_options_outside_their_limits_are_refused_by_name(key: str) -> None:
    entry = CATALOG[key]
    for name, value in outside(entry):
        with pytest.raises(RecipeError, match=name):
            Recipe((Step(key, {name: value}),))
    for name, spec in option_fields(entry).items():
        limits = spec.metadata
        for value in limits["choices"] or (() if limits["low"] is None else (limits["low"], limits["high"])):
            assert check_options(entry, {name: value}) == {name: value}


@EVERY
def test_defaults_are_inside_their_limits_and_explained(key: str) -> None:
    entry = CATALOG[key]
    check_options(entry, {name: spec.default for name, spec in option_fields(entry).items()})
    assert all(spec.metadata["help"].endswith(".") for spec in option_fields(entry).values())
    if entry.dial:
        check_options(entry, {entry.dial: entry.neutral})


@DIALLED
def test_a_layer_that_is_not_there_is_refused(key: str) -> None:
    step = Step(key, layers={"stem": CATALOG[key].neutral, "trunk": CATALOG[key].neutral})
    names = [name for name, _ in tiny_model().module.named_modules()]
    with pytest.raises(RecipeError, match="names the layer 'trunk'"):
        check_layers(step, names)
    check_layers(Step(key, layers={"block": CATALOG[key].neutral}), names)
