"""Predicted costs against what the techniques really leave, and explanations against known couplings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from functools import cache
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images
from core.engine.graph import trace
from core.engine.node_latency import NodeLatency
from core.engine.profile import _layer, _rest, count_macs
from core.engine.surgery import calls, copy_model, kind_of
from core.engine.techniques import factorize, prune_channels, prune_weights
from core.layers import Profile, dial_for, explain, kept_channels
from core.options import Factorize, PruneChannels, PruneWeights
from core.predict import Costs, costs
from core.recipe import Recipe, Step
from sample_models.cifar_resnet import CifarResNet
from tests.nets import Net
from tests.test_shortcut import Net as ShortcutNet

NETS = {
    "residual": lambda: Net(["plain", "residual", "project"], [9, 12, 7, 10], "mean"),
    "joined": lambda: Net(["concat", "preact", "twice"], [6, 5, 8, 4], "flatten"),
    "depthwise": lambda: Net(["depthwise", "pool", "squeeze", "joined_residual"], [10, 6, 0, 5, 6], "mlp"),
    "cifar_resnet": lambda: CifarResNet(8).eval(),
}
OTHERS = {"shortcut": lambda: ShortcutNet().eval()}  # a cut one holds zeros that nobody pruned
TECHNIQUES = {"prune_channels": prune_channels, "prune_weights": prune_weights, "factorize": factorize}


def side(name: str) -> int:
    return 32 if name == "cifar_resnet" else 8


def counted(net: nn.Module, side: int) -> Profile:
    """The profile without its measured half, which predictions do not read."""
    example = torch.zeros(1, 3, side, side)
    rows, structure = calls(net, example), trace(net, example)
    layers = (*(_layer(row, structure, NodeLatency(0.0, {})) for row in rows), *_rest(net, rows))
    params, macs = sum(x.params for x in layers), sum(x.macs for x in layers)
    return Profile(layers, structure.groups, params, macs, 0, 0, 0)


@cache
def known(name: str) -> tuple[nn.Module, Profile]:
    make = (NETS | OTHERS)[name]
    return make(), counted(make(), side(name))


def done(name: str, recipe: Recipe) -> nn.Module:
    """The network after the recipe's model steps, by the techniques themselves; what moves only values is left out."""
    net, size = copy_model(known(name)[0]), side(name)
    card = ModelCard("net", "Net", (3, size, size), tuple("abcde"))
    image = Images(np.zeros((2, size, size, 3), np.uint8), None)
    for step in recipe.active:
        around = Context(card, image, image, image, flip=False, teacher=None)
        values = [f.name for f in fields(step.record) if f.name in ("repair", "reestimate", "weighted")]
        record = replace(step.record, **dict.fromkeys(values, False))
        net = TECHNIQUES[step.technique].apply(net, record, step.layers, around).model
    return net


def check(name: str, recipe: Recipe) -> Costs:
    """Predicted equals done: parameters, MACs and zeros, in total and for every layer."""
    found, net = costs(known(name)[1], recipe), done(name, recipe)
    rows = calls(net, torch.zeros(1, 3, side(name), side(name)))
    assert found.params == sum(p.numel() for p in net.parameters())
    assert found.macs == sum(map(count_macs, rows))
    if any(step.technique == "prune_weights" for step in recipe.active):  # a factor's weight may be 0 by itself
        assert found.nonzero == sum(int(p.numel()) - zeros(net, n, p) for n, p in net.named_parameters())
    for row in found.layers:
        mine = [r for r in rows if r.path == row.name or r.path.startswith(f"{row.name}.")]
        if not mine:  # it disappeared with its branch; a norm of a removed branch is not run either
            assert (row.params, row.macs, row.in_channels, row.out_channels) == (0, 0, 0, 0), row.name
            continue
        assert row.params == sum(p.numel() for p in net.get_submodule(row.name).parameters()), row.name
        assert row.macs == sum(map(count_macs, mine)), row.name
    assert (found.params, found.macs) == tuple(sum(getattr(r, k) for r in found.layers) for k in ("params", "macs"))
    return found


def zeros(net: nn.Module, name: str, parameter: nn.Parameter) -> int:
    path, _, last = name.rpartition(".")
    prunable = last == "weight" and kind_of(net.get_submodule(path)) not in ("norm", "other")
    return int((parameter == 0).sum()) if prunable else 0


@pytest.mark.parametrize("name", list(NETS))
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    ratio=st.floats(0, 0.95),
    multiple=st.sampled_from((1, 2, 4, 8)),
    data=st.data(),
)
def test_pruned_channels_are_predicted_exactly(name: str, ratio: float, multiple: int, data: st.DataObject):
    names = [g.name for g in known(name)[1].groups if not g.blocked]
    own = data.draw(st.dictionaries(st.sampled_from(names), st.floats(0, 0.95) | st.just(1.0), max_size=3))
    options = {"ratio": ratio, "multiple": multiple}
    assert check(name, Recipe((Step("prune_channels", options, own),))).exact


@pytest.mark.parametrize("name", list(NETS))
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    rank=st.floats(0.05, 1),
    method=st.sampled_from(("spatial_svd", "tucker2", "cp")),
)
def test_factors_are_predicted_exactly(name: str, rank: float, method: str):
    found = check(name, Recipe((Step("factorize", {"rank": rank, "method": method}),)))
    assert found.macs <= known(name)[1].macs


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("pattern", ["any", "2:4", "1:4"])
def test_zeros_are_predicted_exactly(name: str, pattern: str):
    options = {"sparsity": 0.37, "scope": "layer", "pattern": pattern}
    found = check(name, Recipe((Step("prune_weights", options),)))
    assert found.params == known(name)[1].params
    assert found.nonzero < found.params


@pytest.mark.parametrize("name", list(NETS))
@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    order=st.permutations(["prune_channels", "factorize", "prune_weights"]),
    ratio=st.floats(0.05, 0.7),
    rank=st.floats(0.1, 0.7),
)
def test_steps_compose_in_any_order(name: str, order: list[str], ratio: float, rank: float):
    options = {
        "prune_channels": {"ratio": ratio, "multiple": 2},
        "factorize": {"rank": rank},
        "prune_weights": {"sparsity": 0.5, "scope": "layer"},
    }
    recipe = Recipe(tuple(Step(technique, options[technique]) for technique in order))
    found, net = costs(known(name)[1], recipe), done(name, recipe)
    assert found.params == sum(p.numel() for p in net.parameters())
    assert found.macs == sum(map(count_macs, calls(net, torch.zeros(1, 3, side(name), side(name)))))
    if order[-1] == "prune_weights":  # otherwise zeros leave with channels, and only their share is known
        assert found.exact
        assert found.nonzero == sum(int(p.numel()) - zeros(net, n, p) for n, p in net.named_parameters())


def test_a_layer_that_was_split_keeps_its_dial_for_its_factors():
    steps = (
        Step("factorize", {"rank": 1.0}, {"layer3.0.conv2": 0.3}),
        Step(
            "prune_channels",
            {"ratio": 0.0, "multiple": 1},
            {"layer3.0.conv2": 0.5},
        ),
    )
    found = check("cifar_resnet", Recipe(steps))
    row = next(row for row in found.layers if row.name == "layer3.0.conv2")
    assert (row.in_channels, row.out_channels) == (64, 32)
    assert dial_for({"a": 1, "a.b.c": 2}, "a.b", 0) == 1
    assert dial_for({"a": 1}, "ab", 0) == 0


def test_global_scope_is_marked_as_an_estimate():
    profile = known("cifar_resnet")[1]
    assert not costs(profile, Recipe((Step("prune_channels", {"scope": "global"}),))).exact
    assert costs(profile, Recipe((Step("prune_channels"),))).exact


def test_global_zeros_are_exact_in_total():
    recipe = Recipe((Step("prune_weights", {"sparsity": 0.6, "scope": "global"}),))
    net = done("residual", recipe)
    found = costs(known("residual")[1], recipe)
    actual = sum(int(p.numel()) - zeros(net, n, p) for n, p in net.named_parameters())
    assert abs(found.nonzero - actual) <= len(found.layers) / 2  # each row rounds


def test_bytes_by_hand():
    """Conv 3→16 of 3×3 without bias: 432 weights. Linear 64→10: 640 weights and 10 biases."""
    profile = known("cifar_resnet")[1]

    def bytes_of(*steps: Step) -> dict[str, int]:
        found = costs(profile, Recipe(steps))
        assert found.weight_bytes == sum(row.weight_bytes for row in found.layers)
        return {row.name: row.weight_bytes for row in found.layers}

    plain = bytes_of()
    assert (plain["conv1"], plain["bn1"], plain["linear"]) == (4 * 432, 4 * 32, 4 * 650)
    int8 = bytes_of(Step("quantize", {}, {"layer1.0.conv1": 32}))
    assert (int8["conv1"], int8["linear"]) == (432 + 4 * 16, 640 + 4 * 10 + 4 * 10)  # weights, biases, scales
    assert (int8["layer1.0.conv1"], int8["bn1"]) == (4 * 2304, 4 * 32)
    half = bytes_of(Step("quantize", {"mode": "float16"}))
    assert (half["conv1"], half["bn1"], half["linear"]) == (2 * 432, 2 * 32, 2 * 650)


def test_distill_changes_no_cost_and_a_step_switched_off_does_nothing():
    profile = known("cifar_resnet")[1]
    original = costs(profile, Recipe())
    assert costs(profile, Recipe((Step("distill"), Step("prune_channels", enabled=False)))) == original
    assert (original.params, original.macs) == (profile.params, profile.macs)
    assert original.weight_bytes == 4 * profile.params


def test_notes_say_why_a_layer_stays():
    profile = known("cifar_resnet")[1]
    found = costs(profile, Recipe((Step("factorize", {"rank": 0.9}), Step("prune_channels"))))
    notes = {row.name: row.note for row in found.layers}
    assert notes["conv1"].startswith("Kept: 2 factors of rank ")
    assert "one for each class" in notes["linear"]


def test_prediction_needs_no_tensor():
    code = "import sys, core.predict; print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("cifar_resnet", "conv1", ("multiples of 8", "together with those of layer1.0.conv2")),
        ("cifar_resnet", "linear", ("keeps its 10 channels", "one for each class")),
        ("cifar_resnet", "layer1.0.conv1", ("can go from 16 channels to 8", "would leave 11.2, which becomes 8")),
        ("joined", "blocks.1.norm", ("joined channels of blocks.1.a, blocks.1.b",)),
        ("joined", "blocks.1.a", ("no more than one block of 8",)),
    ],
)
def test_explanations(name: str, layer: str, words: tuple[str, ...]):
    text = explain(known(name)[1], layer)
    assert all(word in text for word in words)


def test_profile_of_a_pruned_network_has_the_predicted_shapes():
    """Predicting from the original and profiling what is left agree on every width."""
    recipe = Recipe((Step("prune_channels", {"ratio": 0.5, "multiple": 4}),))
    again = counted(done("residual", recipe), 8)
    predicted = {row.name: (row.in_channels, row.out_channels) for row in costs(known("residual")[1], recipe).layers}
    assert {x.name: (x.in_channels, x.out_channels) for x in again.layers} == predicted
    assert all(x.macs == 0 or prod(x.output_shape) for x in again.layers)


def test_records_have_the_options_that_prediction_reads():
    assert (PruneChannels().scope, PruneWeights().pattern, Factorize().method) == ("layer", "any", "spatial_svd")


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [(64, 0.3, 8, 48), (24, 0.5, 8, 16), (24, 0.6, 8, 8), (16, 0.9, 8, 8), (10, 0.5, 16, 10), (7, 0.5, 1, 4)],
)
def test_widths_are_rounded_to_the_nearest_block(channels: int, ratio: float, multiple: int, kept: int):
    """64·0.7 = 44.8, nearest 48; 24·0.5 = 12, half way goes up; 24·0.4 = 9.6; at least one block; 3.5 goes up."""
    assert kept_channels(channels, ratio, multiple) == kept
