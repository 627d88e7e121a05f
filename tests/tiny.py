"""A small trained network and its data, made in a second or two and the same on every run."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.context import Context
from core.engine.data import Data, Images, make_data
from core.engine.models import Model
from core.engine.schedule import Plan
from core.engine.train import fit

CLASSES = ("up", "down", "left", "right")
CARD = ModelCard("tiny", "Tiny", (3, 12, 12), CLASSES, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class TinyNet(nn.Module):
    """A residual block between two convolutions. (n, 3, 12, 12) → (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.block(x) + x)
        x = torch.relu(self.down(x))
        return self.head(self.pool(x).flatten(1))


def draw(count: int, seed: int) -> Images:
    """Noise with one brighter half; which half is the class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.integers(40, 180, (count, 12, 12, 3))
    for image, label in zip(x, y, strict=True):
        half = [image[:6], image[6:], image[:, :6], image[:, 6:]][label]
        half += 60
    return Images(x.astype(np.uint8), y.astype(np.int64))


@cache
def tiny_data() -> Data:
    return make_data("tiny", draw(320, 0), draw(160, 1), CLASSES)


@cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    net, data = TinyNet(), tiny_data()
    fit(net, data.train, data.validation, CARD, Plan(epochs=4, learning_rate=0.05, batch_size=16, shift=0))
    return net.eval()


def tiny_model() -> Model:
    """A fresh copy each time."""
    return Model(copy.deepcopy(_trained()), CARD)


def tiny_context(model: Model | None = None, **changes: object) -> Context:
    data = tiny_data()
    given = {"teacher": model.module if model else None, "flip": False, "seed": 0, **changes}
    return Context(CARD, data.train, data.calibration, data.validation, **given)  # type: ignore[arg-type]
