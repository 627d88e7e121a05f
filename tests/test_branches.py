"""Which residual branches can go, against networks whose branches are known, and what the network then answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.branches import remove_branches
from core.engine.context import Context
from core.engine.data import Images, to_tensor
from core.engine.formats import onnx_writer
from core.engine.graph import trace
from core.engine.surgery import copy_model
from core.engine.techniques.prune_channels import apply
from core.layers import Group, Profile, explain
from core.options import PruneChannels
from sample_models.cifar_resnet import CifarResNet
from tests.nets import Net
from tests.profiles import resnet

IMAGE = torch.zeros(1, 3, 8, 8)
CARD = ModelCard("net", "Net", (3, 32, 32), tuple("abcdefghij"), (0.5,), (0.25,))


def removable(module: nn.Module, example: Tensor = IMAGE) -> dict[str, tuple[str, ...]]:
    return {group.name: group.branch for group in trace(module, example).groups if group.branch}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("residual", {"blocks.1.a": ("blocks.1.a", "blocks.1.b", "blocks.1.norm")}),
        ("depthwise", {"blocks.1.a": ("blocks.1.a", "blocks.1.b", "blocks.1.c")}),
        ("squeeze", {}),  # a product: without its gate the block is something else
        ("project", {}),  # both summands make the channels of the sum
        ("concat", {}),
        ("joined_residual", {}),
        ("twice", {}),
    ],
)
def test_branches_that_are_known(block: str, expected: dict[str, tuple[str, ...]]):
    assert removable(Net(["plain", block], [6, 7, 8], "mean")) == expected


class Gated(nn.Module):
    """A residual block with squeeze-and-excite inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.squeeze, self.excite, self.answer = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.a(x))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.answer((x + self.b(y)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_group_that_the_branch_can_do_without_does_not_take_it_along():
    """Without channels in `squeeze` the gate is constant, but what `a` makes still passes."""
    assert removable(Gated()) == {"a": ("a", "squeeze", "excite", "b")}


def test_either_group_of_a_bottleneck_takes_its_branch_along():
    found = removable(torchvision.models.resnet50(num_classes=5).eval(), torch.zeros(1, 3, 64, 64))
    assert len(found) == 2 * 16
    first, second = found["layer1.1.conv1"], found["layer1.1.conv2"]
    assert first == second
    assert [name for name in first if "conv" in name] == ["layer1.1.conv1", "layer1.1.conv2", "layer1.1.conv3"]


def groups_of(module: nn.Module, names: list[str], side: int = 32) -> list[Group]:
    return [group for group in trace(module, torch.zeros(1, 3, side, side)).groups if group.name in names]


@pytest.mark.parametrize("names", [["layer1.0.conv1"], ["layer2.0.conv1"], ["layer1.0.conv1", "layer3.0.conv1"]])
def test_without_the_branch_is_as_if_it_gave_zeros(names: list[str]):
    """Where the shortcut is a convolution it stays, with the activation behind the sum."""
    torch.manual_seed(0)
    model, x = CifarResNet(8).eval(), torch.randn(4, 3, 32, 32)
    shorter = remove_branches(copy_model(model), groups_of(model, names))
    with torch.no_grad():
        for name in names:
            norm = model.get_submodule(name.replace("conv1", "bn2"))
            norm.weight.zero_()
            norm.bias.zero_()
        torch.testing.assert_close(shorter(x), model(x))
    left = {name for name, _ in shorter.named_modules()}
    assert not left & {name.replace("conv1", part) for name in names for part in ("conv1", "bn1", "conv2", "bn2")}


def test_the_file_has_neither_the_sum_nor_the_activation_behind_it(tmp_path: Path):
    model = CifarResNet(20).eval()
    names = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (1, 2)]
    shorter = remove_branches(copy_model(model), groups_of(model, names))
    operators = []
    for module in (model, shorter):
        onnx_writer.export(module, CARD, tmp_path / "model.onnx")
        operators.append([node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node])
    gone = {kind: operators[0].count(kind) - operators[1].count(kind) for kind in ("Conv", "Add", "Relu")}
    assert gone == {"Conv": 12, "Add": 6, "Relu": 12}


def random_images(count: int, seed: int) -> Images:
    random = np.random.default_rng(seed)
    return Images(random.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8), None)


def test_repair_makes_up_for_a_branch_that_went():
    """The layers behind it read other values although their own weights stayed: they are solved as well."""
    torch.manual_seed(0)
    model, context = CifarResNet(14).eval(), Context(CARD, *(random_images(128, n) for n in range(3)), False, None)
    x = to_tensor(random_images(64, 9).x, CARD)
    wanted, errors = model(x).detach(), []
    for mend in (False, True):
        outcome = apply(
            copy_model(model), PruneChannels(0.0, repair=mend, reestimate=False), {"layer2.1.conv1": 1.0}, context
        )
        errors.append(float((outcome.model(x).detach() - wanted).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_group_that_is_no_branch_keeps_one_block_of_channels():
    model = Net(["plain", "residual"], [16, 16, 16], "mean")
    black = Images(np.zeros((4, 8, 8, 3), np.uint8), None)
    context = Context(ModelCard("n", "N", (3, 8, 8), tuple("abcde")), black, black, black, False, None)
    outcome = apply(model, PruneChannels(1.0, multiple=4, repair=False, reestimate=False), {}, context)
    widths = {name: part.out_channels for name, part in outcome.model.named_modules() if isinstance(part, nn.Conv2d)}
    assert widths == {"stem": 4, "blocks.0.a": 4}


def test_the_explanation_says_so():
    assert "At 100 % the whole residual branch disappears" in explain(resnet(3), "layer1.0.conv1")
    assert "100 %" not in explain(resnet(3), "conv1")


class Changing(nn.Module):
    """Its code asks what the images are like, so that no graph of it can be read ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (nn.Conv2d(a, b, 1) for a, b in ((3, 8), (8, 8), (8, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x)) if x.shape[0] > 0 and float(x.detach().abs().max()) >= 0 else x
        return self.head(x).mean((2, 3))


def test_where_the_network_cannot_be_traced_the_explanation_says_that_no_branch_can_go():
    groups = {group.name: group for group in trace(Changing().eval(), torch.zeros(1, 3, 4, 4)).groups}
    assert not groups["inner"].blocked
    assert groups["inner"].branch == ()
    assert groups["inner"].untraced.startswith("No residual branch can disappear")
    assert groups["head"].untraced == ""  # it says already why it keeps its channels
    profile = resnet(3)
    told = replace(profile, groups=tuple(replace(g, branch=(), untraced="So it is.") for g in profile.groups))
    assert explain(told, "layer1.0.conv1").endswith(" So it is.")


def test_a_profile_from_before_branches_were_known_is_still_read():
    old = resnet(3).to_json()
    for group in old["groups"]:
        del group["branch"]
    assert not any(group.branch for group in Profile.from_json(old).groups)
    assert Profile.from_json(resnet(3).to_json()) == resnet(3)
