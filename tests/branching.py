"""A small network in which channels branch, join and are flattened, with its profile."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.data import Images
from core.engine.perturb import Network, describe
from core.layers import Feed, Group, Layer, Profile


class Net(nn.Module):
    """stem → depthwise → inner → residual sum → concatenation with a side branch → flattened head. 8×8 input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dw = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 6, 1)
        self.side = nn.Conv2d(3, 3, 1)
        self.pick = nn.Conv2d(9, 5, 1)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.sigmoid(self.norm(self.stem(x)))  # a removed channel is not 0 but 0.5 behind this
        y = self.outer(F.relu(self.inner(self.dw(stem)))) + stem
        return self.head(F.adaptive_avg_pool2d(F.relu(self.pick(torch.cat([self.side(x), y], 1))), 2).flatten(1))


def layer(name: str, kind: str, c_in: int, c_out: int, group: str, *feeds: Feed, groups: int = 1) -> Layer:
    return Layer(name, kind, 0, 0, c_in, c_out, (1, 1), groups, True, (c_out, 8, 8), 0, group, feeds)


PROFILE = Profile(
    (
        layer("stem", "conv", 3, 6, "stem", Feed("input")),
        layer("norm", "norm", 6, 6, "stem", Feed("stem")),
        layer("dw", "depthwise", 6, 6, "stem", Feed("stem"), groups=6),
        layer("inner", "conv", 6, 4, "inner", Feed("stem")),
        layer("outer", "conv", 4, 6, "stem", Feed("inner")),
        layer("side", "conv", 3, 3, "side", Feed("input")),
        layer("pick", "conv", 9, 5, "pick", Feed("side"), Feed("stem")),
        layer("head", "linear", 20, 3, "head", Feed("pick", 4)),
    ),
    (
        Group("input", 3, (), "These are the image's channels."),
        Group("stem", 6, ("stem", "dw", "outer")),
        Group("inner", 4, ("inner",)),
        Group("side", 3, ("side",)),
        Group("pick", 5, ("pick",)),
        Group("head", 3, ("head",), "These are the classes."),
    ),
    0, 0, 0, 0, 0,
)  # fmt: skip


CARD = ModelCard("net", "net", (3, 8, 8), ("a", "b", "c"))


def make_net() -> Net:
    """Random weights, norms that do something."""
    torch.manual_seed(0)
    net = Net().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.running_mean)
    return net


def make_network(net: Net) -> Network:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    return describe(net, CARD, PROFILE, Images(pixels, None))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
