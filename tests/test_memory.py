"""Peak memory and parameters: predicted from a recipe, and counted from the file that the techniques really make."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images
from core.engine.formats import onnx_writer
from core.engine.formats.onnx_facts import file_facts
from core.engine.models import Model, open_model
from core.engine.operators import exported_operators
from core.engine.profile import as_stored
from core.engine.techniques import quantize
from core.layers import Profile
from core.liveness import IMAGE, Operator, peak_bytes
from core.options import Quantize
from core.predict import costs
from core.recipe import Recipe, Step
from tests.shared_data import shared
from tests.test_predict import NETS, OTHERS, counted, done, known, side


def card_of(name: str) -> ModelCard:
    return ModelCard("net", "Net", (3, side(name), side(name)), tuple("abcde"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@cache
def profile_of(name: str, folder: Path) -> tuple[Profile, Path]:
    """The profile as the file has it, and the exported file of the untouched network."""
    net, profile = known(name)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):  # where it shifts nothing, an export leaves the bias out
            nn.init.uniform_(part.bias, 0.1, 0.5)
    file = folder / f"{name}.onnx"
    onnx_writer.export(net, card_of(name), file)
    operators = exported_operators(Model(net, card_of(name)), file, profile.layers)
    return replace(profile, layers=tuple(as_stored(profile.layers, file)), operators=operators), file


def recipes(name: str, profile: Profile, count: int) -> list[Recipe]:
    """Channels cut by group, some branches emptied, some layers split: in either order."""
    chance = random.Random(name)
    found = []
    for _ in range(count):
        groups = [g for g in profile.groups if not g.blocked]
        own = {g.name: 1.0 if g.branch and chance.random() < 0.4 else chance.uniform(0, 0.9) for g in groups}
        ranks = {x.name: chance.choice([0.2, 0.5, 0.8, 1.0]) for x in profile.tunable}
        method = chance.choice(["spatial_svd", "tucker2"])
        steps = [Step("prune_channels", {"ratio": 0.0, "multiple": 1}, own)]
        steps += [Step("factorize", {"rank": 1.0, "method": method}, ranks)] if chance.random() < 0.6 else []
        found.append(Recipe(tuple(chance.sample(steps, len(steps)))))
    return found


@pytest.mark.parametrize("name", list(NETS | OTHERS))
def test_what_is_predicted_is_what_the_exported_file_needs(name: str, folder: Path) -> None:
    profile, file = profile_of(name, folder)
    assert profile.operators
    now, facts = costs(profile, Recipe()), file_facts(file, card_of(name).input_shape)
    assert (now.peak_bytes, now.params) == (facts.peak_bytes, facts.params)
    for number, recipe in enumerate(recipes(name, profile, 2)):
        made = folder / f"{name}-{number}.onnx"
        onnx_writer.export(done(name, recipe), card_of(name), made)
        found, facts = costs(profile, recipe), file_facts(made, card_of(name).input_shape)
        assert found.peak_exact
        assert (found.peak_bytes, found.params) == (facts.peak_bytes, facts.params), recipe.to_yaml()


@pytest.mark.parametrize("name", list(NETS | OTHERS))
def test_integers_take_a_quarter_as_the_file_says(name: str, folder: Path) -> None:
    profile, file = profile_of(name, folder)
    size, shape = side(name), card_of(name).input_shape
    pixels = np.random.default_rng(0).integers(0, 255, (16, size, size, 3)).astype(np.uint8)
    around = Context(card_of(name), *[Images(pixels, None)] * 3, flip=False, teacher=None)
    options = {"nodes": "all", "equalize": False, "images": 16}
    for layers in ({}, {profile.tunable[1].name: 32, profile.tunable[-3].name: 32}):
        outcome = quantize.apply(onnx.load(file), Quantize(**options), layers, around)
        onnx_writer.save(outcome.model, folder / "int8.onnx")
        found = costs(profile, Recipe((Step("quantize", options, layers),)))
        assert not found.peak_exact
        assert found.peak_bytes == file_facts(folder / "int8.onnx", shape).peak_bytes


def test_an_emptied_branch_frees_its_tensors_by_hand() -> None:
    """image 4 → a 8 → r (in place) → b 8 → s (in place) → c 8 → + r → answer: r, s and c are 24 at once.

    Without b and c, r is the answer: the image and a.
    """
    chain = (
        Operator(IMAGE, (), 4), Operator("Conv", (0,), 8), Operator("Relu", (1,), 8), Operator("Conv", (2,), 8),
        Operator("Relu", (3,), 8), Operator("Conv", (4,), 8), Operator("Add", (5, 2), 8, answer=True),
    )  # fmt: skip
    assert peak_bytes(chain) == 24
    assert peak_bytes((*chain[:2], chain[2]._replace(answer=True))) == 12


def test_a_float_value_is_not_written_over_the_integers_it_comes_from() -> None:
    """An integer of 4 bytes turned to float for a ReLU, whose 16 bytes need a place of their own."""
    chain = (Operator(IMAGE, (), 2), Operator("Conv", (0,), 4, integer=True), Operator("Relu", (1,), 16, answer=True))
    assert peak_bytes(chain) == 4 + 16


def test_what_only_a_run_can_tell_is_not_predicted(folder: Path) -> None:
    profile, _ = profile_of("residual", folder)
    assert costs(profile, Recipe((Step("quantize", {"mode": "float16"}),))).peak_bytes is None
    assert costs(replace(profile, operators=()), Recipe()).peak_bytes is None


def test_a_profile_is_read_again_with_its_operators_and_an_old_one_without(folder: Path) -> None:
    profile, _ = profile_of("joined", folder)
    kept = json.loads(json.dumps(profile.to_json()))
    assert Profile.from_json(kept) == profile
    del kept["operators"]
    assert Profile.from_json(kept).operators == ()


def test_an_uploaded_file_is_predicted_from_its_own_operators() -> None:
    file = shared("checkpoints/resnet20_cifar10.onnx")
    model = open_model({"kind": "file", "path": str(file)})
    profile = counted(model.module, 32)
    found = replace(profile, operators=exported_operators(model, file, profile.layers))
    assert costs(found, Recipe()).peak_bytes == file_facts(file).peak_bytes == 3 * 16 * 32 * 32 * 4
