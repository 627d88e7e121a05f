"""Make a sample model again: `python -m sample_models.train NAME [--data FILE.npz] [--epochs N]`.

Writes NAME.safetensors, NAME.png (a contact sheet) and NAME.json, the card with the accuracy on the whole test part.
Seeds are fixed; a run that was stopped goes on from at most half a minute before.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from core.cards import ModelCard
from core.engine.contact import contact_sheet
from core.engine.data import Data
from core.engine.data_sets import open_data
from core.engine.schedule import Plan
from core.engine.train import accuracy, fit, seed_all
from core.workspace import default_root, write_json
from sample_models import picture_file, weights_file
from sample_models.networks import NETWORKS


@dataclass(frozen=True)
class Training:
    """How one sample is made: data, normalization and plan."""

    data: str
    title: str
    description: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    plans: tuple[Plan, ...]  # one after the other, each from the best epoch of the one before
    compiled: bool = True  # by torch.compile: halves the time of all but the smallest networks


TRAININGS = {
    "shapes_resnet20": Training(
        "shapes",
        "ResNet-20 on Shapes",
        "Ten shapes, 32×32 colour. Needs no download: the data is drawn.",
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        (Plan(epochs=12, learning_rate=0.1, batch_size=64, schedule="onecycle", flip=True, averaging=0.99),),
    ),
    "shapes_mobilenet": Training(
        "shapes",
        "MobileNetV2 on Shapes",
        "Ten shapes, 32×32 colour, by depthwise convolutions: small already, and harder to make smaller.",
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        (Plan(epochs=20, learning_rate=0.1, batch_size=64, schedule="onecycle", flip=True, averaging=0.99),),
    ),
    "digits_lenet": Training(
        "digits",
        "LeNet on Digits",
        "Handwritten digits, 8×8 grey. Trains in seconds.",
        (0.305,),
        (0.376,),
        (Plan(epochs=60, learning_rate=0.05, batch_size=32, schedule="onecycle", shift=1, averaging=0.99),),
        compiled=False,
    ),
    "cifar10_resnet20": Training(
        "cifar10",
        "ResNet-20 on CIFAR-10",
        "Ten kinds of animals and vehicles, 32×32 colour photographs.",
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        (
            Plan(epochs=30, learning_rate=0.2, batch_size=128, schedule="onecycle", flip=True, averaging=0.998),
            Plan(epochs=20, learning_rate=0.1, batch_size=128, flip=True, averaging=0.998, seed=1),
        ),
    ),
}


def card_of(name: str, data: Data) -> ModelCard:
    """The sample's card, still without an accuracy."""
    training = TRAININGS[name]
    local = " --data cifar10.npz" if training.data == "cifar10" else ""
    return ModelCard(
        name=name,
        title=training.title,
        input_shape=data.card.shape,
        classes=data.card.classes,
        mean=training.mean,
        std=training.std,
        data=training.data,
        source="trained by this project, sample_models/train.py",
        licence="MIT",
        description=training.description,
        command=f"python -m sample_models.train {name}{local}",
    )


def write_sample(name: str, module: nn.Module, data: Data) -> ModelCard:
    """Measure `module` on the test part; write weights, picture and, last, the card."""
    card = card_of(name, data)
    card = card.with_(accuracy=accuracy(module.eval(), data.test, card))
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, weights_file(name))
    contact_sheet(data.test, data.card).save(picture_file(name), optimize=True)
    write_json(weights_file(name).with_suffix(".json"), card.to_json())
    return card


def train(
    name: str, data: Data, epochs: int | None = None, *, checkpoint: Path | None = None, compiled: bool = True
) -> nn.Module:
    """The sample's network, trained by its plans. `compiled` needs a C++ compiler."""
    plans = TRAININGS[name].plans
    seed_all(plans[0].seed)
    module = NETWORKS[name]()
    forward = cast(nn.Module, torch.compile(module)) if compiled else None
    for number, plan in enumerate(plans, 1):
        began = time.monotonic()

        def report(fraction: float, message: str, *, number: int = number, began: float = began, **_: Any) -> None:
            if message.startswith("Epoch"):
                print(f"Plan {number} of {len(plans)}. {message}, {time.monotonic() - began:.0f} s", flush=True)

        fit(
            module,
            data.train,
            data.validation,
            card_of(name, data),
            replace(plan, epochs=epochs or plan.epochs),
            report=report,
            checkpoint=checkpoint and checkpoint.with_suffix(f".{number}"),
            forward=forward,
        )
    return module


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sample_models.train", description=__doc__)
    parser.add_argument("name", choices=list(TRAININGS))
    parser.add_argument("--data", type=Path, help="a local .npz instead of the download")
    parser.add_argument("--epochs", type=int, help="instead of the plan's")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    asked = parser.parse_args()
    source = {"kind": TRAININGS[asked.name].data, **({"path": str(asked.data)} if asked.data else {})}
    data = open_data(source)
    checkpoint = default_root() / f"{asked.name}.checkpoint"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    module = train(
        asked.name,
        data,
        asked.epochs,
        checkpoint=checkpoint,
        compiled=TRAININGS[asked.name].compiled and not asked.eager,
    )
    card = write_sample(asked.name, module, data)
    for file in checkpoint.parent.glob(f"{checkpoint.stem}.[0-9]"):
        file.unlink()
    print(f"{card.name}: {card.accuracy:.2%} of the {data.card.test} test images")


if __name__ == "__main__":
    main()
