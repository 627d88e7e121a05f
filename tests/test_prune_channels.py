"""Which channels go, how many, and what the network then answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.graph import trace
from core.engine.reestimate import answers, measure_batchnorm, reestimate
from core.engine.surgery import copy_model
from core.engine.techniques.prune_channels import apply, rank_together
from core.errors import RecipeError
from core.layers import kept_channels
from core.options import PruneChannels
from tests.nets import Net

CARD = ModelCard("net", "Net", (3, 8, 8), tuple("abcde"), (0.5,), (0.25,))
CRITERIA = ("l1", "l2", "bn_scale", "taylor", "fpgm")


def images(count: int, seed: int, labelled: bool = True) -> Images:
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return Images(x, random.integers(0, 5, count) if labelled else None)


def context(teacher: nn.Module | None = None, labelled: bool = True, seed: int = 0) -> Context:
    parts = (images(64, n + seed, labelled) for n in range(3))
    return Context(CARD, *parts, flip=False, teacher=teacher)


def net(*blocks: str, head: str = "mean", width: int = 8) -> Net:
    return Net(list(blocks or ("plain", "residual", "plain")), [width] * 6, head)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("labelled", [True, False])
def test_every_criterion_keeps_exactly_what_the_dial_says(criterion: str, labelled: bool):
    model = net("plain", "residual", "plain")
    groups = trace(model, torch.zeros(1, 3, 8, 8)).open
    outcome = apply(
        model, PruneChannels(0.4, criterion, multiple=1, repair=False, reestimate=False), {}, context(labelled=labelled)
    )
    unscaled = {skip.layer for skip in outcome.skipped if "No BatchNorm" in skip.reason}
    assert unscaled == ({"stem", "blocks.1.a"} if criterion == "bn_scale" else set())
    for group in groups:
        wanted = group.channels if group.name in unscaled else kept_channels(group.channels, 0.4, 1)
        assert model.get_submodule(group.name).out_channels == wanted, group.name
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert all(p.grad is None for p in model.parameters())


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(ratio=st.floats(0, 0.95), multiple=st.sampled_from((1, 2, 4, 8, 16)), own=st.floats(0, 0.95))
def test_widths_follow_the_dial_of_the_first_layer(ratio: float, multiple: int, own: float):
    model = net("residual", "plain", width=12)
    layers = {"stem": own, "blocks.0.b": 0.9}  # stem and blocks.0.b are one group; its first layer decides
    apply(model, PruneChannels(ratio, multiple=multiple, repair=False, reestimate=False), layers, context())
    assert model.stem.out_channels == kept_channels(12, own, multiple)
    assert model.blocks[0].b.out_channels == model.stem.out_channels
    assert model.blocks[0].a.out_channels == kept_channels(12, ratio, multiple)


def strengthen(model: Net, weak: list[int]) -> None:
    """Make these channels of the group of blocks.0 small by every measure that has a size."""
    block = model.blocks[0]
    with torch.no_grad():
        block.norm.bias.copy_(block.norm.bias.abs() + 1)  # a channel that is always zero would be weaker still
        for tensor in (block.a.weight, block.norm.weight, block.norm.bias):
            tensor[weak] *= 0.01
        model.answer.weight[:, weak] *= 0.01


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor"])
def test_the_weakest_channels_go(criterion: str):
    model = net("plain")
    strengthen(model, [1, 4, 6])
    kept = [0, 2, 3, 5, 7]
    expected = model.blocks[0].a.weight[kept][:, : model.stem.out_channels].clone()
    options = PruneChannels(0.0, criterion, multiple=1, repair=False, reestimate=False)
    apply(model, options, {"blocks.0.a": 0.375}, context())
    assert torch.equal(model.blocks[0].a.weight, expected)


def test_fpgm_removes_what_others_can_replace():
    """Filters 2 and 5 lie in the middle of the others, so the sum of their distances is the smallest."""
    model = net("plain")
    with torch.no_grad():
        weight = model.blocks[0].a.weight
        weight.copy_(torch.sign(weight) * (weight.abs() + 1))
        weight[[2, 5]] = (weight[[0, 1, 3, 4, 6, 7]] ** 2).mean(0).sqrt()
        model.answer.weight.fill_(0.1)
    apply(
        model, PruneChannels(0.0, "fpgm", multiple=1, repair=False, reestimate=False), {"blocks.0.a": 0.25}, context()
    )
    assert model.blocks[0].a.out_channels == 6
    assert not any(torch.allclose(row, weight[2]) for row in model.blocks[0].a.weight)


def test_global_ranking_by_hand():
    scores = {"a": np.array([1.0, 0.2, 3.0, 0.1]), "b": np.array([0.3, 5.0])}
    assert rank_together(scores, 0.5) == {"a": 0.5, "b": 0.5}  # 0.1, 0.2 and 0.3 are the lowest three of six
    assert rank_together(scores, 1 / 3) == {"a": 0.5, "b": 0.0}
    assert rank_together({}, 0.5) == {}


def test_global_scope_takes_from_the_weaker_group_and_spares_a_dial_of_its_own():
    model = net("plain", "plain")
    with torch.no_grad():
        model.blocks[0].a.weight[:6] *= 1e-3
        model.blocks[1].a.weight[:, :6] *= 1e-3
        model.blocks[0].norm.weight[:6] *= 1e-3
    options = PruneChannels(0.4, scope="global", multiple=1, repair=False, reestimate=False)
    apply(model, options, {"stem": 0.0}, context())
    widths = (model.stem.out_channels, model.blocks[0].a.out_channels, model.blocks[1].a.out_channels)
    assert widths == (8, 2, 8)


def test_blocked_groups_are_returned_with_their_reason():
    outcome = apply(net("plain"), PruneChannels(0.5, multiple=1, repair=False), {}, context())
    assert ("prune_channels", "answer") in [(skip.technique, skip.layer) for skip in outcome.skipped]
    assert all(skip.reason.endswith(".") for skip in outcome.skipped)
    assert apply(net("plain"), PruneChannels(0.0), {}, context()).skipped == ()


def test_bn_scale_needs_batchnorm():
    with pytest.raises(RecipeError, match="bn_scale needs BatchNorm"):
        apply(net("concat"), PruneChannels(0.5, "bn_scale"), {}, context())


def test_a_ratio_of_nothing_changes_nothing():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    apply(model, PruneChannels(0.0), {}, context())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_batchnorm_is_measured_as_the_plain_average_of_equal_batches():
    model, around = net("plain"), context()
    inputs = []
    model.blocks[0].a.register_forward_hook(lambda _, __, y: inputs.append(y.detach()))
    assert measure_batchnorm(model, around.calibration, around)
    norm, y = model.blocks[0].norm, torch.cat(inputs)
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, y.var((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not norm.training


def test_statistics_are_kept_only_where_agreement_rises():
    reference, around = net("plain", "plain"), context()
    measure_batchnorm(reference, around.calibration, around)
    with torch.no_grad():  # so that the answers differ from image to image
        reference.answer.bias -= reference(to_tensor(around.validation.x, CARD)).mean(0)
    broken = copy_model(reference)
    with torch.no_grad():
        broken.blocks[0].norm.running_mean += 3.0
    assert reestimate(broken, reference, around) == ""
    assert torch.equal(answers(broken, around.validation, around), answers(reference, around.validation, around))
    before = reference.blocks[0].norm.running_mean.clone()
    reason = reestimate(reference, copy_model(reference), around)
    assert "from 100.0% to 100.0%" in reason
    assert torch.equal(reference.blocks[0].norm.running_mean, before)
