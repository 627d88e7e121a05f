"""What the prediction benchmarks measure: an ONNX classifier, its profile, and test images in one fixed order.

A public checkpoint has seen every training image, so fitting and judging both use test images: disjoint stretches of
one fixed permutation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.cards import NORMALIZATIONS, ModelCard
from core.engine.data import Data, Images, make_data, to_tensor
from core.engine.models import Model, open_model
from core.engine.perturb import Network, describe
from core.engine.profile import profile
from core.layers import Profile

IMAGENET = dict(zip(("mean", "std"), NORMALIZATIONS["ImageNet"], strict=True))
HELD, HELD_SHARE = 500, 0.25


@dataclass(frozen=True)
class Subject:
    """A model to measure on, with its images in their fixed order."""

    name: str
    model: Model
    network: Network
    data: Data  # what the techniques themselves look at: the images held back, without labels
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


def add_subject(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model, its images and how their pixels are scaled."""
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--mean", type=float, nargs="+", default=IMAGENET["mean"], help="of the training pixels in [0, 1]"
    )
    parser.add_argument("--std", type=float, nargs="+", default=IMAGENET["std"])


def open_subject(file: Path, data: Path, mean: Sequence[float], std: Sequence[float]) -> Subject:
    """The last images of the order are kept for what the techniques themselves look at: HELD, or a share of a few."""
    model = open_model({"kind": "file", "path": str(file), "mean": mean, "std": std})
    arrays = np.load(data)
    order = np.random.default_rng(0).permutation(len(arrays["x_test"]))
    x, y = arrays["x_test"][order], arrays["y_test"][order].astype(np.int64)
    held = min(HELD, round(HELD_SHARE * len(x)))
    few = Images(x[-held:], None)
    network = describe(model.module, model.card, profile(model, file), few)
    split = Data(make_data(file.stem, few, few, model.card.classes).card, few, few, few, few)
    return Subject(file.stem, model, network, split, x[:-held], y[:-held])
