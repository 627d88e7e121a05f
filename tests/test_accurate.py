"""Layers in float for accuracy: the order by hand, the fewest that suffice, and a file that keeps what it promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from core.engine import accurate
from core.engine.accurate import Answers, fewest, order_of_return
from core.engine.context import silent
from core.engine.formats import onnx_writer
from core.engine.techniques import quantize
from core.layers import Profile
from core.options import Quantize
from core.predict import costs
from core.recipe import Recipe, Step
from tests.tiny import CARD, tiny_context, tiny_model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """The trained tiny network with one layer that 8 bits destroy: one large weight leaves its channel no steps."""
    module = tiny_model().module
    path: Path = tmp_path_factory.mktemp("accurate") / "tiny.onnx"
    onnx_writer.export(module, CARD, path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "down.weight":
            weight = numpy_helper.to_array(tensor).copy()
            weight[:, 0, 0, 0] += 40.0
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        if tensor.name == "head.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 10, tensor.name))
    return model


def test_the_order_is_by_answers_lost_for_time_saved() -> None:
    losses = {"a": 0.01, "b": 0.01, "c": 0.03, "d": 0.0001}
    in_float, in_integers = {"a": 4.0, "b": 2.0, "c": 9.0, "d": 1.0}, {"a": 2.0, "b": 1.0, "c": 1.0, "d": 2.0}
    # for each ms: a 0.005, b 0.01, c 0.00375; d saves nothing, which counts as a thousandth of 11
    assert order_of_return(losses, in_float, in_integers) == ["b", "d", "a", "c"]


@pytest.mark.parametrize(("wanted", "count", "given"), [(0.5, 0, 0.6), (0.75, 2, 0.8), (0.9, 3, 0.9), (0.95, 4, 1.0)])
def test_the_fewest_that_suffice_are_found_by_halving(wanted: float, count: int, given: float) -> None:
    order, asked = ("a", "b", "c", "d"), list[int]()

    def agreement(kept: Sequence[str]) -> float:
        asked.append(len(kept))
        return 0.6 + 0.1 * len(kept)

    kept, found = fewest(order, agreement, wanted, silent)
    assert (kept, found) == (order[:count], pytest.approx(given))
    assert len(asked) <= 3


def test_the_layer_that_integers_destroy_stays_in_float_and_says_so(plain: ModelProto) -> None:
    context = tiny_context()
    answers = Answers(plain, context)
    whole = quantize.apply(plain, Quantize(correct=False), {}, context)
    before = answers.agreement(whole.model)
    assert before < 0.97
    outcome = quantize.apply(plain, Quantize(agreement=0.97), {}, context)
    assert answers.agreement(outcome.model) >= 0.97
    reasons = {skip.layer: skip.reason for skip in outcome.skipped}
    assert "down" in reasons
    assert len(reasons) < 5
    assert f"from {before:.1%} to" in reasons["down"]
    assert quantize.quantized_layers(outcome.model) == {"stem", "block.0", "block.2", "down", "head"} - reasons.keys()
    kept = {t.name: t for t in outcome.model.graph.initializer}["down.weight"]
    original = {t.name: t for t in plain.graph.initializer}["down.weight"]
    assert np.array_equal(numpy_helper.to_array(kept), numpy_helper.to_array(original))


def test_nothing_is_looked_at_where_enough_answers_stay(plain: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "fewest", None)
    assert quantize.apply(plain, Quantize(agreement=0.2), {}, tiny_context()).skipped == ()


def test_without_validation_images_nothing_can_be_promised(plain: ModelProto) -> None:
    context = tiny_context()
    context = replace(context, validation=context.validation.take(slice(0, 0)))
    (skip,) = quantize.apply(plain, Quantize(agreement=1.0), {}, context).skipped
    assert (skip.layer, "no validation images" in skip.reason) == ("agreement", True)


def test_the_expected_loss_looks_at_few_images_and_is_none_for_the_same_file(plain: ModelProto) -> None:
    answers = Answers(plain, tiny_context())
    assert answers.expected_loss(plain) == 0
    assert answers.agreement(plain) == 1
    assert accurate.LOOKED_AT < accurate.VALIDATED


def test_costs_are_not_exact_where_only_a_run_knows_which_layers_stay() -> None:
    profile = Profile((), (), 0, 0, 0, 0, 0)
    assert costs(profile, Recipe((Step("quantize"),))).exact
    assert not costs(profile, Recipe((Step("quantize", {"agreement": 0.98}),))).exact
    assert costs(profile, Recipe((Step("quantize", {"agreement": 0.98, "mode": "float16"}),))).exact
