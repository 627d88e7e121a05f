"""What the prediction benchmarks measure: an ONNX classifier, its profile, and test images in one fixed order.

A public checkpoint has seen every training image, so fitting and judging both use test images: disjoint stretches of
one fixed permutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.cards import ModelCard
from core.engine.data import Data, Images, make_data, to_tensor
from core.engine.models import Model, open_model
from core.engine.perturb import Network, describe
from core.engine.profile import profile
from core.layers import Profile

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HELD = 500


@dataclass(frozen=True)
class Subject:
    """A model to measure on, with its images in their fixed order."""

    name: str
    model: Model
    network: Network
    data: Data  # what the techniques themselves look at: HELD images without labels
    x: np.ndarray  # (n, h, w, c) uint8
    y: np.ndarray

    @property
    def profile(self) -> Profile:
        return self.network.profile

    @property
    def module(self) -> nn.Module:
        return self.model.module

    @property
    def card(self) -> ModelCard:
        return self.model.card

    def images(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """(inputs (count, c, h, w), labels (count,)) from position `first` on."""
        part = slice(first, first + count)
        return to_tensor(self.x[part], self.card), torch.from_numpy(self.y[part])


def open_subject(file: Path, data: Path) -> Subject:
    """The last HELD images of the order are kept for what the techniques themselves look at."""
    model = open_model({"kind": "file", "path": str(file), **IMAGENET})
    arrays = np.load(data)
    order = np.random.default_rng(0).permutation(len(arrays["x_test"]))
    x, y = arrays["x_test"][order], arrays["y_test"][order].astype(np.int64)
    few = Images(x[-HELD:], None)
    network = describe(model.module, model.card, profile(model, file), few)
    data = Data(make_data(file.stem, few, few, model.card.classes).card, few, few, few, few)
    return Subject(file.stem, model, network, data, x[:-HELD], y[:-HELD])
