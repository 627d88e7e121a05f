"""Groups against networks whose coupling is known, and a strong check: cutting channels equals silencing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.engine.graph import Structure, channel_groups, trace
from core.engine.surgery import calls, copy_model, kind_of, remove_channels, replace_layer
from core.layers import kept_channels
from sample_models.cifar_resnet import CifarResNet
from tests.nets import BLOCKS, HEADS, Net
from tests.shared_data import shared

IMAGE = torch.zeros(1, 3, 8, 8)


def widths(module: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """Layer → its weight's own (input, output) channels."""
    found = {}
    for row in calls(module, example):
        weight = row.layer.weight.shape
        into = weight[1] if kind_of(row.layer) in ("conv", "linear") else weight[0]
        found[row.path] = (into, weight[0])
    return found


def silence(module: nn.Module, structure: Structure, removed: dict[str, list[int]]) -> None:
    """Make the removed channels exactly zero in the whole network, from the records alone."""
    width = {group.name: group.channels for group in structure.groups}
    with torch.no_grad():
        for name, group in structure.group_of.items():
            layer, index = module.get_submodule(name), list(removed.get(group, []))
            if not group:  # several groups joined: count along its inputs
                offset = 0
                for feed in structure.inputs[name]:
                    index += [offset + i for i in removed.get(feed.group, [])]
                    offset += width[feed.group] * feed.repeat
            if not isinstance(layer, nn.PReLU):
                layer.weight[index] = 0
                if layer.bias is not None:
                    layer.bias[index] = 0


@pytest.mark.parametrize("first", BLOCKS)
@settings(max_examples=7, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    others=st.lists(st.sampled_from(BLOCKS), max_size=3).filter(lambda b: b.count("pool") < 2),
    widths_=st.lists(st.integers(2, 9), min_size=5, max_size=5),
    head=st.sampled_from(HEADS),
    multiple=st.sampled_from((1, 2, 4)),
    data=st.data(),
)
def test_cutting_equals_silencing(
    first: str, others: list[str], widths_: list[int], head: str, multiple: int, data: st.DataObject
):
    net = Net([first, *others], widths_, head)
    structure = trace(net, IMAGE)
    removed, width = {}, {group.name: group.channels for group in structure.groups}
    for group in structure.open:
        ratio = data.draw(st.floats(0, 0.95), label=group.name)
        width[group.name] = kept_channels(group.channels, ratio, multiple)
        order = np.random.default_rng(group.channels).permutation(group.channels)
        removed[group.name] = sorted(order[width[group.name] :].tolist())
    silent, original = copy_model(net), widths(net, IMAGE)
    silence(silent, structure, removed)
    for name, index in removed.items():
        remove_channels(structure.dependency, net.get_submodule(name), index)
    for name, (into, out) in widths(net, IMAGE).items():
        feeds = structure.inputs[name]
        expected_in = sum(width[feed.group] * feed.repeat for feed in feeds) if feeds else original[name][0]
        assert into == expected_in, name
        assert out == width.get(structure.group_of[name], expected_in), name
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), silent(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_inputs_add_up_and_only_input_and_answer_are_blocked(kind: str):
    structure = trace(net := Net([kind], [4, 3], "mean"), IMAGE)
    width = {group.name: group.channels for group in structure.groups}
    for name, (into, _) in widths(net, IMAGE).items():
        assert sum(width[feed.group] * feed.repeat for feed in structure.inputs[name]) == into
    assert [g.name for g in structure.groups if g.blocked] == ["input", "answer"]
    assert structure.groups[-1].blocked == "Its channels are the model's answer: one for each class."


def test_groups_of_a_residual_network():
    groups = {g.name: g for g in channel_groups(CifarResNet(8).eval(), torch.zeros(1, 3, 32, 32))}
    assert groups["conv1"].layers == ("conv1", "layer1.0.conv2")
    assert groups["layer2.0.conv2"].layers == ("layer2.0.conv2", "layer2.0.shortcut.0")
    assert groups["layer1.0.conv1"].layers == ("layer1.0.conv1",)
    assert {g.name: g.channels for g in groups.values()} == {
        "input": 3, "conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer2.0.conv2": 32,
        "layer3.0.conv1": 64, "layer3.0.conv2": 64, "linear": 10,
    }  # fmt: skip


def test_flatten_repeats_each_channel_and_concat_keeps_order():
    structure = trace(Net(["concat"], [4, 3], "flatten"), IMAGE)
    feeds = structure.inputs["answer"]
    assert [(feed.group, feed.repeat) for feed in feeds] == [("blocks.0.a", 64), ("blocks.0.b", 64)]


class Odd(nn.Module):
    """Two convolutions with something between them that keeps channels from being followed."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.answer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=1), nn.Linear(8, 5)
        self.grouped, self.norm = nn.Conv2d(8, 8, 1, groups=2), nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("constant", torch.rand(8, 1, 1))
        self.between = between
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.b(self.between(self, self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "word"),
    [
        (lambda m, x: x.flip(1), "Flip"),
        (lambda m, x: x.reshape(len(x), 2, 4, 6, 6).transpose(1, 2).reshape(len(x), 8, 6, 6), "Reshape"),
        (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), "Split"),
        (lambda m, x: nn.functional.pad(x, [0, 0, 0, 0, 2, 2])[:, 2:10], "Pad"),
        (lambda m, x: nn.functional.pad(x, [0, 0, 0, 0, 2, -2]), "Pad"),
        (lambda m, x: x.permute(0, 1, 3, 2), "Transpose"),
        (lambda m, x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]], "Index"),
        (lambda m, x: x * m.scale, "constant"),
        (lambda m, x: x + m.constant, "constant"),
        (lambda m, x: torch.cat([x[:, :4] * 0, x[:, 4:]], 1), "Slice"),
        (lambda m, x: m.grouped(x), "grouped is a grouped convolution (2 groups"),
        (lambda m, x: m.norm(x), "NativeGroupNorm"),
        (lambda m, x: m.b(x).repeat_interleave(2, 1)[:, ::2].repeat(1, 1, 4, 4), "b is run 2 times"),
        (lambda m, x: x.view(-1, 8, 6, 6), "Removing one of its channels breaks the network"),
        (lambda m, x: x + torch.arange(8.0)[:, None, None], "Removing one of its channels breaks the network"),
    ],
)
def test_what_cannot_be_followed_is_blocked_and_named(between, word: str):
    structure = trace(Odd(between), IMAGE)
    reason = next(group for group in structure.groups if group.name == "a").blocked
    if word == "b is run 2 times":
        reason = next(group for group in structure.groups if group.name == "b").blocked
    assert word in reason
    assert reason.endswith(".")


@pytest.mark.parametrize(
    "between",
    [
        lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6),
        lambda m, x: x[:, :, ::2, 1:],
        lambda m, x: nn.functional.pad(x, [1, 1, 1, 1]),
        lambda m, x: x * 2 + torch.rand(1),
        lambda m, x: x * x.mean(1, keepdim=True).sigmoid() if False else nn.functional.interpolate(x, scale_factor=2),
    ],
)
def test_what_keeps_channels_in_place_stays_open(between):
    net = Odd(between)
    structure = trace(net, IMAGE)
    assert "a" in {group.name for group in structure.open}
    remove_channels(structure.dependency, net.a, [0, 5])
    assert (net.a.out_channels, net.b.in_channels, net(IMAGE).shape) == (6, 6, (1, 5))


def test_a_network_that_cannot_be_traced_is_blocked_not_broken(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("integer division or modulo by zero")

    monkeypatch.setattr("core.engine.graph.build_dependency", fail)
    structure = trace(CifarResNet(8).eval(), torch.zeros(1, 3, 32, 32))
    assert not structure.open
    assert "cannot follow this network (ZeroDivisionError: integer division" in structure.groups[-1].blocked
    assert structure.inputs["linear"][0].group == "linear.fixed"


def test_tracing_leaves_the_network_as_it_was():
    net = CifarResNet(8).train()
    net.conv1.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        trace(net, torch.zeros(1, 3, 32, 32))
    assert net.training
    assert not net.conv1.weight.requires_grad
    assert net.linear.weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_padded_shortcuts_leave_every_stage_open():
    from core.engine.formats.onnx_reader import read_onnx

    structure = trace(read_onnx(shared("checkpoints/resnet20_cifar10.onnx")), torch.zeros(1, 3, 32, 32))
    inner = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    assert {group.name for group in structure.open} == inner | {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    stream = next(group for group in structure.groups if group.name == "layer2.0.conv2")
    assert set(stream.layers) == {"layer2.0.conv2", "layer2.0.pad", "layer2.1.conv2", "layer2.2.conv2"}


def test_a_shuffling_network_is_pruned_where_nothing_is_shuffled():
    net = torchvision.models.shufflenet_v2_x0_5().eval()
    structure = trace(net, torch.zeros(1, 3, 64, 64))
    assert "stage2.1.branch2.0" in {group.name for group in structure.open}
    shuffled = next(group for group in structure.groups if group.name == "stage2.1.branch2.5")
    assert "Split" in shuffled.blocked  # it is joined with the half that was split off
    for group in structure.open:
        remove_channels(structure.dependency, net.get_submodule(group.name), range(group.channels // 2))
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "open_groups", "coupled"),
    [
        ("mobilenet_v2", 25, ("features.0.0", ("features.0.0", "features.1.conv.0.0"))),
        ("squeezenet1_1", 25, ("features.3.expand1x1", ("features.3.expand1x1",))),
        ("regnet_y_400mf", 21, ("trunk_output.block1.block1-0.f.se.fc1", ("trunk_output.block1.block1-0.f.se.fc1",))),
        ("resnet18", 12, ("conv1", ("conv1", "layer1.0.conv2", "layer1.1.conv2"))),
    ],
)
def test_torchvision_networks(name: str, open_groups: int, coupled: tuple[str, tuple[str, ...]]):
    net = torchvision.models.get_model(name).eval()
    structure = trace(net, torch.zeros(1, 3, 64, 64))
    groups = {group.name: group for group in structure.open}
    assert len(groups) == open_groups
    assert groups[coupled[0]].layers == coupled[1]
    for group in structure.open:
        remove_channels(structure.dependency, net.get_submodule(group.name), range(0, group.channels, 3))
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


def test_cutting_all_channels_is_refused():
    net = CifarResNet(8).eval()
    structure = trace(net, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="would leave a coupled layer empty"):
        remove_channels(structure.dependency, net.conv1, range(16))


def test_replace_layer_by_path():
    net = CifarResNet(8)
    replace_layer(net, "layer1.0.conv1", nn.Identity())
    assert isinstance(net.layer1[0].conv1, nn.Identity)
    with pytest.raises(AttributeError):
        replace_layer(net, "layer1.0.conv9", nn.Identity())
